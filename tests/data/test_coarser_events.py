"""Events after some levels of cuts, and how a dataset and a trainer's batch give them."""

from __future__ import annotations

import numpy as np
import pytest

from data.coarser import coarser

SPANS = np.array([[0.0, 4.0], [4.0, 6.0], [6.0, 9.0], [9.0, 20.5]])
LEVELS = np.array([1, 2, 0])
"""First cut at 9 s, its left part at 4 s, the right part of that at 6 s."""


@pytest.mark.parametrize(
    ("depth", "spans", "splits"),
    [
        (0, [[0, 20.5]], [0]),
        (1, [[0, 9], [9, 20.5]], [1, 1]),
        (2, [[0, 4], [4, 9], [9, 20.5]], [2, 2, 1]),
        (3, SPANS.tolist(), [2, 3, 3, 1]),
        (9, SPANS.tolist(), [2, 3, 3, 1]),
    ],
)
def test_each_level_adds_cuts_and_the_events_still_partition_the_video(
    depth: int, spans: list[list[float]], splits: list[int]
) -> None:
    found, found_splits = coarser(SPANS, LEVELS, depth)
    assert found.tolist() == spans
    assert found_splits.tolist() == splits


def test_all_levels_of_a_parsed_video_are_its_events_and_fewer_are_nested_in_them() -> None:
    parser = pytest.importorskip("pipeline.events.parser")
    rng = np.random.default_rng(3)
    scenes = rng.integers(3, 15, 30)
    features = np.repeat(rng.standard_normal((30, 16)), scenes, axis=0)
    features += 0.1 * rng.standard_normal(features.shape)
    events = parser.parse(features, 2.0, 2.0 * len(features) - 0.7, delta_rel=0.1)
    assert len(events.depth) > 15
    before: set[float] = set()
    for depth in range(int(events.depth.max()) + 1):
        spans, splits = coarser(events.spans_s, events.boundary_depth, depth)
        edges = set(spans[:, 0].tolist())
        assert before <= edges
        assert splits.max() <= depth
        assert spans[0, 0] == 0.0
        np.testing.assert_array_equal(spans[1:, 0], spans[:-1, 1])
        before = edges
    np.testing.assert_array_equal(spans, events.spans_s)
    np.testing.assert_array_equal(splits, events.depth)


def test_boundaries_of_other_events_are_refused() -> None:
    with pytest.raises(ValueError, match="3 boundaries between 2 events"):
        coarser(SPANS[:2], LEVELS, 1)
