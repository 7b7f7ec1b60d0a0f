"""Cuts of a recursion set right together, by what they do to the scatter inside the segments.

The recursion takes one cut after the other from scores that see one half width, and never goes
back on one. Here every cut moves to where it leaves the least scatter between its neighbours, cuts
that save less than a price go, and segments that a cut of at least that price would split get one,
until nothing changes: a local search for what KernelCPD (Arlot, Celisse, Harchaoui, 2019) finds
exactly in the square of the length; a round takes time in proportion to the length. Ours, not
UBoCo's. It holds sums of all clips in double precision: about 4·L·D·4 bytes.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.events.scatter import Scatter

__all__ = ["Split", "settled", "split_order"]

Edges = NDArray[np.int64]

_ROUNDS = 20
"""Rounds after which the search ends in any case; it ends by itself after two to six."""

_LEAST = 1e-12
"""Scatter per clip below which all clips of a video are the same but for rounding."""


def settled(scatter: Scatter, edges: Edges, min_len: int, penalty: float) -> Edges:
    """Clip edges to cut at, ascending, from those of a recursion.

    A cut must save `penalty · σ² · log L`, σ² being the scatter per clip inside the segments as
    they are: scale-free, and the form of a Bayesian information criterion.

    Args:
        scatter: of the video.
        edges: ascending, inside `(0, L)`, shape (K,).
        min_len: clips of the shortest segment that a move or a new cut may make.
        penalty: more gives fewer cuts, > 0.
    """
    if not (math.isfinite(penalty) and penalty > 0):
        raise ValueError(f"settle must be finite and above 0, got {penalty}")
    ends = np.concatenate([[0], np.asarray(edges, np.int64), [scatter.n]])
    best, least = ends, math.inf
    for _ in range(_ROUNDS):
        ends = _moved(scatter, ends, min_len)
        price = _price(scatter, ends, penalty)
        ends = _thinned(scatter, ends, price)
        ends = _filled(scatter, ends, min_len, price)
        total = scatter.within(ends) + price * len(ends)
        if total >= least:
            break
        best, least = ends, total
    return best[1:-1]


def _price(scatter: Scatter, ends: Edges, penalty: float) -> float:
    per_clip = scatter.within(ends) / max(scatter.n - len(ends) + 1, 1)
    return penalty * max(per_clip, _LEAST) * math.log(max(scatter.n, 2))


def _moved(scatter: Scatter, ends: Edges, min_len: int) -> Edges:
    """Every cut at its best place, at most half way to its neighbours: all may move at once."""
    moved = ends.copy()
    for i in range(1, len(ends) - 1):
        left = max((ends[i] - ends[i - 1] - min_len) // 2, 0)
        right = max((ends[i + 1] - ends[i] - min_len) // 2, 0)
        near = np.arange(ends[i] - left, ends[i] + right + 1)
        moved[i] = near[scatter.gains(int(ends[i - 1]), near, int(ends[i + 1])).argmax()]
    return moved


def _thinned(scatter: Scatter, ends: Edges, price: float) -> Edges:
    """Without the cuts that do not pay; of neighbours that do not, the worse goes first."""
    while len(ends) > 2:
        saved = scatter.saved(ends[:-2], ends[1:-1], ends[2:])
        around = np.concatenate([[math.inf], saved, [math.inf]])
        worst = (saved < price) & (saved < around[:-2]) & (saved <= around[2:])
        if not worst.any():
            break
        ends = np.delete(ends, np.flatnonzero(worst) + 1)
    return ends


def _filled(scatter: Scatter, ends: Edges, min_len: int, price: float) -> Edges:
    """With the best cut of every segment that has one that pays."""
    found = []
    for lo, hi in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        cuts = np.arange(lo + min_len, hi - min_len + 1)
        if len(cuts):
            gains = scatter.gains(lo, cuts, hi)
            best = int(gains.argmax())
            if gains[best] >= price:
                found.append(int(cuts[best]))
    return np.sort(np.concatenate([ends, np.array(found, np.int64)]))


@dataclass(frozen=True)
class Split:
    """A cut in its place in the tree: `parent` is the edge of another cut, None at the root."""

    edge: int
    saved: float
    depth: int
    parent: int | None


def split_order(
    scatter: Scatter, edges: Edges, max_cuts: int | None, max_depth: int | None
) -> list[Split]:
    """The tree of given cuts: of a segment's cuts the one that saves most scatter comes first.

    Args:
        scatter: of the video.
        edges: ascending, inside `(0, L)`.
        max_cuts: keep so many, those that save most first; None is all.
        max_depth: splits on one path from the root; None is no limit.

    Returns:
        In the order of what they save, a split never before its parent.
    """
    waiting: list[tuple[float, int, _Segment]] = []

    def offer(segment: _Segment) -> None:
        if segment.first < segment.last and (max_depth is None or segment.depth < max_depth):
            cuts = edges[segment.first : segment.last]
            gains = scatter.gains(segment.lo, cuts, segment.hi)
            best = int(gains.argmax())
            chosen = replace(segment, at=segment.first + best)
            heapq.heappush(waiting, (-float(gains[best]), segment.lo, chosen))

    found: list[Split] = []
    offer(_Segment(0, scatter.n, 0, len(edges), 0, None))
    while waiting and (max_cuts is None or len(found) < max_cuts):
        negative, _, this = heapq.heappop(waiting)
        edge = int(edges[this.at])
        found.append(Split(edge, -negative, this.depth, this.parent))
        offer(_Segment(this.lo, edge, this.first, this.at, this.depth + 1, edge))
        offer(_Segment(edge, this.hi, this.at + 1, this.last, this.depth + 1, edge))
    return found


@dataclass(frozen=True)
class _Segment:
    """Clips `[lo, hi)`, whose cuts are the edges `[first, last)`, and which of them is the best."""

    lo: int
    hi: int
    first: int
    last: int
    depth: int
    parent: int | None
    at: int = -1
