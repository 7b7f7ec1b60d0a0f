"""What a person and TensorBoard are shown of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from data.terminal import plain_console
from training.progress import LiveReporter, Scalars, scores_table


def record(epoch: int) -> dict[str, Any]:
    val = {"MR-full-mAP": 10.0 * epoch, "MR-long-mAP": None}
    return {"epoch": epoch, "lr": 0.1, "losses": {"total": 1.0 / epoch}, "val": val}


def written(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def part(folder: Path, done: int, epochs: range) -> None:
    scalars = Scalars(folder, done)
    for epoch in epochs:
        scalars.epoch(record(epoch))
    scalars.close()


def test_scalars_are_the_rate_the_losses_and_the_scores_that_count(tmp_path: Path) -> None:
    part(tmp_path, 0, range(1, 3))
    events = written(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["loss/total", "lr", "val/MR-full-mAP"]
    points = [(each.step, each.value) for each in events.Scalars("val/MR-full-mAP")]
    assert points == [(1, 10.0), (2, 20.0)]


def test_epochs_that_are_done_again_are_shown_once(tmp_path: Path) -> None:
    part(tmp_path, 0, range(1, 4))
    part(tmp_path, 0, range(1, 3))  # killed before anything was saved
    part(tmp_path, 1, range(2, 5))
    steps = [each.step for each in written(tmp_path).Scalars("loss/total")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("val", "select", "line"),
    [
        ({"mAP": 0.4266, "BK-mAP": 0.52063}, "mAP", "mAP 0.42660 |"),
        ({"R1@0.5": 7.69, "R1@0.3": 9.0, "mIoU": 20.8}, "mIoU", "mIoU 20.80  R1@0.5 7.69 |"),
        ({"MR-full-mAP": 10.0, "MR-full-R1@0.7": None}, "MR-full-mAP", "MR-full-mAP 10.00 |"),
        ({"MR-full-mAP": 10.0, "MR-long-mAP": 3.0}, "MR-long-mAP", "mAP 3.00  MR-full-mAP 10.00 |"),
    ],
)
def test_the_line_of_an_epoch_has_the_metric_that_chooses_the_best(
    val: dict[str, float | None], select: str, line: str
) -> None:
    out = io.StringIO()
    reporter = LiveReporter(plain_console(file=out), 3, 0, select)
    reporter.epoch({**record(1), "val": val, "seconds": 0.1})
    assert line in out.getvalue()


def test_scores_that_are_shares_keep_their_decimals_in_a_table() -> None:
    out = io.StringIO()
    console = plain_console(file=out)
    console.print(scores_table({"best": {"mAP": 0.4266, "BK-mAP": 0.52063, "VU-mAP": None}}))
    console.print(scores_table({"best": {"MR-full-mAP": 62.9}}))
    assert [each in out.getvalue() for each in ("0.42660", "0.52063", " 62.90 ")] == [True] * 3
