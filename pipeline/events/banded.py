"""Boundary scores from a band of the self-similarity matrix, for any similarity.

A checkerboard of half width `s` at clip `t` sees only `S_ij` with `|i - j| <= 2s`. The band is
computed once, O(L·s·D) time and O(L·s) memory; rescoring a part of a video then needs no features
(specs/llmepet_and_pseudo_events.md §4.3, §6.4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events.kernel import (
    Counts,
    Edges,
    Floats,
    Reals,
    Taper,
    check_options,
    each_of,
    nearer_edge,
    side_totals,
    weights_of,
)

__all__ = [
    "BandedScorer",
    "PairSimilarity",
    "band_of_cosines",
    "band_of_distances",
    "band_of_matrix",
    "band_of_pairs",
    "refuse_infinite",
    "row_products",
    "working_type",
]

PairSimilarity = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Similarity of row i of one (n, D) array to row i of the other, shape (n,), symmetric. Each
value may depend on its own two rows only."""

_BLOCK_BYTES = 1 << 21  # of features: they stay in the cache, and calls are few


class BandedScorer:
    """A `Scorer` for any similarity, given as a band of its matrix. Scores below 0 become 0.

    Args:
        band: `band[k, i]` is the similarity of clips `i` and `i + k`, shape (2s + 1 or more, L);
            its last `k` values in row `k` do not matter.
        half_width: `s`, clips on each side, >= 1.
        taper: see `boundary_scores`.
        edges: see `boundary_scores`; with "zero" and "margin", pairs with a clip outside the
            segment have similarity 0.
        relative_resolution: rounding of a score, as a part of the largest similarity.
    """

    def __init__(
        self,
        band: Floats,
        half_width: int,
        taper: Taper = "box",
        edges: Edges = "normalized",
        relative_resolution: float = 1e-9,
    ) -> None:
        check_options(half_width, taper, edges)
        if len(band) < 2 * half_width + 1:
            raise ValueError(
                f"a half width of {half_width} clips needs a band of {2 * half_width + 1} "
                f"diagonals, got {len(band)}"
            )
        self.n = band.shape[1]
        self.half_width = half_width
        self.resolution = relative_resolution * max(
            float(np.abs(row[: self.n - lag]).max()) for lag, row in enumerate(band[: self.n])
        )
        self._band = band
        self._edges = edges
        self._weights = weights_of(taper, half_width)

    def segment(self, lo: int, hi: int) -> Floats:
        """Scores of all clips of the segment `[lo, hi)`, shape (hi - lo,)."""
        return self.part(lo, hi, lo, hi)

    def part(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """Scores of the clips `[first, last)` of the segment `[lo, hi)`."""
        if last <= first:
            return np.empty(0)
        band, s, n = self._inside(first, last, lo, hi), self.half_width, last - first
        before = np.arange(first - lo, last - lo)
        return self._scores(
            lambda lag, at: band[lag, s + at : s + at + n], before, hi - lo - 1 - before
        )

    def parts(self, first: Counts, last: Counts, lo: Counts, hi: Counts) -> Floats:
        """The same of many parts, one after the other: see `score_parts`."""
        n = last - first
        lo, hi = np.repeat(lo, n), np.repeat(hi, n)
        clips = each_of(first, last)

        def pair(lag: int, at: int) -> Floats:
            one = clips + at
            inside = (one >= lo) & (one + lag < hi)
            return np.where(inside, self._band[lag].take(one, mode="clip"), 0.0)

        return self._scores(pair, clips - lo, hi - 1 - clips)

    def _scores(self, pair: Callable[[int, int], Floats], before: Counts, after: Counts) -> Floats:
        """Scores of clips with so many clips of their segment before and after them.

        Args:
            pair: of `(lag, at)`: for every clip the similarity of the clips `at` and `at + lag`
                from it, 0 where one of them is outside the segment.
        """
        left, right, across = self._sums(pair, len(before))
        if self._edges == "normalized":
            w_left, w_right, share = side_totals(before, after, self._weights)
            scores = left / w_left**2 + right / w_right**2 - 2 * across / (w_left * w_right)
            scores *= share
        else:
            scores = left + right - 2 * across
        if self._edges == "margin":
            scores[np.minimum(before, after) < self.half_width] = 0.0
        floored: Floats = np.maximum(scores, 0.0)
        return floored

    def edge(self, clip: int) -> int:
        """The clip edge to cut at: see `Scorer`."""
        lags = np.arange(1, self.half_width + 1)
        before, after = lags[lags <= clip], lags[lags < self.n - clip]
        return nearer_edge(
            clip,
            self.n,
            float(self._band[before, clip - before].sum()) / max(len(before), 1),
            float(self._band[after, clip].sum()) / max(len(after), 1),
        )

    def _inside(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """The band of the clips `[first - s, last + s)`, zero where a clip is not in `[lo, hi)`."""
        s, lags = self.half_width, 2 * self.half_width + 1
        start, stop = max(first - s, lo), min(last + s, hi)
        band = np.zeros((lags, last - first + 2 * s))
        at = start - (first - s)
        band[:, at : at + stop - start] = self._band[:lags, start:stop]
        for lag in range(max(hi - stop + 1, 1), lags):
            band[lag, max(hi - lag - (first - s), 0) :] = 0.0
        return band

    def _sums(self, pair: Callable[[int, int], Floats], n: int) -> tuple[Floats, Floats, Floats]:
        """Weighted similarities within the left side, within the right side, and across."""
        s, weights = self.half_width, self._weights
        left, right, across = np.zeros((3, n))
        for a in range(1, s + 1):
            for c in range(1, s + 1):
                weight = float(weights[a - 1] * weights[c - 1])
                across += weight * pair(a + c, -a)
                if a <= c:
                    twice = weight if a == c else 2 * weight
                    left += twice * pair(c - a, -c)
                    right += twice * pair(c - a, a)
        return left, right, across


def working_type(features: NDArray[Any]) -> type[np.floating[Any]]:
    """float64 for float64 features, else float32."""
    return np.float64 if features.dtype == np.float64 else np.float32


def row_products(one: Reals, other: Reals) -> Reals:
    """Scalar product of row i of one array with row i of the other, shape (n,).

    A BLAS dot product per row: the bits of a product do not depend on the rows around it.
    """
    products: Reals = np.matmul(one[:, None, :], other[:, :, None])[:, 0, 0]
    return products


def band_of_cosines(features: NDArray[Any], reach: int) -> Floats:
    """Cosines of clips `i` and `i + k` for `k <= reach`, shape (reach + 1, L).

    A row of zeros is similar to nothing, nor to itself.

    Raises:
        ValueError: a row that is not finite, by its clip.
    """
    products = _band(features, reach, row_products)
    squares = np.where(products[0] == 0, 1.0, products[0])
    norms = np.sqrt(squares)
    for lag, row in enumerate(products[: len(features)]):
        one, other = slice(0, len(row) - lag), slice(lag, None)
        # The root of a square is not the square of the root: identical rows shall have 1.
        same = squares[one] == squares[other]
        row[one] /= np.where(same, squares[one], norms[one] * norms[other])
    return products


def band_of_distances(features: NDArray[Any], reach: int, squared: bool = False) -> Floats:
    """Minus the (squared) Euclidean distances of clips `i` and `i + k`: as `band_of_cosines`."""

    def squares(one: Reals, other: Reals) -> Reals:
        difference = one - other
        return row_products(difference, difference)

    band = _band(features, reach, squares)
    return -band if squared else -np.sqrt(band)


def band_of_pairs(features: NDArray[Any], reach: int, similarity: PairSimilarity) -> Floats:
    """Any similarity of clips `i` and `i + k`: as `band_of_cosines`."""
    return _band(features, reach, similarity)


def band_of_matrix(matrix: NDArray[Any], reach: int) -> Floats:
    """The band of a self-similarity matrix (L, L); `S_ij` and `S_ji` are averaged.

    Raises:
        ValueError: not a square matrix, or a value in the band that is not finite.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"a self-similarity matrix must be (L, L), got {matrix.shape}")
    n = len(matrix)
    band = np.zeros((reach + 1, n))
    for lag in range(min(reach + 1, n)):
        upper, lower = (np.diagonal(matrix, each).astype(np.float64) for each in (lag, -lag))
        band[lag, : n - lag] = (upper + lower) / 2
    refuse_infinite(band)
    return band


def _band(features: NDArray[Any], reach: int, pairs: PairSimilarity) -> Floats:
    dtype, n = working_type(features), len(features)
    band = np.zeros((reach + 1, n))
    block = max(_BLOCK_BYTES // (features.shape[1] * np.dtype(dtype).itemsize), 2 * reach)
    with np.errstate(invalid="ignore"):  # refused below, by its clip
        for start in range(0, n, block):
            rows = features[start : start + block + reach].astype(dtype, copy=False)
            for lag in range(min(reach + 1, len(rows))):
                size = min(block, len(rows) - lag)
                band[lag, start : start + size] = pairs(rows[:size], rows[lag : lag + size])
    refuse_infinite(band)
    return band


def refuse_infinite(values: Reals, first: int = 0) -> None:
    """Raise ValueError naming the first clip with a value that is not finite.

    Args:
        values: of the clips from `first` on, shape (n,), or the diagonals of a band (K, n).
        first: number of the first clip.
    """
    bad = ~np.isfinite(np.atleast_2d(values))
    if bad.any():
        # A broken clip spoils every diagonal; the main one names it.
        clip = first + int(np.flatnonzero(bad[0] if bad[0].any() else bad.any(axis=0))[0])
        raise ValueError(f"the features of clip {clip} are not finite numbers")
