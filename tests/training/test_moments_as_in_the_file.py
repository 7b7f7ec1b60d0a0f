"""Scores are over the queries of the file; only training and mode strict mend moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_store import CLIPS, small_values, write_store
from trainer_calls import call, good

from data.annotations import load_annotations
from data.annotations.mend import mended
from data.annotations.types import Annotation
from training.config import TrainerConfig
from training.session import Session
from training.trained_on import TrainedOn, remember

LENGTH_S = float(CLIPS)
"""Of every video: Charades has clips of 1 s."""

PAST_END, REVERSED, OUTSIDE = [6.0, 40.0], [9.0, 2.0], [LENGTH_S + 1, LENGTH_S + 9]


def entries(split: str, moments: dict[int, list[float]]) -> str:
    """Two sentences on each of six videos, in the form of Charades-CD."""
    usual = [[i % 4, i % 4 + 4.0] for i in range(12)]
    for number, moment in moments.items():
        usual[number] = moment
    return json.dumps(
        {
            f"{split}{video}": {
                "video_duration": LENGTH_S,
                "timestamps": usual[2 * video : 2 * video + 2],
                "sentences": [f"{split} {video} {i}" for i in range(2)],
            }
            for video in range(6)
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of Charades-CD, a store of them as `pipeline run` writes it, and a trained run."""
    path = tmp_path_factory.mktemp("as-in-the-file")
    faulty = {1: PAST_END, 4: REVERSED, 7: OUTSIDE}
    splits = {}
    for split, moments in {"train": faulty, "val": {}, "test_ood": faulty}.items():
        (path / f"{split}.json").write_text(entries(split, moments))
        splits[split] = load_annotations("charades_cd", path / f"{split}.json")
    store = write_store(path / "store", splits, "charades_cd", 1.0)
    values = small_values(store)
    values["loop"]["epochs"] = 1
    (path / "config.yaml").write_text(yaml.safe_dump(values))
    fitted = good("fit", "--config", path / "config.yaml", "--out", path / "run")
    (path / "told").write_text(fitted.output)
    good(
        *("predict", "--run", path / "run"), "--split", "test_ood", "--out", path / "answers.jsonl"
    )
    return path


def both_ways(folder: Path, out: Path, *options: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Scores of the store's split and of the published file, and what was said of the second."""
    good("evaluate", "--run", folder / "run", "--split", "test_ood", "--json", out, *options)
    stored = json.loads(out.read_text())
    result = good(
        *("evaluate", "--dataset", "charades_cd", "--annotations", folder / "test_ood.json"),
        *("--predictions", folder / "answers.jsonl", "--json", out, *options),
    )
    return stored, json.loads(out.read_text()), result.output


def moment_of(row: Annotation) -> tuple[float, float]:
    assert row.windows is not None
    return row.windows[0]


def scores(found: dict[str, Any]) -> dict[str, Any]:
    """Without what says where they are from, and UniVTG's second names, which only files get."""
    about = {"annotations", "predictions", "run", "checkpoint", "split"}
    brief = {name: each for name, each in found["brief"].items() if not name.endswith("-key")}
    return {key: value for key, value in found.items() if key not in about} | {"brief": brief}


@pytest.mark.parametrize("mode", ["official", "strict"])
@pytest.mark.parametrize("metrics", ["tsg", "tsg_discounted", "mr_hd"])
def test_a_split_of_the_store_is_scored_as_its_file_key_for_key(
    folder: Path, tmp_path: Path, metrics: str, mode: str
) -> None:
    stored, filed, _ = both_ways(
        folder, tmp_path / "out.json", "--metrics", metrics, "--mode", mode
    )
    stored_scores, filed_scores = scores(stored), scores(filed)
    for key, value in filed_scores.items():
        assert stored_scores[key] == value
    assert stored_scores.keys() == filed_scores.keys()
    assert stored["queries"] == (12 if mode == "official" else 11)


def test_strict_says_what_it_mended_and_left_out(folder: Path, tmp_path: Path) -> None:
    stored, filed, output = both_ways(folder, tmp_path / "out.json", "--mode", "strict")
    counts = {"swapped": 1, "clamped": 1, "dropped": 1, "left_out": 1}
    assert stored["mended"] == filed["mended"] == counts
    assert (
        "mode strict: 1 of 12 queries have no other moment and are left out (qid test_ood3_1)"
        in output
    )
    official, _, output = both_ways(folder, tmp_path / "out.json")
    assert "mended" not in official
    assert "left out" not in output


def test_faults_are_told_of_the_file_in_both_modes(folder: Path, tmp_path: Path) -> None:
    for mode in ("official", "strict"):
        _, _, output = both_ways(folder, tmp_path / "out.json", "--mode", mode)
        assert "1 × moments outside their video" in output


def test_strict_scores_are_over_moments_inside_of_their_videos(
    folder: Path, tmp_path: Path
) -> None:
    """Perfect answers to the mended moments have every point, which official denies them."""
    rows = load_annotations("charades_cd", folder / "test_ood.json")
    usable = {row.qid: row for row in mended(rows)[0]}
    answers = [
        {
            "qid": row.qid,
            "query": row.query,
            "vid": row.video_id,
            "pred_relevant_windows": [[*moment_of(usable.get(row.qid, rows[0])), 1.0]],
        }
        for row in rows
    ]
    perfect = tmp_path / "perfect.jsonl"
    perfect.write_text("".join(json.dumps(each) + "\n" for each in answers))
    found = {}
    for mode in ("official", "strict"):
        good(
            *("evaluate", "--dataset", "charades_cd", "--annotations", folder / "test_ood.json"),
            *("--predictions", perfect, "--mode", mode, "--json", tmp_path / "out.json"),
        )
        found[mode] = json.loads((tmp_path / "out.json").read_text())
    assert found["strict"]["mIoU"] == 100.0
    # 9 of 12 are untouched; 6 of 34 s are what is left of the moment past the end
    assert found["official"]["R1@0.5"] == 75.0
    assert (found["official"]["queries"], found["strict"]["queries"]) == (12, 11)


def test_a_comparison_leaves_out_and_says_the_same(folder: Path, tmp_path: Path) -> None:
    answers, out = folder / "answers.jsonl", tmp_path / "out.json"
    result = good(
        *("compare", answers, answers, "--dataset", "charades_cd", "--mode", "strict"),
        *("--annotations", folder / "test_ood.json", "--json", out),
    )
    found = json.loads(out.read_text())
    assert (found["queries"], found["mended"]["left_out"]) == (11, 1)
    assert "B is" in result.output
    assert "11 queries" in result.output


def test_strict_refuses_a_file_of_which_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    rows = json.loads((folder / "test_ood.json").read_text())
    for entry in rows.values():
        entry["timestamps"] = [OUTSIDE] * 2
    (tmp_path / "ood.json").write_text(json.dumps(rows))
    result = call(
        *("evaluate", "--dataset", "charades_cd", "--annotations", tmp_path / "ood.json"),
        *("--predictions", folder / "answers.jsonl", "--mode", "strict"),
    )
    assert result.exit_code == 2
    assert "mode strict has nothing to score: 12 of 12 moments are empty or begin" in result.output


def test_training_mends_moments_leaves_out_queries_without_and_says_so(folder: Path) -> None:
    told = (folder / "told").read_text()
    for sentence in (
        "1 of 12 moments end before they start: start and end are swapped (qid train2_0)",
        "1 of 12 moments reach out of their video: they are cut to it (qid train0_1)",
        "1 of 12 queries have no other moment and are left out (qid train3_1)",
    ):
        assert f"split 'train', mended for training: {sentence}" in told
    about = json.loads((folder / "run" / "environment.json").read_text())
    assert about["mended"] == {"swapped": 1, "clamped": 1, "dropped": 1, "left_out": 1}
    known = json.loads((folder / "run" / "trained_on.json").read_text())
    assert known["queries"] == 11


def test_targets_of_training_are_the_mended_moments(folder: Path) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    session = Session(TrainerConfig.model_validate(values), lambda sentence: None)
    rows = {row.qid: row.windows for row in session.train.samples.annotations}
    assert len(rows) == len(session.train.samples) == 11
    assert rows["train0_1"] == ((6.0, LENGTH_S),)
    assert rows["train2_0"] == ((2.0, 9.0),)
    # to be scored, the same split has its rows as in the file
    scored = {row.qid: row.windows for row in session.split("train").annotations}
    assert (len(scored), scored["train2_0"]) == (12, ((9.0, 2.0),))


def test_a_run_remembers_moments_as_in_the_file_so_that_the_same_rows_are_found() -> None:
    row = Annotation("q", "a ball", "v", LENGTH_S, ((9.0, 2.0),))
    leak = TrainedOn.of([row], "train", "custom", str).seen.leak(row, str)
    assert leak is not None
    assert leak[0].name == "leak-row"


def test_the_file_of_a_run_keeps_rows_and_queries_apart(tmp_path: Path) -> None:
    rows = [Annotation(i, "a ball", "v", LENGTH_S, ((i, i + 2.0),)) for i in range(3)]
    remember(tmp_path, TrainedOn.of(rows, "train", "custom", str))
    known = json.loads((tmp_path / "trained_on.json").read_text())
    assert (len(known["rows_seen"]), len(known["queries_seen"])) == (3, 1)
