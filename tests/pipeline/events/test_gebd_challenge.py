"""`pipeline events evaluate` beside the challenge's own loop, on a file of Kinetics-GEBD.

The file has the layout that `prepare_k400_release.ipynb` of StanLei52/GEBD writes, numpy values
included; `challenge` is `Challenge_eval_Code/eval.py` of commit 5f7e722, statement by statement.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from data.errors import UsageError
from data.grid import Grid
from data.store import Store
from data.store.types import ItemKey, Recipe, Row, Schema, StreamSpec
from pipeline.cli import app
from pipeline.events.evaluate import read_truth, truth_and_notes

PICKLE = "k400_mr345_val_min_change_duration0.3.pkl"
UNSURE, MISSING, EMPTY, SHORT = "unsure", "-missing", "empty", "short"


def challenge(gt: dict[str, Any], found: dict[str, Any], threshold: float) -> dict[str, float]:
    tp_all = num_pos_all = num_det_all = 0.0
    for vid, one in gt.items():
        if one["f1_consis_avg"] < 0.3:
            continue
        if vid not in found:
            num_pos_all += len(one["substages_timestamps"][0])
            continue
        duration = one["video_duration"]
        detected = [at for at in found[vid] if 0 <= at <= duration]
        if not detected:
            num_pos_all += len(one["substages_timestamps"][0])
            continue
        num_det_all += len(detected)
        scores = []
        for rater in one["substages_timestamps"]:
            offsets = np.abs(np.subtract.outer(np.array(rater, float), np.array(detected)))
            tp = 0
            for index in range(len(rater)):
                if offsets.shape[1] == 0:
                    break
                nearest = int(np.argmin(offsets[index]))
                if offsets[index, nearest] <= threshold * duration:
                    tp += 1
                    offsets = np.delete(offsets, nearest, 1)
            recall = 1.0 if not rater else tp / len(rater)
            precision = tp / len(detected)
            both = recall + precision
            scores.append((0.0 if both == 0 else 2 * recall * precision / both, tp, len(rater)))
        _, tp, positives = scores[int(np.argmax([f1 for f1, _, _ in scores]))]
        tp_all += tp
        num_pos_all += positives
    recall = 1.0 if num_pos_all == 0 else tp_all / num_pos_all
    precision = 0.0 if num_det_all == 0 else tp_all / num_det_all
    both = recall + precision
    f1 = 0.0 if both == 0 else 2 * recall * precision / both
    return {"f1": f1, "precision": precision, "recall": recall}


def film(rng: np.random.Generator, number: int) -> dict[str, Any]:
    duration = np.float64(rng.uniform(8, 12)) if number % 2 else 10.0
    raters: list[list[Any]] = []
    for _ in range(rng.integers(3, 6)):
        times = np.sort(rng.uniform(0.3, duration - 0.3, rng.integers(0, 8)))
        raters.append(list(times) if number % 3 else times.tolist())
    return {
        "num_frames": 250,
        "path_video": f"val/dancing/{number}_000010_000020.mp4",
        "fps": np.float64(29.97),
        "video_duration": duration,
        "path_frame": "val",
        "f1_consis": [np.float64(0.5)] * len(raters),
        "f1_consis_avg": np.float64(rng.uniform(0.3, 1.0)),
        "substages_myframeidx": [[np.float64(at) for at in rater] for rater in raters],
        "substages_timestamps": raters,
    }


def annotations() -> dict[str, Any]:
    rng = np.random.default_rng(4)
    gt = {f"-vid_{number:02d}": film(rng, number) for number in range(40)}
    gt |= {name: film(rng, 50) for name in (UNSURE, MISSING, EMPTY, SHORT)}
    gt[UNSURE]["f1_consis_avg"] = np.float64(0.29)
    gt[SHORT]["video_duration"] = 6.0
    return gt


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the pickle, and a store with boundaries of most of its videos."""
    monkeypatch.chdir(tmp_path)
    rng, gt = np.random.default_rng(5), annotations()
    Path(PICKLE).write_bytes(pickle.dumps(gt, protocol=pickle.HIGHEST_PROTOCOL))
    found = {name: np.sort(np.round(rng.uniform(0.2, 11.8, rng.integers(1, 9)), 1)) for name in gt}
    found[EMPTY] = np.empty(0)
    store = Store.create(tmp_path / "store", dataset="test", clip_len_s=1.0)
    schema = Schema({"boundaries_s": StreamSpec((), "float64", "item")})
    recipe = Recipe("events", 1, {"method": "rtp"}, {}, schema)
    with store.writer(recipe) as writer:
        for number, name in enumerate(found):
            if name != MISSING:
                key = ItemKey(name, f"{number:064x}")
                writer.add(Row(key, Grid(12.0, 1.0), {"boundaries_s": found[name]}))
    store.set_current({"events": recipe.id})
    return tmp_path


def evaluate(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["events", "evaluate", *words, "--store", "store", "--json"])
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_every_figure_is_that_of_the_challenge_script(folder: Path) -> None:
    gt = annotations()
    reader = Store.open(folder / "store").reader("events")
    found = {name: reader.array(name, "boundaries_s").tolist() for name in reader.ids()}
    assert any(at > gt[SHORT]["video_duration"] for at in found[SHORT])
    told = evaluate(PICKLE, "--no-cpd")
    assert (told["videos"], told["missing"]) == (43, 1)
    mine = told["scores"]["events (rtp)"]
    for number in range(1, 11):
        expected = challenge(gt, found, number / 20)
        name = f"{number / 20:g}"
        assert {each: mine[each][name] for each in expected} == expected
    assert told["scores"]["no boundary"]["f1"]["0.05"] == 0.0


def test_what_was_left_out_and_what_does_not_fit_is_said(folder: Path) -> None:
    notes = " ".join(evaluate(PICKLE)["notes"])
    assert "1 videos whose annotators agree too little (f1_consis_avg below 0.3)" in notes
    assert "1 videos have no events in the store and count as missed" in notes
    assert "(-vid_" in notes
    assert "last longer or shorter in the store than in the truth" in notes
    assert "no row of KernelCPD: " in notes  # the store has no features
    frames = {"vid": SHORT, "duration": 12.0, "boundaries": [50, 100]}
    (folder / "frames.jsonl").write_text(json.dumps(frames))
    assert "2 true boundaries of frames.jsonl lie after the end" in " ".join(
        evaluate("frames.jsonl", "--no-cpd")["notes"]
    )


def test_a_file_of_other_videos_is_refused_with_ids_of_both(folder: Path) -> None:
    other = {"vid": "S6wv_000014_000024", "duration": 10, "boundaries": []}
    (folder / "other.jsonl").write_text(json.dumps(other))
    words = ["events", "evaluate", "other.jsonl", "--store", "store"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "S6wv_000014_000024; in the store: -vid_00, -vid_01" in " ".join(done.output.split())


def test_a_file_without_a_video_to_score_is_refused(folder: Path) -> None:
    (folder / "none.jsonl").write_text("\n")
    with pytest.raises(UsageError, match=r"none\.jsonl has no video to score.* found nothing"):
        read_truth(folder / "none.jsonl")
    gt = annotations()
    (folder / "few.pkl").write_bytes(pickle.dumps({UNSURE: gt[UNSURE]}))
    with pytest.raises(UsageError, match=r"found 1 videos whose annotators agree too little"):
        read_truth(folder / "few.pkl")


@pytest.mark.parametrize(
    "wrong",
    [
        {"boundaries": "123"},
        {"boundaries": ["3"]},
        {"boundaries": [True]},
        {"boundaries": [-3.0]},
        {"boundaries": {"3": 1}},
        {"raters": "12"},
        {"raters": {"first": [1.0]}},
        {"raters": [4]},
        {"duration": -10},
        {"duration": 0},
        {"duration": "10"},
        {"duration": True},
    ],
)
def test_values_that_only_look_like_seconds_are_refused(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    file = tmp_path / "truth.jsonl"
    file.write_text(json.dumps({"vid": "a", "duration": 10, "boundaries": [3]} | wrong))
    with pytest.raises(UsageError, match=r"truth\.jsonl, line 1: expected a JSON object"):
        read_truth(file)


def test_boundaries_may_be_left_out_where_raters_are_given(tmp_path: Path) -> None:
    file = tmp_path / "truth.jsonl"
    file.write_text(json.dumps({"vid": "a", "duration": 10, "raters": [[5, 2.5], []]}))
    truth, notes = truth_and_notes(file)
    assert truth["a"].raters == ((2.5, 5.0), ())
    assert notes == []
