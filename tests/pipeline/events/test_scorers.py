from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.events.banded import BandedScorer, band_of_cosines, band_of_matrix
from pipeline.events.kernel import Edges, Scorer, Taper
from pipeline.events.scorers import Pool, Similarity, make_scorer
from pipeline.events.scores import BoundaryScorer, SquaredDistanceScorer, boundary_scores

TAPERS: list[Taper] = ["box", "gaussian"]
EDGES: list[Edges] = ["zero", "margin", "normalized"]
NAMES: list[Similarity] = ["cosine", "l2", "sqeuclidean"]


def whole_matrix(features: NDArray, similarity: str) -> NDArray[np.float64]:
    rows = features.astype(np.float64)
    if similarity == "cosine":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms == 0, 1, norms)
        return rows @ rows.T
    squares = np.square(rows[:, None] - rows[None]).sum(axis=2)
    return -squares if similarity == "sqeuclidean" else -np.sqrt(squares)


def literal_scores(matrix: NDArray, s: int, taper: str, edges: str) -> NDArray[np.float64]:
    """`vᵀ S v` over the whole matrix at every clip, floored at 0."""
    n = len(matrix)
    w = np.array([np.exp(-(a**2) / (2 * (s / 2) ** 2)) for a in range(1, s + 1)])
    w = np.ones(s) if taper == "box" else w
    scores = np.zeros(n)
    for t in range(n):
        v = np.zeros(n)
        left, right = w[: min(s, t)], w[: min(s, n - 1 - t)]
        v[t - len(left) : t], v[t + 1 : t + 1 + len(right)] = left[::-1], -right
        share = 1.0
        if edges == "normalized":
            share = min(left.sum(), right.sum()) / w.sum()
            v[:t] /= max(left.sum(), 1e-300)
            v[t:] /= max(right.sum(), 1e-300)
        scores[t] = share * max(v @ matrix @ v, 0.0)
        if edges == "margin" and min(t, n - 1 - t) < s:
            scores[t] = 0.0
    return scores


@st.composite
def videos(draw: st.DrawFn, longest: int = 60) -> NDArray[np.float64]:
    """Scenes with noise; rows of zeros, repeated and identical frames occur often."""
    n = draw(st.integers(1, longest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scenes = rng.normal(size=(draw(st.integers(1, 5)), draw(st.integers(1, 8))))
    features = scenes[np.sort(rng.integers(0, len(scenes), n))]
    features = features + draw(st.sampled_from([0.0, 0.3, 2.0])) * rng.normal(size=features.shape)
    if draw(st.booleans()):
        features[rng.integers(0, n, max(n // 10, 1))] = 0
    return features


@settings(max_examples=80, deadline=None)
@given(
    videos(),
    st.integers(1, 7),
    st.sampled_from(TAPERS),
    st.sampled_from(EDGES),
    st.sampled_from(NAMES),
)
def test_every_similarity_equals_the_literal_matrix_definition(
    features: NDArray, s: int, taper: Taper, edges: Edges, similarity: Similarity
) -> None:
    matrix = whole_matrix(features, similarity)
    wanted = literal_scores(matrix, s, taper, edges)
    for given_as in (similarity, matrix):
        scorer = make_scorer(features, [s], similarity=given_as, taper=taper, edges=edges)
        found = scorer.segment(0, len(features))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)
        assert (found >= 0).all()
    single = make_scorer(
        features.astype(np.float32), [s], similarity=similarity, taper=taper, edges=edges
    )
    atol = 2e-5 * max(1.0, float(np.abs(matrix).max())) * max(s, 1)
    np.testing.assert_allclose(single.segment(0, len(features)), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("similarity", NAMES)
@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("s", [1, 2, 3, 32])
def test_300_clips_equal_the_literal_matrix_definition(
    similarity: Similarity, edges: Edges, s: int
) -> None:
    features = np.random.default_rng(s).normal(size=(300, 16)) + 5
    scores = make_scorer(features, [s], similarity=similarity, edges=edges).segment(0, 300)
    wanted = literal_scores(whole_matrix(features, similarity), s, "box", edges)
    np.testing.assert_allclose(scores, wanted, rtol=1e-9, atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(
    videos(),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.sampled_from(NAMES),
    st.sampled_from(EDGES),
    st.sampled_from(["max", "mean"]),
    st.data(),
)
def test_a_part_of_a_segment_has_the_bits_of_the_segment_and_of_the_video_cut_out(
    features: NDArray,
    widths: list[int],
    similarity: Similarity,
    edges: Edges,
    pool: Pool,
    data: st.DataObject,
) -> None:
    n = len(features)
    lo = data.draw(st.integers(0, n - 1))
    hi = data.draw(st.integers(lo + 1, n))
    first = data.draw(st.integers(lo, hi - 1))
    last = data.draw(st.integers(first, hi))

    def scorer(rows: NDArray) -> Scorer:
        return make_scorer(rows, widths, similarity=similarity, edges=edges, pool=pool)

    within = scorer(features)
    segment = within.segment(lo, hi)
    np.testing.assert_array_equal(
        within.part(first, last, lo, hi), segment[first - lo : last - lo], strict=True
    )
    alone = scorer(features[lo:hi].copy()).segment(0, hi - lo)
    if similarity == "sqeuclidean":  # each video is centred by its own mean
        np.testing.assert_allclose(alone, segment, rtol=1e-9, atol=1e-9)
    else:
        np.testing.assert_array_equal(alone, segment)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("s", [2, 5])
@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_a_video_scores_the_same_bits_among_padding_and_other_videos(
    dtype: Any, s: int, similarity: Similarity
) -> None:
    rng = np.random.default_rng(0)
    videos = [rng.normal(size=(n, 700)).astype(dtype) for n in (3, 900, 41, 1500)]
    padded = np.zeros((len(videos), 1500, 700), dtype)
    for row, video in zip(padded, videos, strict=True):
        row[: len(video)] = video
    flat = make_scorer(padded.reshape(-1, 700), [s], similarity=similarity)
    for at, video in enumerate(videos):
        alone = make_scorer(video, [s], similarity=similarity).segment(0, len(video))
        np.testing.assert_array_equal(alone, flat.segment(1500 * at, 1500 * at + len(video)))


@settings(max_examples=50, deadline=None)
@given(videos(), st.integers(1, 2), st.sampled_from(TAPERS), st.sampled_from(EDGES))
def test_the_band_and_the_closed_form_of_the_cosine_agree(
    features: NDArray, s: int, taper: Taper, edges: Edges
) -> None:
    closed = BoundaryScorer(features, s, taper, edges)
    banded = BandedScorer(band_of_cosines(features, 2 * s), s, taper, edges)
    n = len(features)
    np.testing.assert_allclose(closed.segment(0, n), banded.segment(0, n), rtol=0, atol=1e-9)
    assert closed.resolution == banded.resolution or not features.any()


@settings(max_examples=50, deadline=None)
@given(videos(), st.sampled_from(NAMES), st.sampled_from(EDGES), st.integers(-12, 12))
def test_scaling_scales_distances_and_leaves_cosines(
    features: NDArray, similarity: Similarity, edges: Edges, power: int
) -> None:
    factor = {"cosine": 1.0, "l2": 2.0**power, "sqeuclidean": 4.0**power}[similarity]
    small, large = (
        make_scorer(rows, [1, 3], similarity=similarity, edges=edges)
        for rows in (features, features * 2.0**power)
    )
    n = len(features)
    np.testing.assert_array_equal(large.segment(0, n), factor * small.segment(0, n))
    assert large.resolution == pytest.approx(factor * small.resolution, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(videos(), st.sampled_from(NAMES), st.sampled_from(EDGES), st.sampled_from(["max", "mean"]))
def test_reversed_time_reverses_the_scores_of_every_similarity(
    features: NDArray, similarity: Similarity, edges: Edges, pool: Pool
) -> None:
    forward, backward = (
        make_scorer(rows, [1, 2, 4], similarity=similarity, edges=edges, pool=pool)
        for rows in (features, features[::-1])
    )
    n = len(features)
    np.testing.assert_allclose(
        backward.segment(0, n)[::-1], forward.segment(0, n), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("similarity", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("widths", [[2], [5], [2, 4, 8]])
def test_identical_frames_have_no_score_above_the_resolution(
    similarity: Similarity, dtype: Any, widths: list[int]
) -> None:
    frames = np.tile(np.random.default_rng(1).normal(size=300), (50, 1)).astype(dtype)
    scorer = make_scorer(frames, widths, similarity=similarity)
    assert scorer.segment(0, 50).max() <= scorer.resolution


def test_a_cut_between_identical_frames_ties_exactly_at_its_two_clips() -> None:
    frames = np.repeat(np.random.default_rng(2).normal(size=(2, 64)), 20, axis=0)
    for similarity in ("cosine", "l2"):
        scores = make_scorer(frames, [2, 4], similarity=similarity).segment(0, 40)
        assert scores[19] == scores[20] == scores.max()


def test_any_function_of_two_rows_is_a_similarity() -> None:
    rng = np.random.default_rng(3)
    features = rng.random(size=(70, 9))

    def overlap(one: NDArray, other: NDArray) -> NDArray:
        return np.minimum(one, other).sum(axis=1)

    matrix = np.minimum(features[:, None], features[None]).sum(axis=2)
    scores = make_scorer(features, [3], similarity=overlap).segment(0, 70)
    np.testing.assert_allclose(scores, literal_scores(matrix, 3, "box", "normalized"), atol=1e-12)


def test_a_matrix_counts_by_its_symmetric_part() -> None:
    matrix = np.random.default_rng(4).normal(size=(40, 40))
    scores = BandedScorer(band_of_matrix(matrix, 8), 4, "gaussian", "zero").segment(0, 40)
    wanted = literal_scores((matrix + matrix.T) / 2, 4, "gaussian", "zero")
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("edges", EDGES)
def test_scales_pool_to_their_largest_or_mean_score_per_unit_of_kernel(edges: Edges) -> None:
    features = np.random.default_rng(5).normal(size=(80, 12))
    units = {s: 1.0 if edges == "normalized" else s**2 for s in (2, 3, 8)}
    each = [boundary_scores(features, s, "box", edges) / unit for s, unit in units.items()]
    for pool, wanted in (("max", np.max(each, axis=0)), ("mean", np.mean(each, axis=0))):
        scorer = make_scorer(features, [8, 2, 3, 3], pool=pool, edges=edges)
        np.testing.assert_allclose(scorer.segment(0, 80), wanted, rtol=1e-12)
        assert scorer.half_width == 8


def test_several_scales_see_a_gradual_change_and_a_short_event() -> None:
    one, other = np.eye(2)
    ramp = np.linspace(0, 1, 11)[:, None]
    slow = np.concatenate([np.tile(one, (20, 1)), one + ramp * (other - one), [other] * 20])
    short = np.concatenate([np.tile(one, (20, 1)), [other] * 3, [one] * 20])
    for features, clip, blind in ((slow, 25, 2), (short, 20, 12)):
        pooled = make_scorer(features, [2, 12]).segment(0, len(features))
        alone = make_scorer(features, [blind]).segment(0, len(features))
        assert pooled[clip] > 2 * alone[clip]


@pytest.mark.parametrize("similarity", NAMES)
def test_a_clip_is_cut_off_from_the_side_that_it_is_less_similar_to(
    similarity: Similarity,
) -> None:
    features = np.concatenate([np.tile([1.0, 0.1], (9, 1)), np.tile([0.1, 1.0], (7, 1))])
    scorer = make_scorer(features, [1, 3], similarity=similarity)
    assert [scorer.edge(clip) for clip in (0, 8, 9, 15)] == [1, 9, 9, 15]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("widths", [[2], [8], [2, 4, 8]])
@pytest.mark.parametrize("similarity", NAMES)
def test_memory_grows_by_less_than_the_features(
    dtype: Any, widths: list[int], similarity: Similarity
) -> None:
    features = np.ones((12_000, 128), dtype)
    tracemalloc.start()
    try:
        make_scorer(features, widths, similarity=similarity).segment(0, len(features))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The specs allow 3·L·D·4 bytes; what grows is O(L·s), and blocks of a fixed size.
    assert peak < features.size * 4 + (1 << 23)


@pytest.mark.parametrize("similarity", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_clip_that_is_not_finite_is_named_for_every_similarity(
    similarity: Similarity, bad: float
) -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    features[17, 2] = bad
    with pytest.raises(ValueError, match="clip 17 are not finite"):
        make_scorer(features, [2, 4], similarity=similarity).segment(0, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_widths": []}, "at least one half width"),
        ({"half_widths": [0, 2]}, "at least one clip"),
        ({"pool": "median"}, "allowed: max, mean"),
        ({"similarity": "dot"}, "allowed: cosine, l2, sqeuclidean"),
        ({"similarity": np.ones((3, 3))}, r"must be \(6, 6\), got \(3, 3\)"),
        ({"taper": "hann"}, "allowed: box, gaussian"),
        ({"edges": "wrap", "half_widths": [1, 2]}, "allowed: zero, margin, normalized"),
        ({"features": np.ones(4)}, r"\(L, D\)"),
    ],
)
def test_wrong_options_of_a_scorer_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scorer(**{"features": np.ones((6, 2)), "half_widths": [1], **options})


def test_the_closed_form_of_squared_distances_refuses_the_ends_it_is_wrong_at() -> None:
    with pytest.raises(ValueError, match="allowed: margin, normalized"):
        SquaredDistanceScorer(np.ones((9, 2)), 2, "box", "zero")
    with pytest.raises(ValueError, match="needs a band of 5 diagonals, got 4"):
        BandedScorer(np.ones((4, 9)), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("similarity", NAMES)
@pytest.mark.parametrize("s", [3, 20])
def test_how_the_features_lie_in_memory_changes_no_bit(
    dtype: Any, similarity: Similarity, s: int
) -> None:
    features = np.random.default_rng(6).normal(size=(90, 37)).astype(dtype)
    wanted = make_scorer(features, [s], similarity=similarity).segment(0, 90)
    wide = np.concatenate([features, features], axis=1)
    frozen = features.copy()
    frozen.flags.writeable = False
    for same in (
        np.asfortranarray(features),
        features[::-1].copy()[::-1],
        wide[:, :37],
        np.repeat(features, 2, axis=1)[:, ::2],
        features.astype(features.dtype.newbyteorder()),
        frozen,
    ):
        found = make_scorer(same, [s], similarity=similarity).segment(0, 90)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("s", [3, 20])
@pytest.mark.parametrize("power", [-120, -70, 62, 120])
def test_rows_of_extreme_lengths_keep_their_bits_in_single_precision(s: int, power: int) -> None:
    features = np.random.default_rng(7).uniform(0.5, 1.5, size=(90, 37)).astype(np.float32)
    features *= np.random.default_rng(8).choice([-1, 1], size=features.shape)
    wanted = boundary_scores(features, s, edges="normalized")
    mixed = features.copy()
    mixed[::3] = np.ldexp(features[::3], power)
    for rows in (np.ldexp(features, power), mixed):
        np.testing.assert_array_equal(boundary_scores(rows, s, edges="normalized"), wanted)


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("similarity", NAMES)
def test_few_clips_have_the_bits_of_many(similarity: Similarity, edges: Edges) -> None:
    # few clips of a band are looked up in another way than many
    features = np.random.default_rng(9).normal(size=(400, 5))
    features[100:140] = features[99]
    scorer = make_scorer(features, [7], similarity=similarity, taper="gaussian", edges=edges)
    whole = scorer.segment(0, 400)
    each = [scorer.part(clip, clip + 1, 0, 400) for clip in range(400)]
    assert np.concatenate(each).tobytes() == whole.tobytes()
