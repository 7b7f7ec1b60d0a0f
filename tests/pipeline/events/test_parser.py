from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.events.options import READS
from pipeline.events.parser import METHODS, combine, parse
from pipeline.events.recursion import recursive_nodes, relative_threshold
from pipeline.events.scores import BoundaryScorer


def scenes(lengths: list[int], dim: int = 16, noise: float = 0.0, seed: int = 0) -> NDArray:
    rng = np.random.default_rng(seed)
    means = np.repeat(rng.normal(size=(len(lengths), dim)), lengths, axis=0)
    return (means + noise * rng.normal(size=means.shape)).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    noise=st.sampled_from([0.0, 0.5, 3.0]),
    clip_len_s=st.sampled_from([0.5, 1.0, 2.0, 1 / 3]),
    stretch=st.floats(-0.49, 0.49),
    method=st.sampled_from(sorted(METHODS)),
    edges=st.sampled_from(["zero", "margin", "normalized"]),
    delta_rel=st.sampled_from([0.0, 0.4]),
    half_width_s=st.floats(0.1, 6),
    max_events=st.none() | st.integers(1, 4),
)
def test_spans_partition_the_video_and_fit_the_boundaries(
    lengths: list[int],
    noise: float,
    clip_len_s: float,
    stretch: float,
    method: Any,
    edges: Any,
    delta_rel: float,
    half_width_s: float,
    max_events: int | None,
) -> None:
    features = scenes(lengths, noise=noise)
    duration_s = (len(features) + stretch) * clip_len_s
    options = {
        "edges": edges,
        "delta_rel": delta_rel,
        "half_width_s": half_width_s,
        "max_events": max_events,
        "min_len_s": 0.0,
    }
    read = {name: value for name, value in options.items() if name in READS[method]}
    events = parse(features, clip_len_s, duration_s, method=method, **read)
    assert events.spans_s[0, 0] == 0.0
    assert events.spans_s[-1, 1] == duration_s
    np.testing.assert_array_equal(events.spans_s[1:, 0], events.spans_s[:-1, 1])
    np.testing.assert_array_equal(events.spans_s[1:, 0], events.boundaries_s)
    assert (events.spans_s[:, 1] > events.spans_s[:, 0]).all()
    assert len(events.scores) == len(features)
    assert (events.strength >= 0).all()
    if max_events is not None:
        assert len(events.spans_s) <= max_events
    for index, parent in enumerate(events.boundary_parent):
        above = -1 if parent < 0 else events.boundary_depth[parent]
        assert events.boundary_depth[index] > above
    assert len(events.depth) == len(events.spans_s)
    assert (events.depth >= 0).all()


@pytest.mark.parametrize("edges", ["margin", "normalized"])
def test_clean_cuts_are_found_at_the_edge_between_the_clips(edges: Any) -> None:
    events = parse(scenes([10, 7, 12, 9]), 2.0, 76.0, edges=edges, half_width_s=6.0, delta_rel=0.2)
    assert events.boundaries_s.tolist() == [20.0, 34.0, 58.0]


def test_the_incremental_recursion_equals_scoring_every_segment_anew() -> None:
    def literal(lo: int, hi: int) -> list[int]:
        if hi - lo < 5:
            return []
        scores = BoundaryScorer(features[lo:hi], 3, "box", edges).segment(0, hi - lo)
        if scores.max() - scores.mean() <= max(threshold, 1e-9):
            return []
        clip = lo + int(scores.argmax())
        left = literal(lo, clip)
        return [*left, clip, *literal(clip + 1, hi)]

    for seed, edges in enumerate(["zero", "margin", "normalized"] * 4):
        features = scenes([30, 22, 41, 17, 35], noise=1.0, seed=seed)
        scorer = BoundaryScorer(features, 3, "box", edges)
        scores = scorer.segment(0, len(features))
        threshold = relative_threshold(scores, 0.3)
        nodes = recursive_nodes(scorer, scores, 5, threshold)
        assert sorted(n.clip for n in nodes) == literal(0, len(features))


def test_max_events_keeps_the_strongest_and_max_depth_the_first_splits() -> None:
    # left of the clearest cut is a faint one (45 degrees), right of it a clear one
    directions = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    features = np.repeat(directions, [4, 8, 8, 4], axis=0)
    how = {"half_width_s": 8.0, "delta_rel": 0.05, "min_len_s": 2.0}
    everything = parse(features, 1.0, 24.0, **how)
    assert everything.boundaries_s.tolist() == [4.0, 12.0, 20.0]
    assert everything.boundary_depth.tolist() == [1, 0, 1]
    assert parse(features, 1.0, 24.0, **how, max_events=3).boundaries_s.tolist() == [12.0, 20.0]
    assert parse(features, 1.0, 24.0, **how, max_depth=1).boundaries_s.tolist() == [12.0]


def test_an_event_is_as_deep_as_the_splits_that_led_to_it() -> None:
    # orthogonal scenes; the middle cut compares the longest sides and is made first
    features = np.repeat(np.eye(4), [2, 5, 5, 2], axis=0)
    events = parse(features, 1.0, 14.0, half_width_s=5.0, delta_rel=0.1, min_len_s=2.0)
    assert events.boundaries_s.tolist() == [2.0, 7.0, 12.0]
    assert events.boundary_depth.tolist() == [1, 0, 1]
    assert events.boundary_parent.tolist() == [1, -1, 1]
    assert events.depth.tolist() == [2, 2, 2, 2]
    coarse = parse(features, 1.0, 14.0, half_width_s=5.0, delta_rel=0.1, max_events=3)
    assert coarse.depth.tolist() == [2, 2, 1]


def test_identical_frames_are_one_event_for_every_content_method() -> None:
    for method in ("rtp", "oneshot", "eatr-compat", "kts"):
        events = parse(np.ones((30, 8)), 1.0, 30.4, method=method)
        assert events.spans_s.tolist() == [[0.0, 30.4]]
        assert events.depth.tolist() == [0]


@pytest.mark.parametrize("method", ["rtp", "oneshot", "eatr-compat", "kts"])
def test_the_scale_of_the_features_changes_nothing(method: Any) -> None:
    features = scenes([14, 9, 21, 11], noise=0.7, seed=3)
    plain = parse(features, 1.0, 55.0, method=method)
    assert len(plain.boundaries_s) >= 2
    scaled = parse(features * 2.0**-9, 1.0, 55.0, method=method)
    for name in ("boundaries_s", "strength", "spans_s", "scores"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(plain, name))


@pytest.mark.parametrize("method", ["rtp", "oneshot", "kts"])
def test_a_video_that_runs_backwards_has_the_same_cuts_backwards(method: Any) -> None:
    # no ties here: of equal scores the earliest wins, whichever way a video runs
    features = scenes([14, 9, 21, 11], noise=0.7, seed=3).astype(np.float64)
    forwards = parse(features, 1.0, 55.0, method=method).boundaries_s
    backwards = parse(features[::-1], 1.0, 55.0, method=method).boundaries_s
    np.testing.assert_array_equal(np.sort(55.0 - backwards), forwards)


def test_every_content_method_names_the_clip_that_is_not_finite() -> None:
    features = np.ones((9, 4))
    features[6, 2] = np.nan
    for method in METHODS:
        with pytest.raises(ValueError, match="clip 6 are not finite"):
            parse(features, 1.0, 9.0, method=method)  # type: ignore[arg-type]  # a name of METHODS


def test_eatr_compat_finds_more_in_a_padded_video_and_keeps_the_strongest_if_asked() -> None:
    features = scenes([12] * 4, noise=1.0, seed=1)
    alone, padded = (
        parse(features, 1.0, 48.0, method="eatr-compat", padded_len=length)
        for length in (None, 200)
    )
    assert set(alone.boundaries_s) < set(padded.boundaries_s)
    few = parse(features, 1.0, 48.0, method="eatr-compat", padded_len=200, max_events=3)
    strongest = np.sort(padded.boundaries_s[np.argsort(-padded.strength)[:2]])
    np.testing.assert_array_equal(few.boundaries_s, strongest)


@pytest.mark.parametrize("method", ["rtp", "oneshot"])
def test_a_matrix_of_cosines_gives_the_events_of_its_features(method: Any) -> None:
    features = scenes([14, 9, 21, 11], noise=0.7, seed=3).astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    by_features = parse(features, 1.0, 55.0, method=method)
    by_matrix = parse(features, 1.0, 55.0, method=method, similarity=unit @ unit.T)
    assert len(by_features.boundaries_s) >= 2
    np.testing.assert_array_equal(by_matrix.boundaries_s, by_features.boundaries_s)
    np.testing.assert_allclose(by_matrix.scores, by_features.scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "l2", "sqeuclidean"])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_several_scales_find_clean_cuts_of_short_and_long_scenes(
    similarity: Any, pool: Any
) -> None:
    events = parse(
        scenes([30, 5, 28, 6, 33]),
        1.0,
        102.0,
        scales=[2.0, 4.0, 8.0],
        pool=pool,
        similarity=similarity,
        delta_rel=0.2,
    )
    assert events.boundaries_s.tolist() == [30.0, 35.0, 63.0, 69.0]


def test_uniform_makes_the_number_of_spans_it_is_asked_for() -> None:
    events = parse(np.ones((8, 2)), 1.0, 8.0, method="uniform", max_events=4)
    assert events.boundaries_s.tolist() == [2.0, 4.0, 6.0]


def test_a_combination_of_streams_has_the_weighted_mean_of_their_cosines() -> None:
    a, b = scenes([5], noise=1.0, seed=1), 100 * scenes([5], dim=3, noise=1.0, seed=2)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    both = combine([(a, 3.0), (b, 1.0)])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    expected = (3 * unit[0] @ unit[0].T + unit[1] @ unit[1].T) / 4
    np.testing.assert_allclose(both @ both.T, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "kmeans"}, "allowed: rtp, oneshot, eatr-compat, kts, uniform"),
        ({"max_events": 0}, "at least 1"),
        ({"method": "kts", "max_depth": 2}, "max_depth means nothing to method 'kts'.*take rtp$"),
        ({"method": "oneshot", "max_depth": 2}, "max_depth means nothing to method 'oneshot'"),
        ({"method": "kts", "similarity": "l2"}, "take rtp or oneshot or uniform$"),
        ({"method": "eatr-compat", "scales": [2.0]}, "take rtp or oneshot or kts or uniform"),
        ({"penalty": 2.0}, r"leave it out \(as is 1.0, its default\), or take kts$"),
        ({"padded_len": 75}, r"leave it out \(as is None, its default\), or take eatr-compat$"),
        ({"method": "kts", "delta_rel": 0.3}, "delta_rel means nothing to method 'kts'.*take rtp$"),
        ({"method": "oneshot", "min_len_s": 2.0}, "min_len_s means nothing.*take rtp or kts$"),
        ({"method": "uniform", "delta_rel": 0.3}, "delta_rel means nothing to method 'uniform'"),
        ({"method": "eatr-compat", "half_width_s": 2.0}, "half_width_s means nothing"),
        ({"method": "eatr-compat", "taper": "gaussian"}, "taper means nothing"),
        ({"method": "eatr-compat", "edges": "margin"}, "edges means nothing"),
        ({"pool": "mean"}, "pool 'mean' means nothing without scales"),
        ({"half_width_s": 2.0, "scales": [2.0, 3.0]}, "half_width_s means nothing where scales"),
        ({"half_width_s": -3.0}, "half_width_s must be finite and above 0 seconds, got -3.0"),
        ({"half_width_s": np.inf}, "half_width_s must be finite"),
        ({"half_width_s": np.nan}, "half_width_s must be finite"),
        ({"scales": [2.0, np.nan]}, "scales must be finite and above 0 seconds, got nan"),
        ({"scales": [0.0, 2.0]}, "scales must be finite and above 0 seconds, got 0.0"),
        ({"min_len_s": -1.0}, "min_len_s must be finite and 0 or more, got -1.0"),
        ({"min_len_s": np.inf}, "min_len_s must be finite"),
        ({"delta_rel": np.nan}, r"delta_rel must be in \[0, 1\], got nan"),
        ({"delta_rel": -0.1}, r"delta_rel must be in \[0, 1\], got -0.1"),
        ({"max_depth": -1}, "max_depth must be at least 0, a whole number, got -1"),
        ({"max_depth": 1.5}, "max_depth must be at least 0, a whole number, got 1.5"),
        ({"max_events": 2.5}, "max_events must be at least 1, a whole number, got 2.5"),
        ({"method": "eatr-compat", "padded_len": 9}, "at least the video's 10 clips, got 9"),
        ({"method": "kts", "penalty": 0.0}, "above 0"),
        ({"scales": []}, "at least one half width"),
        ({"duration_s": 20.0}, "10 rows of features for a grid of 20 clips"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(np.ones((10, 4)), **{"clip_len_s": 1.0, "duration_s": 10.0, **options})


CONTENT_METHODS = ["rtp", "oneshot", "kts"]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 20), min_size=1, max_size=8),
    noise=st.sampled_from([0.2, 0.7, 2.0]),
    seed=st.integers(0, 2**32 - 1),
    options=st.sampled_from(
        [
            {"method": "rtp"},
            {"method": "rtp", "delta_rel": 0.1, "min_len_s": 2.0, "half_width_s": 2.0},
            {"method": "rtp", "edges": "margin", "taper": "gaussian", "max_events": 4},
            {"method": "rtp", "half_width_s": 15.0, "max_depth": 2},  # the closed form
            {"method": "rtp", "scales": [2.0, 4.0, 8.0], "pool": "mean"},
            {"method": "rtp", "similarity": "l2"},
            {"method": "rtp", "similarity": "sqeuclidean", "delta_rel": 0.2},
            {"method": "oneshot", "max_events": 5},
            {"method": "kts", "penalty": 0.5},
            {"method": "uniform", "max_events": 5},
        ]
    ),
)
def test_backwards_a_video_without_ties_has_the_same_events_scores_and_tree(
    lengths: list[int], noise: float, seed: int, options: dict[str, Any]
) -> None:
    features = scenes(lengths, noise=noise, seed=seed).astype(np.float64)
    n = float(len(features))
    forwards = parse(features, 1.0, n, **options)
    backwards = parse(features[::-1], 1.0, n, **options)
    np.testing.assert_allclose(np.flip(n - backwards.spans_s), forwards.spans_s, atol=1e-9)
    np.testing.assert_array_equal(backwards.depth[::-1], forwards.depth)
    np.testing.assert_array_equal(backwards.boundary_depth[::-1], forwards.boundary_depth)
    np.testing.assert_allclose(backwards.strength[::-1], forwards.strength, atol=1e-9)
    np.testing.assert_allclose(backwards.scores[::-1], forwards.scores, atol=1e-9)
    parents = backwards.boundary_parent[::-1]
    mirrored = np.where(parents < 0, -1, len(parents) - 1 - parents)
    np.testing.assert_array_equal(mirrored, forwards.boundary_parent)


@pytest.mark.parametrize("method", CONTENT_METHODS)
def test_of_equal_cuts_the_earliest_wins_whichever_way_the_video_runs(method: Any) -> None:
    features = np.repeat(np.eye(4), 10, axis=0)  # read backwards, the same but for its axes
    for rows in (features, features[::-1]):
        one = parse(rows, 1.0, 40.0, method=method, half_width_s=3.0, max_events=2)
        assert one.boundaries_s.tolist() == [10.0]
        every = parse(rows, 1.0, 40.0, method=method, half_width_s=3.0)
        assert every.boundaries_s.tolist() == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("half_width_s", [3.0, 13.0])  # the band and the closed form
@pytest.mark.parametrize("method", ["rtp", "oneshot"])
def test_a_clip_that_is_like_both_sides_starts_the_new_event_whichever_way_the_video_runs(
    method: Any, half_width_s: float
) -> None:
    features = np.concatenate(
        [np.tile([1.0, 0.0], (15, 1)), [[0, 0]], np.tile([0.0, 1.0], (14, 1))]
    )
    how = {"method": method, "half_width_s": half_width_s}
    assert parse(features, 1.0, 30.0, **how).boundaries_s.tolist() == [15.0]
    assert parse(features[::-1], 1.0, 30.0, **how).boundaries_s.tolist() == [14.0]


def test_the_two_clips_of_a_clean_cut_count_as_one_event_of_the_strongest() -> None:
    features = np.repeat(np.eye(4), 10, axis=0)
    for events in (2, 3, 4):
        found = parse(features, 1.0, 40.0, method="oneshot", half_width_s=3.0, max_events=events)
        assert len(found.spans_s) == events


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [-900, 900])
def test_features_of_any_magnitude_have_the_same_events(method: Any, power: int) -> None:
    features = scenes([14, 9, 21, 11], noise=0.7, seed=3).astype(np.float64)
    plain, scaled = (
        parse(rows, 1.0, 55.0, method=method) for rows in (features, features * 2.0**power)
    )
    np.testing.assert_array_equal(scaled.boundaries_s, plain.boundaries_s)
    np.testing.assert_array_equal(scaled.scores, plain.scores)


@pytest.mark.parametrize("options", [{}, {"similarity": "l2"}, {"similarity": "sqeuclidean"}])
def test_a_half_width_beyond_the_video_takes_no_more_than_the_video(
    options: dict[str, Any],
) -> None:
    features = scenes([14, 9, 21, 11], noise=0.1).astype(np.float64)
    tracemalloc.start()
    try:
        wide = parse(features, 1.0, 55.0, half_width_s=20_000.0, delta_rel=0.1, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(wide.boundaries_s)
    assert peak < 4_000_000
    as_long = parse(features, 1.0, 55.0, half_width_s=54.0, delta_rel=0.1, **options)
    np.testing.assert_array_equal(wide.boundaries_s, as_long.boundaries_s)
    np.testing.assert_allclose(wide.scores * 20_000 / 54, as_long.scores, rtol=1e-9)


@pytest.mark.parametrize(
    "options", [{"method": each} for each in METHODS] + [{"scales": [2.0, 4.0, 8.0]}]
)
def test_parsing_takes_less_than_three_times_the_features(options: dict[str, Any]) -> None:
    lengths = np.random.default_rng(1).integers(20, 80, 240).tolist()
    features = scenes(lengths, dim=512, noise=0.3)
    tracemalloc.start()
    try:
        parse(features, 1.0, float(len(features)), **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tables = 90 << 20 if options.get("method") == "kts" else 0  # whatever the length
    assert peak < 3 * features.nbytes + tables


@pytest.mark.parametrize("kind", [np.complex128, object, "U4"])
def test_what_is_no_real_number_is_refused(kind: Any) -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match="features must be real numbers, got"):
            parse(np.ones((9, 4)).astype(kind), 1.0, 9.0, method=method)  # type: ignore[arg-type]  # a name of METHODS
