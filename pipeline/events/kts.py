"""Kernel temporal segmentation: the segments with the least scatter, and how many of them.

Potapov et al., Category-Specific Video Summarization, ECCV 2014, with the linear kernel of unit
features: minimise `scatter / N + penalty · m / 2N · (log(N / m) + 1)` over all ways to place m
boundaries, for every m, by dynamic programming. As in the authors' code, except that the kernel
matrix is not needed (sums of features give the scatter of a segment), and that no m is looked at
that a lower bound shows to be worse than the best: the result is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events.scatter import Scatter

__all__ = ["KTS_EXACT_CLIPS", "kts_edges"]

Floats = NDArray[np.float64]

KTS_EXACT_CLIPS = 2048
"""Longest video that is segmented exactly: the tables of a longer one would be over 32 MiB."""

_BLOCK = 256  # rows of the table of scatters that are looked at together
_ROUNDING = 1e-13  # of a scatter, per point


def kts_edges(
    features: NDArray[Any],
    min_len: int = 1,
    penalty: float = 1.0,
    max_cuts: int | None = None,
    exact_clips: int = KTS_EXACT_CLIPS,
) -> list[tuple[int, float]]:
    """Clip edges to cut at, ascending, each with the scatter that it saves between its neighbours.

    Of equally good edges the earliest is taken. Time O(m·L²), memory O(L²) up to `exact_clips`;
    a longer video is first cut at the edges of equal blocks of clips (exactly: scatters are those
    of all clips), then every cut is moved to the best edge within a block of it.

    Args:
        features: shape (L, D), any float type; a row of zeros is similar to nothing.
        min_len: clips of the shortest segment.
        penalty: weight of the number of boundaries.
        max_cuts: at most so many; None is no limit.
        exact_clips: clips, or blocks, of the dynamic programming.

    Raises:
        ValueError: a value that is not finite, or a penalty that is not above zero.
    """
    if not (math.isfinite(penalty) and penalty > 0):
        raise ValueError(f"penalty must be finite and above 0, got {penalty}")
    scatter = Scatter(features)
    n = len(features)
    block = -(-n // exact_clips)
    points = np.append(np.arange(0, n, block), n)
    edges = [int(points[i]) for i in _best_cuts(scatter, points, min_len, penalty, max_cuts)]
    if block > 1:
        edges = _moved(scatter, edges, block, min_len)
    ends = [0, *edges, n]
    return [
        (edge, float(scatter.gains(ends[i], np.array([edge]), ends[i + 2])[0]))
        for i, edge in enumerate(edges)
    ]


def _best_cuts(
    scatter: Scatter,
    points: NDArray[np.int64],
    min_len: int,
    penalty: float,
    max_cuts: int | None,
) -> list[int]:
    """Indices into `points` of the best cuts, for the best number of them."""
    n = int(points[-1])
    most = min(len(points) - 2, n // max(min_len, 1) - 1)
    if max_cuts is not None:
        most = min(most, max_cuts)
    if most < 1:
        return []

    def price(cuts: int) -> float:
        return penalty * cuts / (2 * n) * (math.log(n / cuts) + 1)

    table = scatter.table(points, min_len)
    costs = table[:, 0].copy()  # least scatter of the clips before each point, without a cut
    costs[0] = np.inf
    best, best_total = 0, float(costs[-1]) / n
    froms: list[NDArray[np.int32]] = []
    for cuts in range(1, most + 1):
        if cuts & (cuts - 1) == 0 and _least_total(table, n, price, cuts, most) >= best_total:
            break  # asked at powers of two: the answer costs as much as a few steps
        costs, last = _one_more(table, costs)
        froms.append(last)
        total = float(costs[-1]) / n + price(cuts)
        if total < best_total:
            best, best_total = cuts, total
    return _path(froms[:best])


def _least_total(
    table: Floats, n: int, price: Callable[[int], float], fewest: int, most: int
) -> float:
    """A total that no number of cuts from `fewest` to `most` comes below.

    With a fixed price `p` per cut the best segmentation into any number of segments costs `g`, so
    m cuts leave a scatter of at least `g - p·m`. With the concave price added, this bound is
    least at one of the ends.
    """
    each = n * (price(most) - price(fewest)) / max(most - fewest, 1)
    costs = np.full(len(table), np.inf)
    costs[0] = -each
    for point in range(1, len(table)):
        costs[point] = (table[point, :point] + costs[:point]).min() + each
    return min((float(costs[-1]) - each * m) / n + price(m) for m in (fewest, most))


def _one_more(table: Floats, costs: Floats) -> tuple[Floats, NDArray[np.int32]]:
    """Least scatter before each point with one cut more, and the index of that last cut: the
    first one that is as good but for rounding."""
    slack = _ROUNDING * len(costs)
    more = np.empty_like(costs)
    last = np.empty(len(costs), np.int32)
    for start in range(0, len(costs), _BLOCK):
        stop = min(start + _BLOCK, len(costs))
        totals = table[start:stop, :stop] + costs[:stop]
        least = totals.min(axis=1)
        last[start:stop] = (totals <= least[:, None] + slack).argmax(axis=1)
        more[start:stop] = least
    return more, last


def _path(froms: list[NDArray[np.int32]]) -> list[int]:
    """The cuts of the whole video, ascending."""
    cuts, at = [], -1
    for last in reversed(froms):
        at = int(last[at])
        cuts.append(at)
    return cuts[::-1]


def _moved(scatter: Scatter, edges: list[int], block: int, min_len: int) -> list[int]:
    """Each cut at the best edge within a block of where it is, from left to right."""
    ends = [0, *edges, scatter.n]
    shortest = max(min_len, 1)
    for i in range(1, len(ends) - 1):
        first = max(ends[i] - block + 1, ends[i - 1] + shortest)
        stop = min(ends[i] + block, ends[i + 1] - shortest + 1)
        near = np.arange(first, stop)
        ends[i] = int(near[scatter.gains(ends[i - 1], near, ends[i + 1]).argmax()])
    return ends[1:-1]
