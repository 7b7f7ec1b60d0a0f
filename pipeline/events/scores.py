"""Boundary scores of the temporal self-similarity matrix, without the matrix.

A checkerboard kernel `K = v vᵀ` slid along the diagonal of `S_ij = <x̂_i, x̂_j>` gives
`b_t = Σ_ac v_a v_c S_(t+a)(t+c) = ‖Σ_a v_a x̂_(t+a)‖²`: a difference of two short sums of unit
features. Time O(L·D·log s) for the box taper, memory O(s·D) beyond the input
(specs/llmepet_and_pseudo_events.md §4.3; the definition of every option is that of the golden
file `event_recursion.json`). Of short kernels the scores come from a band of cosines instead
(`pipeline.events.banded`): a few products per clip, after which a split needs no features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events.banded import (
    BandedScorer,
    band_of_cosines,
    block_of,
    refuse_infinite,
    row_products,
    squares_of,
    unit_rows,
    working_type,
)
from pipeline.events.kernel import (
    Counts,
    Edges,
    Floats,
    Reals,
    Scorer,
    Taper,
    check_options,
    nearer_edge,
    side_totals,
    totals_of,
    weights_of,
)

__all__ = [
    "RESOLUTION",
    "BoundaryScorer",
    "Edges",
    "Scorer",
    "SquaredDistanceScorer",
    "Taper",
    "boundary_scores",
    "cosine_scorer",
]

RESOLUTION = {np.float64: 1e-9, np.float32: 2e-5}
"""What is rounding in a score, in units of the largest similarity, by the type of the sums."""

_BLOCK_BYTES = 1 << 18  # a block of rows that stays in a core's own cache
_CHECKED_ROWS = 256
_WIDEST_BAND = 12
"""Half width up to which a video is parsed faster by a band; measured at D = 512 and 2816. A split
costs a twentieth: 100,000 clips of noise (33,000 splits) take 0.6 s, not 5, at half width 4."""


def boundary_scores(
    features: NDArray[Any], half_width: int, taper: Taper = "box", edges: Edges = "zero"
) -> Floats:
    """How much the content changes at each clip, shape (L,), all >= 0.

    The score of clip `t` compares clips `t-s..t-1` with `t+1..t+s` by cosine; clip `t` itself
    does not count. A row of zeros is similar to nothing. Scaling the features changes nothing.

    Sums are in float32 for float16 and float32 features (scores then differ from the exact ones
    by less than 2e-6, times the square of the total weight where edges are not "normalized", and
    by rounding between machines), else in float64.

    Args:
        features: shape (L, D), any float type, L >= 1; L may be shorter than `2s+1`.
        half_width: `s`, clips on each side, >= 1.
        taper: weight by distance `a`: 1, or `exp(-a²/(2(s/2)²))` (Foote's taper).
        edges: clips outside the sequence are "zero" (the ends then look like boundaries);
            "margin" does so and sets the first and last `s` scores to 0; "normalized" compares
            the means of what is there: `‖mean_left - mean_right‖² · min(w_left, w_right) / w`.

    Raises:
        ValueError: wrong shape, no real numbers, an unknown option, or a value that is not finite.
    """
    scorer = cosine_scorer(features, half_width, taper, edges)
    return scorer.segment(0, scorer.n)


def cosine_scorer(
    features: NDArray[Any], half_width: int, taper: Taper, edges: Edges
) -> BoundaryScorer | BandedScorer:
    """The faster of the two scorers by cosine. Arguments: `boundary_scores`."""
    closed_form = BoundaryScorer(features, half_width, taper, edges)
    if half_width > _WIDEST_BAND:
        return closed_form
    band = band_of_cosines(features, 2 * half_width)
    return BandedScorer(band, half_width, taper, edges, closed_form.resolution)


class BoundaryScorer:
    """A `Scorer` by cosine in closed form: see `boundary_scores`."""

    def __init__(self, features: NDArray[Any], half_width: int, taper: Taper, edges: Edges) -> None:
        if features.ndim != 2 or not features.size:
            raise ValueError(f"features must be (L, D) with L, D >= 1, got {features.shape}")
        check_options(half_width, taper, edges)
        self.features = features
        self.half_width = half_width
        self._dtype = working_type(features)
        self.resolution = RESOLUTION[self._dtype]
        self._weights = weights_of(taper, half_width).astype(self._dtype)
        self._totals = totals_of(self._weights)
        self._edges = edges

    @property
    def n(self) -> int:
        """Clips of the video."""
        return len(self.features)

    def segment(self, lo: int, hi: int) -> Floats:
        """Scores of all clips of the segment `[lo, hi)`, shape (hi - lo,)."""
        return self.part(lo, hi, lo, hi)

    def part(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """Scores of the clips `[first, last)` of the segment `[lo, hi)`."""
        scores = np.empty(max(last - first, 0))
        s = min(self.half_width, max(hi - lo - 1, 1))  # no clip has more on one side
        row_bytes = self.features.shape[1] * np.dtype(self._dtype).itemsize
        rows = max(_BLOCK_BYTES // row_bytes, 4 * s)
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            left, right = _side_sums(self._around(start, stop, lo, hi, s), self._weights[:s])
            before = np.arange(start - lo, stop - lo)
            scores[start - first : stop - first] = self._combine(
                left, right, before, hi - lo - 1 - before
            )
        return scores

    def edge(self, clip: int) -> int:
        """The clip edge to cut at: see `Scorer`."""
        s = self.half_width
        before = self._likeness(clip, max(clip - s, 0), clip)
        after = self._likeness(clip, clip + 1, min(clip + 1 + s, self.n))
        return nearer_edge(clip, self.n, before, after)

    def _likeness(self, clip: int, first: int, last: int) -> float:
        """How similar a clip is to those of `[first, last)`; compared with itself only."""
        mean = unit_rows(self.features[first:last]).sum(axis=0) / max(last - first, 1)
        return float(unit_rows(self.features[clip : clip + 1])[0] @ mean)

    def _around(self, start: int, stop: int, lo: int, hi: int, s: int) -> Reals:
        """Points of the clips `[start - s, stop + s)`, zeros outside the segment."""
        first, last = max(start - s, lo), min(stop + s, hi)
        rows = np.empty((stop - start + 2 * s, self.features.shape[1]), self._dtype)
        before, after = first - (start - s), last - (start - s)
        rows[:before] = rows[after:] = 0.0
        self._place(block_of(self.features, first, last), first, rows[before:after])
        return rows

    def _place(self, given: Reals, first: int, out: Reals) -> None:
        """The points that are compared, of the clips from `first` on: unit features."""
        given, squares = squares_of(given)
        refuse_infinite(squares, first)
        norms = np.sqrt(squares)
        norms[norms == 0] = 1.0
        np.divide(given, norms[:, None], out=out)

    def _combine(self, left: Reals, right: Reals, before: Counts, after: Counts) -> Reals:
        """Scores from the weighted sums of both sides."""
        difference = left - right
        scores = row_products(difference, difference)
        cut = np.minimum(before, after) < self.half_width  # a side is not complete
        if self._edges == "margin":
            scores[cut] = 0.0
        if self._edges == "normalized":
            scores /= self._totals[-1] ** 2
            w_left, w_right, share = side_totals(before[cut], after[cut], self._totals)
            difference = left[cut] / w_left[:, None] - right[cut] / w_right[:, None]
            scores[cut] = row_products(difference, difference) * share
        return scores


class SquaredDistanceScorer(BoundaryScorer):
    """A `Scorer` by `S_ij = -‖x_i - x_j‖²` in closed form: `b_t = 2‖Σ_a v_a x_(t+a)‖²`.

    That holds where the kernel's sum is 0: everywhere but at the ends of `edges="zero"`, which
    is refused here (`make_scorer` takes the band there). A row of zeros is a point as any other.
    Features are centred first, for precision; this changes no distance.
    """

    def __init__(self, features: NDArray[Any], half_width: int, taper: Taper, edges: Edges) -> None:
        super().__init__(features, half_width, taper, edges)
        if edges == "zero":
            raise ValueError('no closed form for edges "zero"; allowed: margin, normalized')
        self._centre = np.zeros(features.shape[1])
        for first in range(0, self.n, _CHECKED_ROWS):
            rows = block_of(features, first, first + _CHECKED_ROWS).astype(np.float64)
            with np.errstate(invalid="ignore"):  # refused below, by its clip
                refuse_infinite(rows.sum(axis=1), first)
            self._centre += rows.sum(axis=0) / self.n
        largest = 0.0
        for first in range(0, self.n, _CHECKED_ROWS):
            points = block_of(features, first, first + _CHECKED_ROWS) - self._centre
            squares = row_products(points, points)
            largest = max(largest, float(squares.max()))
        self.resolution *= largest

    def part(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """Scores of the clips `[first, last)` of the segment `[lo, hi)`."""
        return 2 * super().part(first, last, lo, hi)

    def _likeness(self, clip: int, first: int, last: int) -> float:
        apart = block_of(self.features, first, last).astype(np.float64) - self.features[clip]
        return -float(np.square(apart).sum()) / max(last - first, 1)

    def _place(self, given: Reals, first: int, out: Reals) -> None:
        del first
        np.subtract(given, self._centre, out=out, casting="same_kind")


def _side_sums(rows: Reals, weights: Reals) -> tuple[Reals, Reals]:
    """Weighted sums of the `s` rows before and the `s` rows after each inner row."""
    s = len(weights)
    n = len(rows) - 2 * s
    if (weights == 1).all():
        sums = _window_sums(rows, s)
        return sums[:n], sums[s + 1 : s + 1 + n]
    left, right = np.zeros((2, n, rows.shape[1]), rows.dtype)
    for distance, weight in enumerate(weights, start=1):
        left += weight * rows[s - distance : s - distance + n]
        right += weight * rows[s + distance : s + distance + n]
    return left, right


def _window_sums(rows: Reals, width: int) -> Reals:
    """Sums of `width` neighbouring rows by doubling: log2(width) additions per value, in an order
    that does not depend on the position."""
    n = len(rows) - width + 1
    sums: Reals | None = None
    power, size, done = rows, 1, 0
    while True:
        if width & size:
            part = power[done : done + n]
            sums = part if sums is None else sums + part
            done += size
        if done == width:
            return part if sums is None else sums
        power = power[:-size] + power[size:]
        size *= 2
