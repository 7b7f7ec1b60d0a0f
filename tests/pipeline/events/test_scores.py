from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.events.kernel import weights_of
from pipeline.events.scores import BoundaryScorer, Edges, Taper, boundary_scores

TAPERS: list[Taper] = ["box", "gaussian"]
EDGES: list[Edges] = ["zero", "margin", "normalized"]


def literal_scores(features: NDArray, s: int, taper: str, edges: str) -> NDArray[np.float64]:
    """The definition through the whole matrix, as the README of the golden files states it."""
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit = features / np.where(norms == 0, 1, norms)
    similarity, n = unit @ unit.T, len(features)
    weight = {
        a: 1.0 if taper == "box" else np.exp(-(a**2) / (2 * (0.5 * s) ** 2))
        for a in range(1, s + 1)
    }
    scores = np.zeros(n)
    for t in range(n):
        v = np.zeros(n)
        left = [(t - a, weight[a]) for a in weight if t - a >= 0]
        right = [(t + a, weight[a]) for a in weight if t + a < n]
        w_left, w_right = sum(w for _, w in left), sum(w for _, w in right)
        scale = (w_left, w_right) if edges == "normalized" and left and right else (1.0, 1.0)
        for i, w in left:
            v[i] += w / scale[0]
        for i, w in right:
            v[i] -= w / scale[1]
        scores[t] = max(v @ similarity @ v, 0)
        if edges == "normalized":
            scores[t] *= min(w_left, w_right) / sum(weight.values())
        if edges == "margin" and min(t, n - 1 - t) < s:
            scores[t] = 0
    return scores


@st.composite
def sequences(draw: st.DrawFn, longest: int = 120) -> NDArray[np.float64]:
    """Scenes with noise; rows of zeros, repeated and identical frames occur often."""
    n = draw(st.integers(1, longest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scenes = rng.normal(size=(draw(st.integers(1, 6)), draw(st.integers(1, 9))))
    features = scenes[np.sort(rng.integers(0, len(scenes), n))]
    features = features + draw(st.sampled_from([0.0, 0.3, 2.0])) * rng.normal(size=features.shape)
    if draw(st.booleans()):
        features[rng.integers(0, n, max(n // 10, 1))] = 0
    return features


@settings(max_examples=60, deadline=None)
@given(sequences(), st.integers(1, 40), st.sampled_from(TAPERS), st.sampled_from(EDGES))
def test_closed_form_equals_the_literal_matrix_definition(
    features: NDArray, s: int, taper: Taper, edges: Edges
) -> None:
    ours = boundary_scores(features, s, taper, edges)
    np.testing.assert_allclose(ours, literal_scores(features, s, taper, edges), rtol=0, atol=1e-9)
    assert (ours >= 0).all()
    single = boundary_scores(features.astype(np.float32), s, taper, edges)
    weight = 1.0 if edges == "normalized" else max(weights_of(taper, s).sum() ** 2, 1.0)
    np.testing.assert_allclose(single, ours, rtol=0, atol=2e-6 * weight)


@settings(max_examples=40, deadline=None)
@given(sequences(), st.integers(1, 9), st.sampled_from(TAPERS), st.sampled_from(EDGES), st.data())
def test_a_score_has_the_same_bits_in_whatever_range_it_is_computed(
    features: NDArray, s: int, taper: Taper, edges: Edges, data: st.DataObject
) -> None:
    n = len(features)
    scorer = BoundaryScorer(features, s, taper, edges)
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first, n))
    np.testing.assert_array_equal(
        scorer.part(first, last, 0, n), scorer.segment(0, n)[first:last], strict=True
    )


@pytest.mark.parametrize("taper", TAPERS)
def test_blocks_of_a_long_video_do_not_show(taper: Taper) -> None:
    features = np.random.default_rng(0).normal(size=(900, 700)).astype(np.float32)
    whole = boundary_scores(features, 3, taper)
    np.testing.assert_array_equal(
        whole[200:700], boundary_scores(features[190:710], 3, taper)[10:510]
    )


@settings(max_examples=40, deadline=None)
@given(sequences(), st.integers(1, 5), st.sampled_from(EDGES), st.integers(-20, 20))
def test_scaling_the_features_changes_nothing(
    features: NDArray, s: int, edges: Edges, power: int
) -> None:
    scaled = features * 2.0**power
    np.testing.assert_array_equal(
        boundary_scores(scaled, s, edges=edges), boundary_scores(features, s, edges=edges)
    )


@settings(max_examples=40, deadline=None)
@given(sequences(), st.integers(1, 6), st.sampled_from(TAPERS), st.sampled_from(EDGES))
def test_time_reversal_reverses_the_scores(
    features: NDArray, s: int, taper: Taper, edges: Edges
) -> None:
    np.testing.assert_allclose(
        boundary_scores(features[::-1], s, taper, edges)[::-1],
        boundary_scores(features, s, taper, edges),
        rtol=0,
        atol=1e-9,
    )


def test_a_value_that_is_not_finite_is_refused_with_its_clip() -> None:
    features = np.ones((9, 4), np.float16)
    features[6, 2] = np.nan
    with pytest.raises(ValueError, match="clip 6 are not finite"):
        boundary_scores(features, 2)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.ones(4), {}, r"\(L, D\)"),
        (np.ones((0, 4)), {}, r"\(L, D\)"),
        (np.ones((4, 4)), {"half_width": 0}, "at least one clip"),
        (np.ones((4, 4)), {"taper": "hann"}, "allowed: box, gaussian"),
        (np.ones((4, 4)), {"edges": "wrap"}, "allowed: zero, margin, normalized"),
    ],
)
def test_wrong_arguments_are_named(features: NDArray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundary_scores(features, **{"half_width": 2, **options})
