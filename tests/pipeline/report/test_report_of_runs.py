"""The report of runs on every kind of dataset: their own metrics, splits and clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from data.annotations.types import Annotation
from data.charts import Track, timeline
from data.grid import Grid
from data.store import Store
from pipeline.report.collect import (
    _moment_tracks,
    _saliency_tracks,
    answered,
    history_lines,
    read_metrics,
    shown_metrics,
)

pytest.importorskip("jinja2")

TSG = {"R1@0.5": 7.69, "R1@0.7": 0.0, "mIoU": 20.81}
TVSUM = {"mAP": 0.4266, "BK-mAP": 0.52063}
OFFICIAL = {"MR-full-R1@0.5": 50.0, "MR-full-R1@0.7": 10.0, "MR-full-mAP": 31.25}


def run_folder(folder: Path, brief: dict[str, float], select: str, **about: Any) -> Path:
    """A finished run without predictions for any query of a store."""
    (folder / "predictions").mkdir(parents=True)
    about |= {"selected_by": select, "best": {"brief": brief}}
    (folder / "metrics.json").write_text(json.dumps(about))
    row = {"epoch": 1, "losses": {"total": 3.0, "a": 1.0, "b": 2.0}, "val": brief}
    (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "predictions" / "val-best.jsonl").write_text("")
    return folder


def page_of(tmp_path: Path, *runs: Path) -> str:
    from pipeline.report import report_of_runs, write_report

    store = Store.create(tmp_path / "store", dataset="tiny", clip_len_s=2.0)
    write_report(report_of_runs(store, [], runs, [], None, 3), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("brief", "select", "cells", "chart"),
    [
        (OFFICIAL, "MR-full-mAP", ["R1@0.5", "R1@0.7", "mAP", "50.00", "31.25"], "R1@0.5"),
        (TSG, "mIoU", ["R1@0.5", "R1@0.7", "mIoU", "7.69", "20.81"], "mIoU"),
        (TVSUM, "mAP", ["mAP", "BK-mAP", "0.42660", "0.52063"], "mAP"),
    ],
)
def test_a_run_is_shown_in_the_metrics_that_it_has(
    brief: dict[str, float], select: str, cells: list[str], chart: str, tmp_path: Path
) -> None:
    page = page_of(tmp_path, run_folder(tmp_path / "run", brief, select))
    assert all(f'<t{kind} class="number">{cell}</t{kind}>' in page for cell in cells
               for kind in ("d" if cell[0].isdigit() else "h"))  # fmt: skip
    assert f"<title>Validation {chart}" in page
    assert "nothing was recorded" not in page
    assert "HIT@1" not in page


def test_runs_of_different_metrics_stand_side_by_side(tmp_path: Path) -> None:
    runs = [
        run_folder(tmp_path / "a", OFFICIAL, "MR-full-mAP"),
        run_folder(tmp_path / "b", TVSUM, "mAP"),
    ]
    rows = [read_metrics(each / "metrics.json", each.name, "", "run") for each in runs]
    columns = shown_metrics(rows)
    assert list(columns.values()) == [*OFFICIAL, *TVSUM]
    # the official "mAP" of moments is another number
    assert list(columns)[2:] == ["mAP", "mAP (b)", "BK-mAP"]
    assert "0.52063" in page_of(tmp_path, *runs)


def test_split_and_mode_of_scores_are_told(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", TSG, "mIoU", split="held_out", mode="strict")
    row = read_metrics(run / "metrics.json", "run", "best epoch", "run")
    assert row.about == "best epoch, split held_out, strict metrics"


def test_the_loss_is_the_total_and_not_the_terms_once_more(tmp_path: Path) -> None:
    loss, score = history_lines(run_folder(tmp_path / "run", TSG, "mIoU"), "run", "mIoU")
    assert list(loss.points) == [(1, 3.0)]
    assert list(score.points) == [(1, 20.81)]


def test_queries_are_found_that_a_run_of_held_out_videos_answers(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", dataset="tiny", clip_len_s=2.0)
    rows = [Annotation(i, "q", f"v{i}", 4.0, ((0.0, 2.0),)) for i in range(4)]
    store.save_annotations("train", rows)
    # the same ids, of other videos
    store.save_annotations("test", [Annotation(i, "q", f"t{i}", 4.0) for i in range(4)])
    found = answered(store, {"1": {"vid": "v1"}, "3": {"vid": "v3"}})
    assert [row.qid for row in found] == [1, 3]
    assert answered(store, {}) == []


def test_highlights_are_drawn_where_their_clips_are() -> None:
    # overlapping clips of 4 s, as those of YouTube Highlights, on a grid of 2 s
    spans = ((0.0, 4.0), (2.0, 6.0), (4.0, 8.0))
    row = Annotation(1, "q", "v", 8.0, None, (0, 1, 2), ((0.0,), (1.0,), (0.0,)), spans)
    prediction = {"pred_relevant_windows": [], "pred_saliency_scores": [0.1, 0.9, 0.2]}
    true, predicted = _saliency_tracks(row, prediction, Grid(8.0, 2.0))
    assert true.scores == [0.0, 1.0, 0.0]
    assert true.places_s == predicted.places_s == spans
    assert _moment_tracks(row, prediction) == []


def test_moments_are_drawn_inside_of_their_video() -> None:
    # a store keeps what the file says: reversed, past the end, outside
    row = Annotation(1, "q", "v", 8.0, ((5.0, 2.0), (6.0, 40.0), (9.0, 12.0)))
    truth, *_ = _moment_tracks(row, {"pred_relevant_windows": [[0.0, 1.0, 0.5]]})
    assert [(each.start_s, each.end_s) for each in truth.spans] == [(2.0, 5.0), (6.0, 8.0)]


def test_scores_of_fewer_clips_than_the_grid_has_are_not_stretched() -> None:
    # 7 s: the grid has 4 clips, of which 3 were rated
    row = Annotation(1, "q", "v", 6.0, None, (0, 1, 2), ((1.0,), (2.0,), (3.0,)))
    prediction = {"pred_relevant_windows": [], "pred_saliency_scores": [1.0, 2.0, 3.0]}
    _, predicted = _saliency_tracks(row, prediction, Grid(8.0, 2.0))
    rects = ElementTree.fromstring(str(timeline(8.0, [predicted]))).findall("rect")
    lane, *bars = (each.attrib for each in rects)
    assert len(bars) == 3
    right = float(bars[-1]["x"]) + float(bars[-1]["width"])
    share = (right - float(lane["x"])) / float(lane["width"])
    assert share == pytest.approx(6 / 8, abs=0.01)


def test_bars_stand_at_their_places() -> None:
    track = Track("s", "saliency", scores=[1.0, 2.0], places_s=[(0.0, 2.0), (8.0, 10.0)])
    rects = ElementTree.fromstring(str(timeline(10.0, [track]))).findall("rect")
    lane, first, second = (each.attrib for each in rects)
    assert float(first["x"]) == float(lane["x"])
    assert float(second["x"]) == pytest.approx(
        float(lane["x"]) + 0.8 * float(lane["width"]), abs=0.1
    )
