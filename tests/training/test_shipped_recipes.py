"""Every shipped configuration trains, scores and predicts on its dataset, by name alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from every_dataset import CORPORA, small_dataset
from small_store import write_store
from trainer_calls import good
from typer.testing import CliRunner

from data.annotations import DATASETS
from data.config import load_config
from data.store import Store
from training.cli import app
from training.config import TrainerConfig
from training.session import Session

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trainer"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml"))
HIGHLIGHTS_ONLY = {"tvsum", "youtube_highlights"}
SMALL = {"hidden": 16, "heads": 2, "feedforward": 32, "queries": 4}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Callable[[str], Store]:
    """A small store of a dataset; of the corpora of no paper, one like QVHighlights."""
    made: dict[str, Store] = {}

    def of(dataset: str) -> Store:
        if dataset not in CORPORA:
            return store
        if dataset not in made:
            made[dataset] = small_dataset(tmp_path_factory.mktemp("data") / dataset, dataset)
        return made[dataset]

    return of


def settings(path: Path, store: Store, **more: object) -> list[str]:
    """`--config` of a shipped file, made small."""
    values = {f"model.options.{name}": value for name, value in SMALL.items()}
    values |= {"data.store": store.path, "loop.device": "cpu", "loop.epochs": 1, **more}
    if load_config(TrainerConfig, path).data.hold_out:
        values["data.hold_out"] = 0.3  # of 12 videos
    changes = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return ["--config", str(path), *changes]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_dataset_of_a_paper_has_a_configuration_and_a_corpus_here() -> None:
    shipped = {path.stem for path in SHIPPED}
    assert set(CORPORA) < shipped
    assert set(CORPORA) < set(DATASETS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_configuration_trains_scores_and_predicts(
    path: Path, stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store, out = stores(path.stem), tmp_path / "run"
    split = load_config(TrainerConfig, path).eval.split
    good("fit", *settings(path, store), "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["best"]["brief"][metrics["selected_by"]] is not None

    test = [name for name in store.splits() if name != "train"][-1]
    good("evaluate", "--run", out, "--split", test, "--json", tmp_path / "scores.json")
    good("predict", "--run", out, "--split", test, "--out", tmp_path / "found.jsonl")
    found, truth = rows_of(tmp_path / "found.jsonl"), store.annotations(test)
    assert [row["qid"] for row in found] == [row.qid for row in truth]
    for row, annotation in zip(found, truth, strict=True):
        if path.stem in HIGHLIGHTS_ONLY:
            assert "pred_relevant_windows" not in row
            assert len(row["pred_saliency_scores"]) == len(annotation.saliency or ())
        else:
            assert len(row["pred_relevant_windows"]) == 4

    baseline = ["evaluate", *settings(path, store), "--split", split]
    for name in ("--blind", "--untrained"):
        good(*baseline, name, "--json", tmp_path / f"{name}.json")
        scores = json.loads((tmp_path / f"{name}.json").read_text())
        assert scores["brief"].keys() == metrics["best"]["brief"].keys()


@pytest.mark.parametrize("dataset", sorted(HIGHLIGHTS_ONLY))
def test_highlights_are_learned_from_ratings_alone(dataset: str, tmp_path: Path) -> None:
    # every clip that annotators like points in the direction of its query (small_store.py)
    store, out = small_dataset(tmp_path, dataset, times=2), tmp_path / "run"
    more = {"optim.lr": 4e-3, "loop.epochs": 10, "model.options.input_dropout": 0.0}
    config = settings(CONFIGS / "qd_detr" / f"{dataset}.yaml", store, **more)
    good("fit", *config, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    without = []
    for name in ("--blind", "--untrained"):
        good("evaluate", *config, name, "--json", tmp_path / "scores.json")
        without.append(json.loads((tmp_path / "scores.json").read_text())["brief"]["mAP"])
    # measured: 0.98 and 1.00; blind 0.54 and 0.76, untrained 0.27 and 0.88 (chance: few clips)
    assert metrics["selected_by"] == "mAP"
    assert metrics["last"]["brief"]["mAP"] > 0.9
    assert metrics["last"]["brief"]["mAP"] > max(without) + 0.05


def test_one_domain_is_trained_and_scored_by_data_where(
    stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store, out = stores("tvsum"), tmp_path / "run"
    config = settings(CONFIGS / "qd_detr" / "tvsum.yaml", store)
    good("fit", *config, "--set", "data.where={domain: VU}", "--out", out)
    domains = {row.video_id: row.extra["domain"] for row in store.annotations("val")}
    found = rows_of(out / "predictions" / "val-best.jsonl")
    assert {domains[row["vid"]] for row in found} == {"VU"}
    assert len(found) == 2

    other = ["evaluate", "--run", out, "--set"]
    assert "BK" in good(*other, "eval.where={domain: BK}").output
    result = CliRunner().invoke(app, [*map(str, other), "data.where={domain: BK}"])
    assert result.exit_code == 2
    assert "data.where was {'domain': 'VU'} and is {'domain': 'BK'}" in " ".join(
        result.output.split()
    )
    result = CliRunner().invoke(app, [*map(str, other), "eval.where={domain: XX}"])
    assert result.exit_code == 2
    assert "domain = 'XX'; there are: BK, VU" in " ".join(result.output.split())


def test_subsets_of_new_words_are_scored_by_eval_where(
    stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store, out = stores("charades_cg"), tmp_path / "run"
    config = settings(CONFIGS / "qd_detr" / "charades_cg.yaml", store)
    good("fit", *config, "--out", out)
    place = tmp_path / "scores.json"
    evaluate = ["evaluate", "--run", out, "--split", "novel_word", "--json", place]
    good(*evaluate)
    whole = json.loads(place.read_text())
    good(*evaluate, "--set", "eval.where={news: VERB}")
    part = json.loads(place.read_text())
    assert part["brief"].keys() == whole["brief"].keys()
    assert part["eval.where"] == {"news": "VERB"}
    assert part["queries"] < whole["queries"]
    assert "eval.where" not in whole


@pytest.mark.parametrize("cache", ["device", "none"])
def test_a_resumed_run_on_ratings_is_the_same_to_the_last_bit(
    cache: str, stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store = stores("youtube_highlights")
    more = {"data.cache": cache, "eval.every": 1}
    config = settings(CONFIGS / "qd_detr" / "youtube_highlights.yaml", store, **more)
    good("fit", *config, "--out", tmp_path / "whole", "--set", "loop.epochs=3")
    good("fit", *config, "--out", tmp_path / "parts", "--set", "loop.epochs=1")
    good("fit", *config, "--out", tmp_path / "parts", "--resume", "--set", "loop.epochs=3")
    histories = [
        [{**each, "seconds": 0} for each in rows_of(tmp_path / name / "history.jsonl")]
        for name in ("whole", "parts")
    ]
    assert histories[0] == histories[1]
    predictions = [
        (tmp_path / name / "predictions" / "val-best.jsonl").read_bytes()
        for name in ("whole", "parts")
    ]
    assert predictions[0] == predictions[1]


def test_queries_without_moments_and_without_ratings_teach_nothing(tmp_path: Path) -> None:
    store = small_dataset(tmp_path, "tvsum")
    rows = [replace(row, clip_ids=None, saliency=None) for row in store.annotations("train")]
    store.save_annotations("train", rows)
    config = settings(CONFIGS / "qd_detr" / "tvsum.yaml", store)
    result = CliRunner().invoke(app, ["fit", *config, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "8 queries of split 'train' have no ground-truth moment and no saliency" in said


@pytest.mark.parametrize(("clip_len_s", "said"), [(1.0, False), (2.0, True)])
def test_clips_of_another_length_than_in_the_papers_are_told(
    clip_len_s: float, said: bool, tmp_path: Path
) -> None:
    rows = small_dataset(tmp_path / "own", "charades_sta").annotations("train")
    store = write_store(tmp_path / "store", {"train": rows}, "charades_sta", clip_len_s)
    config = load_config(TrainerConfig, CONFIGS / "qd_detr" / "charades_sta.yaml")
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"store": store.path})}
    )
    told: list[str] = []
    Session(config, told.append)
    note = "has clips of 2 s; figures of papers on 'charades_sta' are of clips of 1 s"
    assert any(note in each for each in told) == said
