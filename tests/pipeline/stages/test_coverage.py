"""How many clips of Charades-STA hold a caption, with one a second: finding 3 of the specs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data.grid import Grid
from data.video.types import VideoFacts
from pipeline.stages.align import align
from pipeline.stages.caption_slots import Slots


@pytest.fixture(scope="module")
def videos(shared: Path) -> list[tuple[float, np.ndarray]]:
    """Duration of each of the 6,672 videos with queries, and the times of its captions."""
    folder = shared / "annotations/charades_sta"
    durations = json.loads((folder / "durations.json").read_text())
    files = (folder / "charades_sta_train.txt", folder / "charades_sta_test.txt")
    names = sorted({line.split()[0] for file in files for line in file.read_text().splitlines()})
    slots = Slots("timestamp", 1.0, 0.0, 1.0, 64, 0, 0)
    counts = [
        slots.count(VideoFacts(durations[name], 30, 1, 64, 64, 0, "h264", "yuv420p", 1, False, 0))
        for name in names
    ]
    times = [np.arange(count, dtype=np.float64) for count in counts]
    return list(zip((durations[name] for name in names), times, strict=True))


def empty_percent(videos: list[tuple[float, np.ndarray]], clip_len_s: float) -> float:
    coverages = [
        align(times, np.zeros((len(times), 1)), Grid(duration, clip_len_s))[1]
        for duration, times in videos
    ]
    return 100 * (1 - float(np.concatenate(coverages).mean()))


def test_captions_are_as_many_as_the_specs_count(videos: list[tuple[float, np.ndarray]]) -> None:
    assert len(videos) == 6672
    # The specs count 207,521: with the frame at the very end of the 265 videos of whole seconds.
    whole = sum(duration == int(duration) for duration, _ in videos)
    assert sum(len(times) for _, times in videos) + whole == 207_521


@pytest.mark.parametrize(
    ("clip_len_s", "percent"), [(0.5, 49.27), (1 / 6, 83.08), (1.0, 0.0), (2.0, 0.0)]
)
def test_clips_without_a_caption_are_as_many_as_benchmarks_coverage_counts(
    videos: list[tuple[float, np.ndarray]], clip_len_s: float, percent: float
) -> None:
    # benchmarks/coverage.py; of clips of 1/n seconds about (n - 1) of n are empty
    assert empty_percent(videos, clip_len_s) == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize(("per_s", "percent"), [(2, 44.5), (6, 75.0)], ids=["I3D", "VGG"])
def test_the_equation_as_it_is_written_leaves_as_many_snippets_empty_as_the_specs_say(
    videos: list[tuple[float, np.ndarray]], per_s: int, percent: float
) -> None:
    """TEA: closed snippets of D/Lv seconds, pooled to at most 128. Closed ends hold a caption on an
    edge twice, so fewer are empty than of half-open ones."""
    empty = total = 0
    for duration, times in videos:
        count = min(math.floor(duration * per_s), 128)
        edges = np.arange(count + 1) * (duration / count)
        first, after = (
            np.searchsorted(times, edges[:-1], "left"),
            np.searchsorted(times, edges[1:], "right"),
        )
        empty, total = empty + int((after <= first).sum()), total + count
    assert 100 * empty / total == pytest.approx(percent, abs=0.1)
