"""Numbers of labelled clips on the grid and back: constants stay, equal grids change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.labelled_clips import on_grid, on_labelled_clips

LENGTHS_S = st.floats(0.25, 4.0)
NUMBERS = st.floats(-10, 10, allow_nan=False)


@st.composite
def jittered(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Clips as those of YouTube Highlights: about 3.3 s long, one about every 1.7 s."""
    starts = np.cumsum(draw(st.lists(st.floats(1.3, 2.3), min_size=1, max_size=12)))
    return [(float(s - 1.3), float(s - 1.3 + draw(st.floats(2.3, 4.0)))) for s in starts]


@settings(deadline=None)
@given(jittered(), NUMBERS, LENGTHS_S, st.integers(1, 60))
def test_a_constant_stays_that_constant_both_ways(
    spans: list[tuple[float, float]], value: float, clip_len_s: float, clips: int
) -> None:
    found, labelled = on_grid(np.full(len(spans), value), spans, clips, clip_len_s)
    np.testing.assert_allclose(found[labelled], value, rtol=1e-12, atol=1e-12)
    assert (found[~labelled] == 0).all()
    back = on_labelled_clips([value] * clips, spans, clip_len_s)
    np.testing.assert_allclose(back, value, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=40), LENGTHS_S)
def test_clips_that_are_those_of_the_grid_keep_their_numbers(
    values: list[float], clip_len_s: float
) -> None:
    spans = [(i * clip_len_s, (i + 1) * clip_len_s) for i in range(len(values))]
    found, labelled = on_grid(np.asarray(values), spans, len(values), clip_len_s)
    assert labelled.all()
    np.testing.assert_allclose(found, values, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        on_labelled_clips(values, spans, clip_len_s), values, rtol=1e-12, atol=1e-12
    )


@settings(deadline=None)
@given(jittered(), st.data(), LENGTHS_S)
def test_no_mean_leaves_the_range_of_what_it_is_made_of(
    spans: list[tuple[float, float]], data: st.DataObject, clip_len_s: float
) -> None:
    values = data.draw(st.lists(NUMBERS, min_size=len(spans), max_size=len(spans)))
    found, labelled = on_grid(np.asarray(values), spans, 30, clip_len_s)
    assert (found[labelled] >= min(values) - 1e-9).all()
    assert (found[labelled] <= max(values) + 1e-9).all()


def test_shared_seconds_are_the_weights() -> None:
    # the grid's clip [1, 2) shares 0.5 s with the first labelled clip and 0.25 s with the second
    found, labelled = on_grid(np.asarray([3.0, 0.0]), [(0.0, 1.5), (1.75, 2.5)], 4, 1.0)
    np.testing.assert_allclose(found, [3.0, 2.0, 0.0, 0.0])
    assert labelled.tolist() == [True, True, True, False]
    # the other way: 1 s of the score 4 and 0.5 s of the score 1
    np.testing.assert_allclose(on_labelled_clips([4.0, 1.0], [(0.0, 1.5)], 1.0), [3.0])


def test_a_labelled_clip_that_the_grid_does_not_reach_is_ranked_last() -> None:
    assert on_labelled_clips([2.0, -1.0], [(0.0, 1.0), (5.0, 6.0)], 1.0) == [2.0, -1.0]


def test_all_clips_of_youtube_highlights_lie_on_the_grid_of_their_video() -> None:
    # the longest gaps and ends of the real files: 0.3 s of a video after its last labelled clip
    found, labelled = on_grid(np.ones(2), [(0.0, 3.3), (3.3, 6.6)], 7, 1.0)
    assert labelled.all()
    assert found == pytest.approx(np.ones(7))
