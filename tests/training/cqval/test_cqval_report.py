"""Scores on the twelve splits, as LMR's Table IV has them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cqval_files import annotation_file, good, labelled, queries_of, refused

from data.annotations import load_annotations
from training.cqval.build import build, read_splits, write_splits
from training.cqval.report import report
from training.metrics import METRICS
from training.predictions import read_predictions

TWELVE = "one two three four five six seven eight nine ten eleven twelve"
NINE = "one two three four five six seven eight nine"
QUERIES = {1: TWELVE, 2: NINE, 3: NINE, 4: "too short"}
LABELS = [["acl", "acl"], ["acl"], [], ["acl"]]

# the moment of every query is [10, 20]: IoU 1, 0.6, 1, 0
WINDOWS = {1: [10, 20], 2: [10, 16], 3: [10, 20], 4: [50, 60]}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return annotation_file(tmp_path / "rows.jsonl", QUERIES)


@pytest.fixture
def splits(tmp_path: Path, rows: Path) -> Path:
    queries = queries_of(rows)
    write_splits(tmp_path / "s.json", build(queries, labelled(queries.texts, LABELS)))
    return tmp_path / "s.json"


def predictions(tmp_path: Path, windows: dict[Any, list[int]] = WINDOWS) -> Path:
    path = tmp_path / "p.jsonl"
    lines = [
        json.dumps({"qid": qid, "vid": f"v{i}", "pred_relevant_windows": [[*window, 0.9]]})
        for i, (qid, window) in enumerate(windows.items())
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def scores(tmp_path: Path, rows: Path, splits: Path, *options: Any) -> dict[str, Any]:
    out = tmp_path / "out.json"
    good(
        *("report", predictions(tmp_path), "--splits", splits, "--annotations", rows),
        *("--json", out, *options),
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_each_split_is_scored_on_its_own_queries(tmp_path: Path, rows: Path, splits: Path) -> None:
    found = scores(tmp_path, rows, splits)
    by_hand = {(1, 8): (2, 1), (1, 9): (2, 1), (1, 10): (1, 1), (2, 8): (1, 1), (1, 13): (0, None)}
    for each in found["splits"]:
        if (key := (each["clauses"], each["words"])) in by_hand:
            queries, hits = by_hand[key]
            assert (each["queries"], each["hits R1@0.7"]) == (queries, hits)
    first, none = found["splits"][0], found["splits"][5]
    # one of two queries is hit, and its AP is 1, the other's 0
    assert first["percent"] == {"R1@0.7": 50.0, "mAP@0.7": 50.0}
    assert first["scores"]["full"]["MR-R1"]["0.5"] == 100.0
    assert none["percent"] == {"R1@0.7": None, "mAP@0.7": None}


def test_predictions_may_stand_in_any_order(tmp_path: Path, rows: Path, splits: Path) -> None:
    made, queries = read_splits(splits), queries_of(rows)
    answers = read_predictions(predictions(tmp_path), queries.annotations)
    usual, turned = (
        report(made, queries, each, clip_len_s=2.0) for each in (answers, answers[::-1])
    )
    assert turned == usual
    assert usual.rows[0].hits == 1


def test_there_is_no_mean_where_a_split_is_empty(tmp_path: Path, rows: Path, splits: Path) -> None:
    assert scores(tmp_path, rows, splits)["average"] == {"R1@0.7": None, "mAP@0.7": None}


def test_what_lmr_published_stands_beside_and_is_marked_as_another_selection(
    tmp_path: Path, rows: Path, splits: Path
) -> None:
    told = good("report", predictions(tmp_path), "--splits", splits, "--annotations", rows, "--ci")
    assert "QD-DETR*" in told
    assert "* LMR's Table IV, on another selection of queries" in told
    assert "54.12" in told
    assert "official metrics" in told
    published = scores(tmp_path, rows, splits)["published"]
    assert published["same_sizes"] is False
    assert published["mAP@0.7"]["LMR"][0] == 50.15


def test_other_metrics_can_be_shown(tmp_path: Path, rows: Path, splits: Path) -> None:
    found = scores(tmp_path, rows, splits, "--show", "R1@0.5,mAP@average,mIoU", "--mode", "strict")
    assert found["mode"] == "strict"
    # IoU 1 and 0.6; AP of the second is 1 at 0.5, 0.55 and 0.6 of ten thresholds
    assert found["splits"][0]["percent"] == {"R1@0.5": 100.0, "mAP@average": 65.0, "mIoU": 80.0}
    told = refused(
        *("report", predictions(tmp_path), "--splits", splits, "--annotations", rows),
        *("--show", "R1@0.77"),
    )
    assert "unknown metric 'R1@0.77'; did you mean 'R1@0.7'" in told


def test_intervals_hold_the_score(tmp_path: Path, rows: Path, splits: Path) -> None:
    found = scores(tmp_path, rows, splits, "--ci")
    assert found["resampling"] == {"level": 0.95, "samples": 2000, "unit": "video"}
    low, high = found["splits"][0]["intervals"]["R1@0.7"]
    assert (low, high) == (0.0, 100.0)  # one hit of two: a sample of both is 0, 50 or 100


def test_splits_of_another_file_are_refused(tmp_path: Path, rows: Path, splits: Path) -> None:
    rows.write_text(rows.read_text() + "\n")
    told = refused("report", predictions(tmp_path), "--splits", splits, "--annotations", rows)
    assert "made of another annotation file" in told


def test_splits_with_queries_that_are_not_there_are_refused(
    tmp_path: Path, rows: Path, splits: Path
) -> None:
    for qids in ((1, 2, 3, 5), (2, 1, 3, 4), ("1", 2, 3, 4), (1, 2, 3, 4, 5)):
        more = {"clauses": (1,) * len(qids), "words": (9,) * len(qids)}
        write_splits(splits, replace(read_splits(splits), qids=qids, **more))
        told = refused("report", predictions(tmp_path), "--splits", splits, "--annotations", rows)
        assert "the splits hold other queries than rows.jsonl, or in another order" in told


def test_predictions_for_a_part_are_refused(tmp_path: Path, rows: Path, splits: Path) -> None:
    part = predictions(tmp_path, {qid: WINDOWS[qid] for qid in (1, 2)})
    told = refused("report", part, "--splits", splits, "--annotations", rows)
    assert "2 are missing from the predictions" in told


def test_published_predictions_score_the_mean_of_their_queries_on_each_split(
    tmp_path: Path, shared: Path
) -> None:
    """AP of a split is measured again; here it is compared with the mean over its queries."""
    val = shared / "annotations/qvhighlights/highlight_val_release.jsonl"
    published = shared / "predictions/qd_detr_val/predictions.jsonl"
    splits, out = tmp_path / "s.json", tmp_path / "out.json"
    good("build", val, "--parser", "heuristic", "--out", splits)
    good("report", published, "--splits", splits, "--annotations", val, "--json", out)
    rows = load_annotations("qvhighlights", val)
    answers = read_predictions(published, rows)
    measured = METRICS.get("mr_hd")(rows, answers, clip_len_s=2.0, mode="official")
    place = {row.qid: i for i, row in enumerate(rows)}
    alone = {key: measured.table()["full", key, "0.7"] for key in ("MR-R1", "MR-mAP")}
    file, found = json.loads(splits.read_text()), json.loads(out.read_text())
    for split, row in zip(file["splits"], found["splits"], strict=True):
        assert row["queries"] == split["size"] > 0
        for name, key in (("R1@0.7", "MR-R1"), ("mAP@0.7", "MR-mAP")):
            mean = float(np.mean([alone[key][place[qid]] for qid in split["qids"]]))
            assert row["percent"][name] == pytest.approx(100 * mean, abs=0.00501)
        hits = sum(alone["MR-R1"][place[qid]] for qid in split["qids"])
        assert row["hits R1@0.7"] == hits
    means = [row["percent"]["R1@0.7"] for row in found["splits"]]
    assert found["average"]["R1@0.7"] == pytest.approx(float(np.mean(means)), abs=0.01)
