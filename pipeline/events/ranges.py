"""Maxima and means of ranges of a sequence that changes in places, without reading the ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events.kernel import Counts, Floats, each_of

__all__ = ["Ranges"]

_FAN = 256  # values that one value of the level above stands for; numpy reads so many in about 1 us


class Ranges:
    """Where a range has its maximum, and what its mean is; a tree of block maxima and block sums.

    A question or a change reads O(fan · log_fan L) values wherever and however long the range is.
    A block's sum is computed from its values, never from differences: no error adds up.

    Args:
        values: shape (L,), L >= 1; copied.
        fan: children per node, >= 2.
    """

    def __init__(self, values: NDArray[Any], fan: int = _FAN) -> None:
        self.values: Floats = np.array(values, dtype=np.float64)
        self._fan = fan
        self._summarise()

    def replace_at(self, indices: Counts, new: Floats) -> None:
        """Set the values at `indices`, anywhere, to `new`; reads all values once."""
        self.values[indices] = new
        self._summarise()

    def _summarise(self) -> None:
        self._tops, self._sums = [self.values], [self.values]
        while len(self._tops[-1]) > self._fan:
            starts = np.arange(0, len(self._tops[-1]), self._fan)
            self._tops.append(np.maximum.reduceat(self._tops[-1], starts))
            self._sums.append(np.add.reduceat(self._sums[-1], starts))

    def replace(self, first: int, new: NDArray[Any]) -> None:
        """Set the values from `first` on to `new`."""
        last = first + len(new)
        self.values[first:last] = new
        for level in range(1, len(self._tops)):
            first, last = first // self._fan, -(-last // self._fan)
            for block in range(first, last):
                below = slice(block * self._fan, (block + 1) * self._fan)
                self._tops[level][block] = self._tops[level - 1][below].max()
                self._sums[level][block] = self._sums[level - 1][below].sum()

    def peak(self, lo: int, hi: int) -> int:
        """Index of the largest value of `[lo, hi)`, of equals the lowest."""
        best, level, at = -np.inf, 0, lo
        for depth, start, stop in self._pieces(lo, hi):
            tops = self._tops[depth][start:stop]
            index = int(tops.argmax())
            if tops[index] > best:
                best, level, at = float(tops[index]), depth, start + index
        while level:
            level, start = level - 1, at * self._fan
            at = start + int(self._tops[level][start : start + self._fan].argmax())
        return at

    def mean(self, lo: int, hi: int) -> float:
        """Mean of the values of `[lo, hi)`."""
        parts = [float(self._sums[level][a:b].sum()) for level, a, b in self._pieces(lo, hi)]
        return sum(parts) / (hi - lo)

    def peaks(self, lo: Counts, hi: Counts) -> tuple[Counts, Floats]:
        """`peak` and `mean` of many ranges, none of them empty, each shape (k,); reads them."""
        lengths = hi - lo
        indices, starts = each_of(lo, hi), np.cumsum(lengths) - lengths
        values = self.values[indices]
        tops = np.maximum.reduceat(values, starts)
        highest = np.flatnonzero(values == np.repeat(tops, lengths))
        first = highest[np.searchsorted(highest, starts)]
        return indices[first], np.add.reduceat(values, starts) / lengths

    def _pieces(self, lo: int, hi: int) -> list[tuple[int, int, int]]:
        """Ranges `(level, start, stop)` that together are `[lo, hi)`, from left to right."""
        left, right = [], []
        for level in range(len(self._tops)):
            first, last = -(-lo // self._fan), hi // self._fan  # blocks that lie inside
            if level + 1 == len(self._tops) or first >= last:
                left.append((level, lo, hi))
                break
            if lo < first * self._fan:
                left.append((level, lo, first * self._fan))
            if last * self._fan < hi:
                right.append((level, last * self._fan, hi))
            lo, hi = first, last
        return left + right[::-1]
