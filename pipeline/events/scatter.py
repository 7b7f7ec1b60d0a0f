"""How far the features of a segment are from their mean, for any segment at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events.banded import unit_rows

__all__ = ["Scatter"]

Floats = NDArray[np.float64]
Clips = NDArray[np.int64]

_ROWS = 256
"""Rows of features that are worked on together: what is made on the way stays small."""


class Scatter:
    """Sum of squared distances to the mean, of any segment of the unit features.

    Args:
        features: shape (L, D), any float type; a row of zeros is similar to nothing.

    Raises:
        ValueError: a value that is not finite.
    """

    def __init__(self, features: NDArray[Any]) -> None:
        self.n = len(features)
        self._sums: Floats = np.zeros((self.n + 1, features.shape[1]))
        rows = self._sums[1:]
        unit_rows(features, out=rows)
        rows -= rows.mean(axis=0)  # changes no scatter, and keeps the sums small
        squares = np.einsum("ld,ld->l", rows, rows)
        self._squares: Floats = np.append(0.0, np.cumsum(squares))
        for first in range(0, self.n, _ROWS):  # whole, numpy would make a copy
            block = self._sums[first : first + _ROWS + 1]  # from the sum of what is before it
            block[:] = np.cumsum(block, axis=0)

    def table(self, points: NDArray[np.int64], min_len: int) -> Floats:
        """Scatter of `[points[i], points[j])` at `[j, i]`; infinite where that is too short."""
        sums, squares = self._sums[points], self._squares[points]
        norms = np.einsum("pd,pd->p", sums, sums)
        table: Floats = sums @ sums.T
        table *= -2
        table += norms[:, None]
        table += norms  # now ‖sum of the segment‖²
        lengths = np.subtract.outer(*[points.astype(np.int32)] * 2)
        table /= -np.maximum(lengths, 1)
        table += squares[:, None]
        table -= squares
        np.maximum(table, 0.0, out=table)
        table[lengths < max(min_len, 1)] = np.inf
        return table

    def gains(self, lo: int, cuts: NDArray[np.int64], hi: int) -> Floats:
        """Scatter that each of several cuts of `[lo, hi)` would save."""
        gains = np.empty(len(cuts))
        for first in range(0, len(cuts), _ROWS):
            some = cuts[first : first + _ROWS]
            before, after = (some - lo)[:, None], (hi - some)[:, None]
            apart = (self._sums[some] - self._sums[lo]) / before
            apart -= (self._sums[hi] - self._sums[some]) / after
            squares = np.einsum("cd,cd->c", apart, apart)
            gains[first : first + _ROWS] = squares * (before * after / (hi - lo))[:, 0]
        return gains

    def saved(self, lo: Clips, cuts: Clips, hi: Clips) -> Floats:
        """Scatter that the cut of each of several segments `[lo[i], hi[i])` saves, shape (K,)."""
        before, after = cuts - lo, hi - cuts
        apart = (self._sums[cuts] - self._sums[lo]) / before[:, None]
        apart -= (self._sums[hi] - self._sums[cuts]) / after[:, None]
        saved: Floats = np.einsum("cd,cd->c", apart, apart) * before * after / (hi - lo)
        return saved

    def within(self, edges: Clips) -> float:
        """Scatter inside all segments that `edges`, with 0 and L among them, bound."""
        sums = np.diff(self._sums[edges], axis=0)
        squares = np.einsum("cd,cd->c", sums, sums) / np.diff(edges)
        return max(float(self._squares[-1] - squares.sum()), 0.0)
