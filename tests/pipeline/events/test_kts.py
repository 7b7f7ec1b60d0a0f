from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.events.kts import kts_edges


def scenes(lengths: list[int], noise: float, seed: int, dim: int = 12) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    means = np.repeat(rng.normal(size=(len(lengths), dim)), lengths, axis=0)
    return means + noise * rng.normal(size=means.shape)


def scatter(unit: NDArray[np.float64], edges: tuple[int, ...]) -> float:
    """The paper's objective from the kernel matrix, segment by segment."""
    total = 0.0
    for lo, hi in itertools.pairwise((0, *edges, len(unit))):
        kernel = unit[lo:hi] @ unit[lo:hi].T
        total += float(np.trace(kernel) - kernel.sum() / (hi - lo))
    return total


def objective(features: NDArray[np.float64], edges: tuple[int, ...], penalty: float) -> float:
    n, m = len(features), len(edges)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    price = penalty * m / (2 * n) * (math.log(n / m) + 1) if m else 0.0
    return scatter(unit, edges) / n + price


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    noise=st.sampled_from([0.1, 0.5, 2.0]),
    min_len=st.integers(1, 4),
    penalty=st.sampled_from([0.1, 0.5, 1.0]),
    max_cuts=st.none() | st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_no_other_segmentation_is_better(
    lengths: list[int],
    noise: float,
    min_len: int,
    penalty: float,
    max_cuts: int | None,
    seed: int,
) -> None:
    features = scenes(lengths, noise, seed)
    n = len(features)
    found = tuple(edge for edge, _ in kts_edges(features, min_len, penalty, max_cuts))
    allowed = [
        edges
        for m in range(n if max_cuts is None else min(n, max_cuts + 1))
        for edges in itertools.combinations(range(1, n), m)
        if m == 0 or all(hi - lo >= min_len for lo, hi in itertools.pairwise((0, *edges, n)))
    ]
    assert found in allowed
    best = min(objective(features, edges, penalty) for edges in allowed)
    assert objective(features, found, penalty) == pytest.approx(best, abs=1e-9)


def test_the_gain_of_a_cut_is_the_scatter_that_it_saves() -> None:
    features = scenes([20, 15, 30, 25], 0.5, 0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = kts_edges(features)
    edges = [edge for edge, _ in found]
    assert edges == [20, 35, 65]
    for i, (_, gain) in enumerate(found):
        without = (*edges[:i], *edges[i + 1 :])
        saved = scatter(unit, without) - scatter(unit, tuple(edges))
        assert gain == pytest.approx(saved, abs=1e-9)


def test_a_long_video_is_segmented_in_blocks_with_the_same_cuts() -> None:
    lengths = [130, 87, 211, 64, 158, 93]
    features = scenes(lengths, 0.5, 4)
    exact = kts_edges(features, min_len=5)
    assert [edge for edge, _ in exact] == np.cumsum(lengths)[:-1].tolist()
    in_blocks = kts_edges(features, min_len=5, exact_clips=80)
    assert [edge for edge, _ in in_blocks] == [edge for edge, _ in exact]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.integers(1, 30), st.integers(2, 40), st.integers(0, 99))
def test_segments_are_never_too_short_in_blocks_either(
    n: int, min_len: int, exact_clips: int, seed: int
) -> None:
    features = np.random.default_rng(seed).normal(size=(n, 3))
    edges = [e for e, _ in kts_edges(features, min_len, 0.05, exact_clips=exact_clips)]
    assert all(hi - lo >= min_len for lo, hi in itertools.pairwise([0, *edges, n])) or not edges


def test_identical_frames_and_rows_of_zeros_are_one_segment() -> None:
    assert kts_edges(np.ones((40, 8))) == []
    assert kts_edges(np.zeros((40, 8))) == []
    assert kts_edges(np.ones((1, 8))) == []


@pytest.mark.parametrize("penalty", [0.0, -1.0, math.nan, math.inf])
def test_a_penalty_that_is_none_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match="penalty must be finite and above 0"):
        kts_edges(np.ones((4, 2)), penalty=penalty)
