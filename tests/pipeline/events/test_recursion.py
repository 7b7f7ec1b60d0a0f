from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.events.kernel import score_parts
from pipeline.events.ranges import Ranges
from pipeline.events.recursion import recursive_nodes, with_parents
from pipeline.events.scorers import make_scorer
from pipeline.events.scores import BoundaryScorer


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 9), st.integers(0, 999))
def test_many_ranges_together_are_answered_like_each_alone(n: int, fan: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranges = Ranges(rng.integers(0, 5, n).astype(np.float64), fan)
    changed = np.flatnonzero(rng.random(n) < 0.3)
    ranges.replace_at(changed, rng.integers(0, 5, len(changed)).astype(np.float64))
    ends = np.unique(np.append(rng.integers(0, n + 1, 8), [0, n]))
    some = rng.random(len(ends) - 1) < 0.7
    some[0] = True
    lo, hi = ends[:-1][some], ends[1:][some]
    clips, means = ranges.peaks(lo, hi)
    where = list(zip(lo.tolist(), hi.tolist(), strict=True))
    assert clips.tolist() == [ranges.peak(*each) for each in where]
    assert means.tolist() == [ranges.mean(*each) for each in where]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(0, 9), min_size=1, max_size=200),
    fan=st.integers(2, 9),
    data=st.data(),
)
def test_ranges_answer_like_the_plain_sequence_through_any_changes(
    values: list[int], fan: int, data: st.DataObject
) -> None:
    plain = np.array(values, dtype=np.float64)  # small integers: many ties, exact sums
    ranges = Ranges(plain, fan)
    for _ in range(5):
        lo = data.draw(st.integers(0, len(plain) - 1))
        hi = data.draw(st.integers(lo + 1, len(plain)))
        assert ranges.peak(lo, hi) == lo + int(plain[lo:hi].argmax())
        assert ranges.mean(lo, hi) == plain[lo:hi].sum() / (hi - lo)
        new = np.array(data.draw(st.lists(st.integers(0, 9), max_size=hi - lo)), np.float64)
        plain[lo : lo + len(new)] = new
        ranges.replace(lo, new)
        np.testing.assert_array_equal(ranges.values, plain)


def literal(features: NDArray, s: int, edges: str, min_len: int, threshold: float) -> list[int]:
    """Every segment scored anew and read as a whole."""
    if len(features) < max(min_len, 1):
        return []
    scores = BoundaryScorer(features, s, "box", edges).segment(0, len(features))
    if scores.max() - scores.mean() <= max(threshold, 1e-9):
        return []
    clip = int(scores.argmax())
    left = literal(features[:clip], s, edges, min_len, threshold)
    right = literal(features[clip + 1 :], s, edges, min_len, threshold)
    return [*left, clip, *(clip + 1 + each for each in right)]


@pytest.mark.parametrize("edges", ["zero", "margin", "normalized"])
def test_a_video_longer_than_a_block_is_split_like_segment_by_segment(edges: str) -> None:
    rng = np.random.default_rng(5)
    scene = np.cumsum(rng.random(3000) < 1 / 20)
    features = rng.normal(size=(scene[-1] + 1, 8))[scene] + 0.5 * rng.normal(size=(3000, 8))
    scorer = BoundaryScorer(features, 3, "box", edges)  # type: ignore[arg-type]  # parametrized
    nodes = recursive_nodes(scorer, scorer.segment(0, 3000), 5, 0.8)
    assert sorted(n.clip for n in nodes) == literal(features, 3, edges, 5, 0.8)
    assert len(nodes) > 100


def test_the_whole_video_is_split_at_a_threshold_of_all_its_rise() -> None:
    # the threshold is this very difference, with the mean summed in another order
    for seed in range(20):
        features = np.random.default_rng(seed).normal(size=(1000, 5))
        scorer = BoundaryScorer(features, 2, "box", "normalized")
        scores = scorer.segment(0, 1000)
        nodes = recursive_nodes(scorer, scores, 4, float(scores.max() - scores.mean()))
        assert nodes[0].clip == int(scores.argmax())


def test_parents_are_the_splits_that_made_the_segments() -> None:
    features = np.random.default_rng(0).normal(size=(60, 5))
    scorer = BoundaryScorer(features, 2, "box", "normalized")
    nodes = recursive_nodes(scorer, scorer.segment(0, 60), 4, 0.0)
    assert len(nodes) > 8
    for node, parent in with_parents(nodes):
        if parent is None:
            assert (node.lo, node.hi, node.depth) == (0, 60, 0)
        else:
            assert node.depth == parent.depth + 1
            assert (node.lo, node.hi) in {(parent.lo, parent.clip), (parent.clip + 1, parent.hi)}


@pytest.mark.parametrize("edges", ["zero", "margin", "normalized"])
@pytest.mark.parametrize(
    "how",
    [
        {"half_widths": [3]},
        {"half_widths": [40]},  # the closed form
        {"half_widths": [2, 5]},
        {"half_widths": [2, 40], "pool": "mean"},
        {"half_widths": [3], "similarity": "l2", "taper": "gaussian"},
        {"half_widths": [3], "similarity": "sqeuclidean"},
    ],
)
def test_parts_of_many_segments_have_the_bits_of_each_alone(
    how: dict[str, Any], edges: Any
) -> None:
    rng = np.random.default_rng(2)
    scorer = make_scorer(rng.normal(size=(200, 6)), **how, edges=edges)
    ends = np.unique(np.append(rng.integers(0, 201, 30), [0, 200]))
    lo, hi = ends[:-1], ends[1:]
    first = lo + rng.integers(0, hi - lo)
    last = first + rng.integers(0, hi - first + 1)
    alone = [scorer.part(*each) for each in zip(first, last, lo, hi, strict=True)]
    together = score_parts(scorer, first, last, lo, hi)
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert not len(score_parts(scorer, *np.empty((4, 0), np.int64)))


def test_the_strongest_splits_are_those_that_a_search_by_score_would_make_first() -> None:
    features = np.random.default_rng(3).normal(size=(400, 5))
    scorer = BoundaryScorer(features, 2, "box", "normalized")
    every = recursive_nodes(scorer, scorer.segment(0, 400), 4, 0.1)
    for most in (0, 1, 7, 40, len(every) + 5):
        kept = recursive_nodes(scorer, scorer.segment(0, 400), 4, 0.1, max_splits=most)
        assert len(kept) == min(most, len(every))
        reachable = {(0, 400)}
        best_first = []
        while len(best_first) < len(kept):
            at = max((n for n in every if (n.lo, n.hi) in reachable), key=lambda n: n.score)
            reachable -= {(at.lo, at.hi)}
            reachable |= {(at.lo, at.clip), (at.clip + 1, at.hi)}
            best_first.append(at)
        assert set(kept) == set(best_first)


class Staircase:
    """A scorer whose best clip is always the first: the recursion peels off one clip at a time."""

    half_width = 1
    resolution = 1e-9

    def __init__(self, n: int) -> None:
        self.n = n

    def segment(self, lo: int, hi: int) -> NDArray[np.float64]:
        return self.part(lo, hi, lo, hi)

    def part(self, first: int, last: int, lo: int, hi: int) -> NDArray[np.float64]:
        return np.arange(self.n - first, self.n - last, -1, dtype=np.float64) ** 2

    def edge(self, clip: int) -> int:
        return max(clip, 1)


def test_the_most_lopsided_tree_costs_no_more_per_split_when_it_is_longer() -> None:
    def seconds(n: int) -> float:
        scorer = Staircase(n)
        scores = scorer.segment(0, n)
        started = time.process_time()
        nodes = recursive_nodes(scorer, scores, 2, 0.0)
        assert len(nodes) == n - 1
        return time.process_time() - started

    # reading every segment would make this 16 times; near-linear is 4 to 5
    assert min(seconds(16_000) for _ in range(2)) < 8 * min(seconds(4_000) for _ in range(3))
