from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.grid import Grid
from pipeline.stages.align import FILLS, align

fills = st.sampled_from(sorted(FILLS))
Case = tuple[NDArray[np.float64], NDArray[np.float64], Grid]


@st.composite
def captioned(draw: st.DrawFn) -> Case:
    """Times inside a video (some exactly on clip edges), their vectors, and the grid."""
    grid = Grid(draw(st.floats(0.1, 40)), draw(st.sampled_from([0.5, 1.0, 2.0, 0.3])))
    times = draw(st.lists(st.integers(0, 400), min_size=1, max_size=30))
    times_s = np.minimum(np.array(times) / 10, grid.duration_s)
    values = np.random.default_rng(len(times)).normal(size=(len(times), 3))
    return times_s, values, grid


def literal(times_s: NDArray, values: NDArray, grid: Grid, fill: str) -> NDArray[np.float64]:
    """Eq. 3 and the fill policies, clip by clip, in the words of specs §2.4."""
    rows = []
    for k, centre in enumerate(grid.centres_s):
        start, end = k * grid.clip_len_s, (k + 1) * grid.clip_len_s
        last = k == grid.n - 1
        inside = (times_s >= start - 1e-6) & ((times_s < end - 1e-6) | last)
        if inside.any():
            rows.append(values[inside].mean(axis=0))
            continue
        before = sorted({t for t in times_s if t <= centre})
        after = sorted({t for t in times_s if t > centre})
        a, b = (before or after[:1])[-1], (after or before[-1:])[0]
        at_a, at_b = (values[times_s == t].mean(axis=0) for t in (a, b))
        if fill == "zero":
            rows.append(np.zeros(values.shape[1]))
        elif fill == "hold":
            rows.append(at_a)
        elif fill == "nearest":
            rows.append(at_b if abs(b - centre) < abs(a - centre) else at_a)
        else:
            part = 0.0 if a == b else (centre - a) / (b - a)
            rows.append((1 - part) * at_a + part * at_b)
    return np.array(rows)


@settings(max_examples=150, deadline=None)
@given(captioned(), fills)
def test_every_clip_has_the_vector_of_the_definition(case: Case, fill: str) -> None:
    times_s, values, grid = case
    narrative, coverage = align(times_s, values, grid, fill)
    assert narrative.shape == (grid.n, 3)
    assert coverage.shape == (grid.n,)
    np.testing.assert_allclose(narrative, literal(times_s, values, grid, fill), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(captioned(), fills, st.randoms(use_true_random=False))
def test_the_order_of_captions_does_not_matter(
    case: Case, fill: str, shuffler: random.Random
) -> None:
    times_s, values, grid = case
    order = list(range(len(times_s)))
    shuffler.shuffle(order)
    np.testing.assert_allclose(
        align(times_s[order], values[order], grid, fill)[0],
        align(times_s, values, grid, fill)[0],
        atol=1e-12,
    )


@settings(max_examples=60, deadline=None)
@given(captioned(), fills)
def test_saying_everything_twice_changes_nothing(case: Case, fill: str) -> None:
    times_s, values, grid = case
    twice = align(np.repeat(times_s, 2), np.repeat(values, 2, axis=0), grid, fill)
    np.testing.assert_allclose(twice[0], align(times_s, values, grid, fill)[0], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(captioned(), st.sampled_from(["nearest", "hold", "linear"]))
def test_constant_captions_give_a_constant_narrative(case: Case, fill: str) -> None:
    times_s, values, grid = case
    narrative, _ = align(times_s, np.full_like(values, 0.25), grid, fill)
    np.testing.assert_allclose(narrative, 0.25, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(captioned())
def test_every_caption_is_counted_once(case: Case) -> None:
    times_s, values, grid = case
    narrative, coverage = align(times_s, values, grid, "zero")
    clips = np.clip(np.floor((times_s + 1e-6) / grid.clip_len_s), 0, grid.n - 1).astype(int)
    counts = np.bincount(clips, minlength=grid.n)
    assert ((counts > 0) == (coverage == 1)).all()
    np.testing.assert_allclose((narrative * counts[:, None]).sum(0), values.sum(0), atol=1e-9)


def test_captions_of_one_time_fill_as_one() -> None:
    times, values = np.array([0.5, 0.5]), np.array([[1.0], [3.0]])
    for fill in ("nearest", "hold", "linear"):
        assert align(times, values, Grid(3.0, 1.0), fill)[0][:, 0].tolist() == [2.0, 2.0, 2.0]


def test_of_two_equally_near_captions_the_earlier_fills() -> None:
    narrative, coverage = align(np.array([0.5, 2.5]), np.array([[1.0], [3.0]]), Grid(3.0, 1.0))
    assert narrative[:, 0].tolist() == [1.0, 1.0, 3.0]
    assert coverage.tolist() == [1, 0, 1]


def test_a_caption_on_a_clip_edge_is_in_the_clip_that_starts_there() -> None:
    assert 0.3 / 0.1 < 3  # what rounding makes of it
    _, coverage = align(np.array([0.3]), np.ones((1, 1)), Grid(0.5, 0.1))
    assert coverage.tolist() == [0, 0, 0, 1, 0]


def test_a_video_without_usable_captions_is_zeros_and_uncovered() -> None:
    narrative, coverage = align(np.empty(0), np.empty((0, 4)), Grid(3.0, 1.0), "linear")
    assert not narrative.any()
    assert narrative.shape == (3, 4)
    assert coverage.tolist() == [0, 0, 0]


def test_an_unknown_fill_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="hold, linear, nearest, zero"):
        align(np.zeros(1), np.zeros((1, 2)), Grid(3.0, 1.0), "spline")


@st.composite
def with_spans(draw: st.DrawFn) -> tuple[NDArray[np.float64], Case]:
    """Where each caption of a case ends; about half of them end where they begin."""
    times_s, values, grid = draw(captioned())
    tenths = st.one_of(st.just(0), st.integers(1, 100))
    lengths = draw(st.lists(tenths, min_size=len(times_s), max_size=len(times_s)))
    return times_s + np.array(lengths) / 10, (times_s, values, grid)


@settings(max_examples=150, deadline=None)
@given(with_spans())
def test_a_caption_with_a_span_is_in_every_clip_that_it_touches(
    case: tuple[NDArray[np.float64], Case],
) -> None:
    ends_s, (times_s, values, grid) = case
    narrative, coverage = align(times_s, values, grid, "zero", ends_s)
    for k in range(grid.n):
        start, end = k * grid.clip_len_s, (k + 1) * grid.clip_len_s
        if k == grid.n - 1:
            end = np.inf
        begins = (times_s >= start - 1e-6) & (times_s < end - 1e-6)
        goes_on = (times_s < start - 1e-6) & (ends_s > start + 1e-6)
        inside = begins | goes_on
        assert coverage[k] == inside.any()
        mean = values[inside].mean(axis=0) if inside.any() else np.zeros(3)
        np.testing.assert_allclose(narrative[k], mean, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(captioned(), fills)
def test_spans_of_no_length_are_no_spans(case: Case, fill: str) -> None:
    spans, no_spans = align(*case, fill, case[0]), align(*case, fill)
    np.testing.assert_array_equal(spans[0], no_spans[0])
    np.testing.assert_array_equal(spans[1], no_spans[1])


def test_a_clip_between_two_spans_is_filled_from_the_nearer_end() -> None:
    times_s, ends_s, values = np.array([0.0, 8.0]), np.array([4.0, 9.0]), np.array([[1.0], [5.0]])
    filled = {
        fill: align(times_s, values, Grid(10.0, 1.0), fill, ends_s)[0][:, 0].tolist()
        for fill in FILLS
    }
    assert filled["nearest"] == [1, 1, 1, 1, 1, 1, 5, 5, 5, 5]
    assert filled["hold"] == [1, 1, 1, 1, 1, 1, 1, 1, 5, 5]
    assert filled["linear"] == [1, 1, 1, 1, 1.5, 2.5, 3.5, 4.5, 5, 5]
    assert filled["zero"] == [1, 1, 1, 1, 0, 0, 0, 0, 5, 0]


def test_a_span_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="ends before it begins"):
        align(np.ones(1), np.zeros((1, 2)), Grid(3.0, 1.0), "zero", np.zeros(1))
