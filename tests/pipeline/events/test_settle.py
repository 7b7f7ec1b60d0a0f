from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.events.parser import parse
from pipeline.events.scatter import Scatter
from pipeline.events.settle import settled, split_order


def film(lengths: list[int], noise: float, seed: int = 0, dim: int = 16) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    means = np.repeat(rng.normal(size=(len(lengths), dim)), lengths, axis=0)
    return means + noise * rng.normal(size=means.shape)


def edges(*clips: int) -> NDArray[np.int64]:
    return np.array(clips, np.int64)


def test_misplaced_cuts_move_superfluous_ones_go_and_missing_ones_come() -> None:
    scatter = Scatter(film([12, 9, 15, 8], 0.2))
    for begun in (edges(10, 23, 34), edges(4, 12, 16, 21, 30, 36, 40), edges(21), edges()):
        assert settled(scatter, begun, 2, 1.0).tolist() == [12, 21, 36]


def test_right_cuts_of_a_noiseless_film_stay_though_they_save_all_there_is() -> None:
    scatter = Scatter(film([5, 7, 6], 0.0))
    assert settled(scatter, edges(5, 12), 1, 1.0).tolist() == [5, 12]


def test_a_film_of_one_picture_has_no_cut_at_any_price() -> None:
    same = Scatter(np.ones((30, 4)))
    assert settled(same, edges(10, 20), 1, 1e-3).tolist() == []


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_price_that_means_nothing_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match="settle must be finite and above 0"):
        settled(Scatter(np.eye(4)), edges(2), 1, penalty)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6),
    noise=st.sampled_from([0.1, 0.6, 1.5]),
    penalty=st.sampled_from([0.3, 1.0, 2.0]),
    min_len=st.integers(1, 4),
    seed=st.integers(0, 500),
)
def test_cuts_are_the_same_backwards_and_their_scatter_is_the_literal_one(
    lengths: list[int], noise: float, penalty: float, min_len: int, seed: int
) -> None:
    features = film(lengths, noise, seed)
    scatter, n = Scatter(features), len(features)
    found = settled(scatter, edges(*range(1, n, 3)), min_len, penalty)
    ends = [0, *found.tolist(), n]
    assert ends == sorted(set(ends))
    assert scatter.within(np.array(ends)) == pytest.approx(literal_scatter(features, ends))
    backwards = settled(
        Scatter(features[::-1]), edges(*(n - each for each in reversed(range(1, n, 3)))), min_len,
        penalty,
    )  # fmt: skip
    assert [n - each for each in reversed(backwards.tolist())] == found.tolist()


def literal_scatter(features: NDArray[np.float64], ends: list[int]) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    parts = [unit[lo:hi] for lo, hi in itertools.pairwise(ends)]
    return float(sum(np.square(part - part.mean(axis=0)).sum() for part in parts))


def test_the_tree_has_the_cut_that_saves_most_at_its_root() -> None:
    features = np.repeat([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1], [0, 0.1, 1]], 10, axis=0)
    tree = split_order(Scatter(features), edges(10, 20, 30), None, None)
    assert (tree[0].edge, tree[0].depth, tree[0].parent) == (20, 0, None)
    assert {(each.edge, each.depth, each.parent) for each in tree[1:]} == {(10, 1, 20), (30, 1, 20)}
    assert [each.edge for each in split_order(Scatter(features), edges(10, 20, 30), 1, None)] == [
        20
    ]
    assert [each.edge for each in split_order(Scatter(features), edges(10, 20, 30), None, 1)] == [
        20
    ]


def test_settled_events_partition_the_video_and_do_not_depend_on_the_scale_of_features() -> None:
    features = film([20, 14, 30, 9, 27], 0.8, seed=3)
    how: dict[str, Any] = {"delta_rel": 0.1, "min_len_s": 2.0, "settle": 1.0}
    found = parse(features, 1.0, 100.2, **how)
    assert found.boundaries_s.tolist() == [20.0, 34.0, 64.0, 73.0]
    assert (found.spans_s[0, 0], found.spans_s[-1, 1]) == (0, 100.2)
    assert (found.spans_s[1:, 0] == found.spans_s[:-1, 1]).all()
    assert (found.boundary_parent == -1).sum() == 1
    scaled = parse(1024 * features, 1.0, 100.2, **how)
    assert scaled.boundaries_s.tolist() == found.boundaries_s.tolist()
    two = parse(features, 1.0, 100.2, max_events=2, **how)
    assert len(two.spans_s) == 2


def test_only_the_recursion_settles() -> None:
    with pytest.raises(ValueError, match=r"settle means nothing to method 'oneshot'.*rtp"):
        parse(film([5, 5], 0.1), 1.0, 10.0, method="oneshot", settle=1.0)


def test_settling_compares_cosines_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="settle compares clips by their cosine"):
        parse(film([5, 5], 0.1), 1.0, 10.0, similarity="l2", settle=1.0)
