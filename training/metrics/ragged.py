"""Lists of different lengths, one per query, as one flat array: what the metrics compute on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ragged"]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Args:
        flat: (M, ...) float64, all values, row after row.
        counts: (Q,) int64, how many values each row has; they sum to M.
    """

    flat: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]], shape: tuple[int, ...] = ()) -> Ragged:
        """Rows of values of the given shape, e.g. `(2,)` for windows."""
        flat = np.asarray([value for row in rows for value in row], np.float64)
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(flat.reshape(-1, *shape), counts)

    @property
    def row(self) -> NDArray[np.int64]:
        """(M,) the row of each value."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def place(self) -> NDArray[np.int64]:
        """(M,) the place of each value in its row."""
        starts = np.cumsum(self.counts) - self.counts
        return np.arange(len(self.flat)) - starts[self.row]

    def where(self, keep: NDArray[np.bool_]) -> Ragged:
        """The rows with only those values that `keep` (M,) marks."""
        counts = np.bincount(self.row[keep], minlength=len(self.counts))
        return Ragged(self.flat[keep], counts.astype(np.int64))

    def rows(self, keep: NDArray[np.bool_]) -> Ragged:
        """Only the rows that `keep` (Q,) marks."""
        return Ragged(self.flat[keep[self.row]], self.counts[keep])

    def ordered(self, keys: NDArray[np.float64]) -> Ragged:
        """The values of each row by ascending `keys` (M,); equal keys keep their order."""
        return Ragged(self.flat[np.lexsort((keys, self.row))], self.counts)

    def argmax(self) -> NDArray[np.int64]:
        """(Q,) place of the highest value in its row, the first among equals; -1 in empty rows."""
        highest = np.full(len(self.counts), -np.inf)
        np.maximum.at(highest, self.row, self.flat)
        found = np.flatnonzero(self.flat == highest[self.row])
        place = np.full(len(self.counts), -1, np.int64)
        # written last to first, so that the first stays
        place[self.row[found][::-1]] = self.place[found][::-1]
        return place

    def padded(self, width: int | None = None, fill: float = 0.0) -> NDArray[np.float64]:
        """(Q, width, ...) with `fill` after the end of each row; longer rows are cut.

        Args:
            width: length of every row; the longest row's by default.
            fill: value of the padding.
        """
        width = int(self.counts.max(initial=0)) if width is None else width
        out = np.full((len(self.counts), width, *self.flat.shape[1:]), fill)
        row, place = self.row, self.place
        inside = place < width
        out[row[inside], place[inside]] = self.flat[inside]
        return out

    def mask(self, width: int | None = None) -> NDArray[np.bool_]:
        """(Q, width) bool, True where `padded` holds a value of the row."""
        width = int(self.counts.max(initial=0)) if width is None else width
        return np.arange(width) < self.counts[:, None]
