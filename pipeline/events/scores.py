"""Boundary scores of the temporal self-similarity matrix, without the matrix.

A checkerboard kernel `K = v vᵀ` slid along the diagonal of `S_ij = <x̂_i, x̂_j>` gives
`b_t = Σ_ac v_a v_c S_(t+a)(t+c) = ‖Σ_a v_a x̂_(t+a)‖²`: a difference of two short sums of unit
features. Time O(L·D·log s) for the box taper, memory O(s·D) beyond the input
(specs/llmepet_and_pseudo_events.md §4.3; the definition of every option is that of the golden
file `event_recursion.json`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoundaryScorer", "Edges", "Taper", "boundary_scores"]

Taper = Literal["box", "gaussian"]
Edges = Literal["zero", "margin", "normalized"]
Floats = NDArray[np.float64]
Reals = NDArray[Any]  # float64 or float32
Counts = NDArray[np.int64]

_BLOCK_BYTES = 1 << 18  # a block of float64 rows that stays in a core's own cache


def boundary_scores(
    features: NDArray[Any], half_width: int, taper: Taper = "box", edges: Edges = "zero"
) -> Floats:
    """How much the content changes at each clip, shape (L,), all >= 0.

    The score of clip `t` compares clips `t-s..t-1` with `t+1..t+s` by cosine; clip `t` itself
    does not count. A row of zeros is similar to nothing. Scaling the features changes nothing.

    Sums are in float64 for float64 features, else in float32 (scores then differ by less than
    2e-5 from the exact ones, and by rounding between machines).

    Args:
        features: shape (L, D), any float type, L >= 1; L may be shorter than `2s+1`.
        half_width: `s`, clips on each side, >= 1.
        taper: weight by distance `a`: 1, or `exp(-a²/(2(s/2)²))` (Foote's taper).
        edges: clips outside the sequence are "zero" (the ends then look like boundaries);
            "margin" does so and sets the first and last `s` scores to 0; "normalized" compares
            the means of what is there: `‖mean_left - mean_right‖² · min(w_left, w_right) / w`.

    Raises:
        ValueError: wrong shape, an unknown option, or a value that is not finite.
    """
    scorer = BoundaryScorer(features, half_width, taper, edges)
    return scorer.segment(0, len(scorer.features))


class BoundaryScorer:
    """Scores of clips inside segments `[lo, hi)`; what is outside a segment does not exist.

    The score of a clip has the same bits in whatever range of clips it is computed, so that a
    recursive parser may rescore only the clips near a new edge. Arguments: `boundary_scores`.
    """

    def __init__(self, features: NDArray[Any], half_width: int, taper: Taper, edges: Edges) -> None:
        if features.ndim != 2 or not features.size:
            raise ValueError(f"features must be (L, D) with L, D >= 1, got {features.shape}")
        if half_width < 1:
            raise ValueError(f"half_width must be at least one clip, got {half_width}")
        if taper not in _TAPERS:
            raise ValueError(f"unknown taper {taper!r}; allowed: {', '.join(_TAPERS)}")
        if edges not in _EDGES:
            raise ValueError(f"unknown edges {edges!r}; allowed: {', '.join(_EDGES)}")
        self.features = features
        self.half_width = half_width
        exact = features.dtype == np.float64
        self._dtype = np.float64 if exact else np.float32
        self.resolution = 1e-9 if exact else 2e-5
        self._weights = _TAPERS[taper](half_width).astype(self._dtype)
        self._combine = _EDGES[edges]

    def segment(self, lo: int, hi: int) -> Floats:
        """Scores of all clips of the segment `[lo, hi)`, shape (hi - lo,)."""
        return self.part(lo, hi, lo, hi)

    def part(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """Scores of the clips `[first, last)` of the segment `[lo, hi)`."""
        scores = np.empty(last - first)
        row_bytes = self.features.shape[1] * np.dtype(self._dtype).itemsize
        rows = max(_BLOCK_BYTES // row_bytes, 4 * self.half_width)
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            left, right = _side_sums(self._around(start, stop, lo, hi), self._weights)
            before = np.arange(start - lo, stop - lo)
            after = hi - lo - 1 - before
            scores[start - first : stop - first] = self._combine(
                left, right, before, after, self._weights
            )
        return scores

    def _around(self, start: int, stop: int, lo: int, hi: int) -> Reals:
        """Unit features of `[start - s, stop + s)`, zeros outside the segment."""
        s = self.half_width
        first, last = max(start - s, lo), min(stop + s, hi)
        given = self.features[first:last].astype(self._dtype, copy=False)
        norms = np.sqrt(_squared_norms(given))
        if not np.isfinite(norms).all():
            clip = first + int(np.flatnonzero(~np.isfinite(norms))[0])
            raise ValueError(f"the features of clip {clip} are not finite numbers")
        norms[norms == 0] = 1.0
        rows = np.empty((stop - start + 2 * s, self.features.shape[1]), self._dtype)
        before, after = first - (start - s), last - (start - s)
        rows[:before] = rows[after:] = 0.0
        np.divide(given, norms[:, None], out=rows[before:after])
        return rows


def _squared_norms(rows: Reals) -> Reals:
    norms: Reals = np.einsum("ld,ld->l", rows, rows)
    return norms


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


def _box(half_width: int) -> Floats:
    return np.ones(half_width)


def _gaussian(half_width: int) -> Floats:
    distance = np.arange(1, half_width + 1)
    return np.exp(-(distance**2) / (2 * (0.5 * half_width) ** 2))


def _zero(left: Reals, right: Reals, before: Counts, after: Counts, weights: Reals) -> Reals:
    del before, after, weights
    return _squared_norms(left - right)


def _margin(left: Reals, right: Reals, before: Counts, after: Counts, weights: Reals) -> Reals:
    scores = _zero(left, right, before, after, weights)
    scores[np.minimum(before, after) < len(weights)] = 0.0
    return scores


def _normalized(left: Reals, right: Reals, before: Counts, after: Counts, weights: Reals) -> Reals:
    s = len(weights)
    total = np.concatenate([np.zeros(1, weights.dtype), np.cumsum(weights)])
    w_left, w_right = total[np.minimum(before, s)], total[np.minimum(after, s)]
    lesser = np.minimum(w_left, w_right)
    one_sided = lesser == 0
    w_left[one_sided] = w_right[one_sided] = 1.0
    difference = left / w_left[:, None] - right / w_right[:, None]
    scores: Reals = _squared_norms(difference) * lesser / total[-1]
    return scores


_TAPERS: dict[str, Callable[[int], Floats]] = {"box": _box, "gaussian": _gaussian}
_EDGES: dict[str, Callable[..., Floats]] = {
    "zero": _zero,
    "margin": _margin,
    "normalized": _normalized,
}
