"""Boundary scores from a band of the self-similarity matrix, for any similarity.

A checkerboard of half width `s` at clip `t` sees only `S_ij` with `|i - j| <= 2s`. The band is
computed once, O(L·s·D) time and O(L·s) memory; rescoring a part of a video then needs no features
(specs/llmepet_and_pseudo_events.md §4.3, §6.4).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
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
    totals_of,
    weights_of,
)

__all__ = [
    "BandedScorer",
    "PairSimilarity",
    "band_lags",
    "band_of_cosines",
    "band_of_distances",
    "band_of_matrix",
    "band_of_pairs",
    "block_of",
    "refuse_infinite",
    "row_products",
    "squares_of",
    "unit_rows",
    "working_type",
]

PairSimilarity = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Similarity of row i of one (n, D) array to row i of the other, shape (n,), symmetric. Each
value may depend on its own two rows only."""

_BLOCK_BYTES = 1 << 21  # of features: they stay in the cache, and calls are few

_GATHERED = 1 << 16
"""So many pairs of clips are looked up in one go; more are faster kind by kind."""

_SQUARES = {np.float32: (2.0**-60, 2.0**100), np.float64: (2.0**-600, 2.0**900)}
"""Squared lengths of rows whose products lose nothing to the range of the type."""


class BandedScorer:
    """A `Scorer` for any similarity, given as a band of its matrix. Scores below 0 become 0.

    Args:
        band: `band[k, i]` is the similarity of clips `i` and `i + k`, shape (`band_lags` or more,
            L); its last `k` values in row `k` do not matter.
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
        self.n = band.shape[1]
        if len(band) < band_lags(half_width, self.n):
            raise ValueError(
                f"a half width of {half_width} clips needs a band of "
                f"{band_lags(half_width, self.n)} diagonals, got {len(band)}"
            )
        self.half_width = half_width
        self.resolution = relative_resolution * max(
            float(np.abs(row[: self.n - lag]).max()) for lag, row in enumerate(band[: self.n])
        )
        self._band = band
        self._edges = edges
        self._weights = weights_of(taper, half_width)
        self._totals = totals_of(self._weights)

    def segment(self, lo: int, hi: int) -> Floats:
        """Scores of all clips of the segment `[lo, hi)`, shape (hi - lo,)."""
        return self.part(lo, hi, lo, hi)

    def part(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """Scores of the clips `[first, last)` of the segment `[lo, hi)`."""
        n = last - first
        if n <= 0:
            return np.empty(0)
        few = n <= 2 * self.half_width and n * self.half_width**2 <= _GATHERED
        if few and self.half_width > 2:  # measured; so few pairs are as fast one by one
            return self._gathered(np.arange(first, last), np.full(n, lo), np.full(n, hi))
        s = min(self.half_width, hi - lo)
        band = self._inside(first, last, lo, hi, s)
        before = np.arange(first - lo, last - lo)
        sums = self._sums(lambda lag, at: band[lag, s + at : s + at + n], n, hi - lo)
        return self._scores(*sums, before, hi - lo - 1 - before)

    def parts(self, first: Counts, last: Counts, lo: Counts, hi: Counts) -> Floats:
        """The same of many parts, one after the other: see `score_parts`."""
        n = last - first
        return self._gathered(each_of(first, last), np.repeat(lo, n), np.repeat(hi, n))

    def _gathered(self, clips: Counts, lo: Counts, hi: Counts) -> Floats:
        """Scores of clips, each of the segment `[lo[i], hi[i])`."""
        if not len(clips):
            return np.empty(0)

        def pair(lag: Any, at: Any) -> Floats:
            one = clips + at
            inside = (one >= lo) & (one + lag < hi)
            there = self._band[np.minimum(lag, len(self._band) - 1), np.where(inside, one, 0)]
            return np.where(inside, there, 0.0)

        if len(clips) * self.half_width**2 <= _GATHERED:
            sums = self._sums_at_once(pair)
        else:
            sums = self._sums(pair, len(clips), int((hi - lo).max()))
        return self._scores(*sums, clips - lo, hi - 1 - clips)

    def _scores(
        self, left: Floats, right: Floats, across: Floats, before: Counts, after: Counts
    ) -> Floats:
        """Scores from the sums of `_sums`, and how many clips of the segment are on each side."""
        if self._edges == "normalized":
            w_left, w_right, share = side_totals(before, after, self._totals)
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

    def _inside(self, first: int, last: int, lo: int, hi: int, s: int) -> Floats:
        """The band of the clips `[first - s, last + s)`, zero where a clip is not in `[lo, hi)`."""
        lags = band_lags(s, hi - lo)
        start, stop = max(first - s, lo), min(last + s, hi)
        band = np.zeros((lags, last - first + 2 * s))
        at = start - (first - s)
        band[:, at : at + stop - start] = self._band[:lags, start:stop]
        for lag in range(max(hi - stop + 1, 1), lags):
            band[lag, max(hi - lag - (first - s), 0) :] = 0.0
        return band

    def _sums(
        self, pair: Callable[[int, int], Floats], n: int, longest: int
    ) -> tuple[Floats, Floats, Floats]:
        """Weighted similarities within the left side, within the right side, and across.

        Args:
            pair: of `(lag, at)`: for each of `n` clips the similarity of the clips `at` and
                `at + lag` from it, 0 where one of them is outside the segment.
            n: number of clips.
            longest: clips of the longest segment; clips farther apart are in none.
        """
        s, weights = min(self.half_width, longest - 1), self._weights
        left, right, across = np.zeros((3, n))
        for a in range(1, s + 1):
            for c in range(1, s + 1):
                weight = float(weights[a - 1] * weights[c - 1])
                if a + c < longest:
                    across += weight * pair(a + c, -a)
                if a <= c:
                    twice = weight if a == c else 2 * weight
                    left += twice * pair(c - a, -c)
                    right += twice * pair(c - a, a)
        return left, right, across

    def _sums_at_once(self, pair: Callable[[Any, Any], Floats]) -> tuple[Floats, Floats, Floats]:
        """As `_sums`, to the bit, of few clips: in few calls."""
        left, right, across = (
            np.add.accumulate(weight * pair(lag, at), axis=0)[-1] + 0.0  # in order; no -0.0
            for lag, at, weight in self._kinds
        )
        return left, right, across

    @cached_property
    def _kinds(self) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """`lag`, `at` and weight, each (pairs, 1), of all pairs of `_sums` in its order."""
        a, c = (each.reshape(-1, 1) + 1 for each in np.indices((self.half_width,) * 2))
        weight = self._weights[a - 1] * self._weights[c - 1]
        half = a[:, 0] <= c[:, 0]
        b, d, twice = a[half], c[half], np.where(a == c, weight, 2 * weight)[half]
        return [(d - b, -d, twice), (d - b, b, twice), (a + c, -a, weight)]


def band_lags(half_width: int, n: int) -> int:
    """Diagonals that a half width needs of the matrix of `n` clips, the main one counted."""
    return min(2 * half_width + 1, n)


def working_type(features: NDArray[Any]) -> type[np.floating[Any]]:
    """float32 for float16 and float32 features, float64 for other real numbers.

    Raises:
        ValueError: not real numbers.
    """
    kind, size = features.dtype.kind, features.dtype.itemsize
    if kind not in "fiub":
        raise ValueError(f"features must be real numbers, got {features.dtype}")
    return np.float32 if kind == "f" and size <= 4 else np.float64


def block_of(features: NDArray[Any], first: int, last: int) -> Reals:
    """The clips `[first, last)` as the working type, row by row in memory.

    Products of rows that lie otherwise have other bits.
    """
    return np.ascontiguousarray(features[first:last], working_type(features))


def squares_of(rows: Reals) -> tuple[Reals, Reals]:
    """The rows, those of extreme lengths times a power of two, and their squared lengths.

    Scaled so that no product of two rows leaves the range of the type; the square of a row that
    is not finite is not.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # the rows that this is for
        squares = row_products(rows, rows)
        low, high = _SQUARES[working_type(rows)]
        if not (squares.min(initial=low) >= low and squares.max(initial=low) <= high):
            extreme = np.flatnonzero(~((squares >= low) & (squares <= high)))
            largest = np.abs(rows[extreme]).max(axis=1)
            scaled = np.isfinite(largest) & (largest > 0)
            at = extreme[scaled]
            rows = rows.copy()
            rows[at] = np.ldexp(rows[at], -np.frexp(largest[scaled])[1][:, None])
            squares[at] = row_products(rows[at], rows[at])
    return rows, squares


def unit_rows(features: NDArray[Any], out: Floats | None = None) -> Floats:
    """Rows of length one, (L, D) float64, in `out` if it is given; rows of zeros stay zeros.

    Raises:
        ValueError: not real numbers, or a row that is not finite, by its clip.
    """
    working_type(features)
    unit = np.empty(features.shape) if out is None else out
    rows = max(_BLOCK_BYTES // (8 * max(features.shape[1], 1)), 1)
    for first in range(0, len(features), rows):
        given = np.ascontiguousarray(features[first : first + rows], np.float64)
        given, squares = squares_of(given)
        refuse_infinite(squares, first)
        norms = np.sqrt(np.where(squares == 0, 1.0, squares))
        np.divide(given, norms[:, None], out=unit[first : first + rows])
    return unit


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
    products = _band(features, reach, row_products, scaled=True)
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
    working_type(matrix)
    n = len(matrix)
    band = np.zeros((min(reach, n - 1) + 1, n))
    for lag in range(len(band)):
        upper, lower = (np.diagonal(matrix, each).astype(np.float64) for each in (lag, -lag))
        band[lag, : n - lag] = (upper + lower) / 2
    refuse_infinite(band)
    return band


def _band(
    features: NDArray[Any], reach: int, pairs: PairSimilarity, scaled: bool = False
) -> Floats:
    """`pairs` of all clips; with `scaled`, of rows as `squares_of` leaves them."""
    dtype, n = working_type(features), len(features)
    reach = min(reach, n - 1)
    band = np.zeros((reach + 1, n))
    block = max(_BLOCK_BYTES // (features.shape[1] * np.dtype(dtype).itemsize), 2 * reach)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by its clip
        for start in range(0, n, block):
            rows = block_of(features, start, start + block + reach)
            if scaled:
                rows, squares = squares_of(rows)
                band[0, start : start + block] = squares[:block]
            for lag in range(1 if scaled else 0, min(reach + 1, len(rows))):
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
