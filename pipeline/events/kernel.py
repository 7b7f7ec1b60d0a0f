"""What every scorer of boundaries shares: weights by distance, edge rules, the `Scorer` protocol.

The kernel is `K = v vᵀ` with `v_a = w_|a|` before a clip, `-w_|a|` after it and 0 at the clip
(specs/llmepet_and_pseudo_events.md §4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Edges",
    "Scorer",
    "Taper",
    "check_options",
    "each_of",
    "nearer_edge",
    "score_parts",
    "side_totals",
    "totals_of",
    "weights_of",
]

Taper = Literal["box", "gaussian"]
Edges = Literal["zero", "margin", "normalized"]
Floats = NDArray[np.float64]
Reals = NDArray[Any]  # float64 or float32
Counts = NDArray[np.int64]


class Scorer(Protocol):
    """Boundary scores of one video of `n` clips, for a parser that cuts it into segments.

    What lies outside a segment `[lo, hi)` does not exist for the scores of its clips, and a score
    has the same bits in whatever range of clips it is computed. A new edge changes only the
    scores of the `half_width` clips next to it. `pipeline.events.scorers.make_scorer` makes one.
    """

    @property
    def n(self) -> int:
        """Clips of the video."""

    @property
    def half_width(self) -> int:
        """Clips on each side of a clip that its score looks at."""

    @property
    def resolution(self) -> float:
        """Differences between scores up to this are rounding."""

    def segment(self, lo: int, hi: int) -> Floats:
        """Scores of all clips of the segment `[lo, hi)`, shape (hi - lo,), all >= 0."""

    def part(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """Scores of the clips `[first, last)` of the segment `[lo, hi)`."""

    def edge(self, clip: int) -> int:
        """The clip edge to cut at for a boundary found at `clip`: `clip` or `clip + 1`.

        A score leaves its own clip out, so a cut between two clips scores the same at both. The
        clip goes to the side that it is more similar to (a tie: it starts the new event).
        """


@runtime_checkable
class PartsScorer(Protocol):
    """A `Scorer` that scores parts of many segments in one go: see `score_parts`."""

    def parts(self, first: Counts, last: Counts, lo: Counts, hi: Counts) -> Floats:
        """As `score_parts`."""


def score_parts(scorer: Scorer, first: Counts, last: Counts, lo: Counts, hi: Counts) -> Floats:
    """The scores `scorer.part(first[i], last[i], lo[i], hi[i])` of every i, one after the other."""
    if isinstance(scorer, PartsScorer):
        return scorer.parts(first, last, lo, hi)
    where = zip(first.tolist(), last.tolist(), lo.tolist(), hi.tolist(), strict=True)
    return np.concatenate([np.empty(0), *(scorer.part(*each) for each in where)])


def each_of(first: Counts, last: Counts) -> Counts:
    """The indices of the ranges `[first[i], last[i])`, one range after the other."""
    lengths = last - first
    before = np.cumsum(lengths) - lengths
    indices: Counts = np.arange(lengths.sum()) + np.repeat(first - before, lengths)
    return indices


def check_options(half_width: int, taper: str, edges: str) -> None:
    """Raise ValueError for an option that does not exist."""
    if not isinstance(half_width, int | np.integer) or half_width < 1:
        raise ValueError(f"half_width must be at least one clip, a whole number, got {half_width}")
    for name, value, allowed in (("taper", taper, _TAPERS), ("edges", edges, get_args(Edges))):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")


def weights_of(taper: Taper, half_width: int) -> Floats:
    """Weight of the clips at distance 1..s, shape (s,)."""
    distance = np.arange(1, half_width + 1)
    weights: Floats = np.exp(-_TAPERS[taper] * distance**2 / half_width**2)
    return weights


_TAPERS: Mapping[str, float] = {"box": 0.0, "gaussian": 2.0}  # the exponent at distance s


def totals_of(weights: Reals) -> Reals:
    """Weight of the nearest 0..s clips together, shape (s + 1,)."""
    return np.concatenate([np.zeros(1, weights.dtype), np.cumsum(weights)])


def side_totals(before: Counts, after: Counts, total: Reals) -> tuple[Reals, Reals, Reals]:
    """Weights of the clips that exist on each side, to divide by, and the share of the lesser side.

    Where one side has no clips the share is 0 and the totals are 1.

    Args:
        before: clips of the segment before each clip, shape (n,).
        after: clips of the segment after each clip, shape (n,).
        total: `totals_of` the weights, shape (s + 1,).
    """
    s = len(total) - 1
    w_left, w_right = total[np.minimum(before, s)], total[np.minimum(after, s)]
    lesser = np.minimum(w_left, w_right)
    one_sided = lesser == 0
    w_left[one_sided] = w_right[one_sided] = 1.0
    return w_left, w_right, lesser / total[-1]


def nearer_edge(clip: int, n: int, before: float, after: float) -> int:
    """`clip`, or `clip + 1` if the clip is more similar to what is before it than after it."""
    if clip == 0:
        return 1
    return clip + 1 if clip + 1 < n and before > after else clip
