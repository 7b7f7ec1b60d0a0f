"""What TensorBoard is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from training.progress import Scalars


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
