"""What LMR published of C-QVal, and what follows from it.

"Context-Enhanced Video Moment Retrieval with Large Language Models" (LMR),
https://arxiv.org/abs/2405.12540, Sec. IV-D and Table IV. No list of queries was published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "DATASET",
    "PUBLISHED_SIZES",
    "TABLE_IV",
    "THRESHOLDS",
    "Threshold",
    "deltas",
    "is_published_split",
]


DATASET = "qvhighlights"
"""Whose val split C-QVal is made of."""


class Threshold(NamedTuple):
    """Least numbers of clauses and words of the queries of one split."""

    clauses: int
    words: int

    def __str__(self) -> str:
        return f"({self.clauses},{self.words})"


THRESHOLDS = tuple(
    Threshold(clauses, words)
    for clauses, least in ((1, range(8, 17)), (2, range(8, 11)))
    for words in least
)
"""The twelve columns of Table IV, in its order."""

PUBLISHED_SIZES = (388, 353, 305, 266, 226, 188, 153, 125, 87, 50, 49, 48)
"""Queries of each split. Not printed: the only sizes from 48 to 388, as the paper says, that make
both R1@0.7 of each column whole hits and by which no two columns differ by more queries or hits
than val has queries of that length (specs/tea_lmr_cqval_splits.md §4.2)."""

TABLE_IV: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "R1@0.7": {
        "QD-DETR": (
            *(46.39, 45.89, 44.59, 43.61, 44.69, 42.55, 44.44, 44.00, 37.93),
            *(50.00, 51.02, 50.00),
        ),
        "LMR": (
            *(54.12, 52.97, 52.46, 53.01, 53.98, 53.72, 52.94, 52.80, 51.72),
            *(54.00, 55.10, 54.17),
        ),
    },
    "mAP@0.7": {
        "QD-DETR": (
            *(43.96, 43.54, 41.94, 39.92, 41.06, 40.72, 42.68, 40.95, 34.86),
            *(45.24, 46.17, 46.09),
        ),
        "LMR": (
            *(50.15, 49.01, 48.58, 47.25, 48.50, 49.08, 49.58, 48.91, 45.16),
            *(52.95, 54.03, 54.12),
        ),
    },
}
"""Percent, by metric and model, in the order of `THRESHOLDS`."""

_VAL_QUERIES = 1550
_VAL_LONG = {8: 1149, 9: 973, 10: 805, 11: 653, 12: 519, 13: 399, 14: 308, 15: 240, 16: 178}
"""Queries of QVHighlights val with at least so many words (specs/tea_lmr_cqval_splits.md §4.2)."""


def is_published_split(queries: Sequence[str]) -> bool:
    """Whether these are the queries of QVHighlights val, of which the sizes were published.

    Told by how many there are of each length, so that neither the order of rows nor the way in
    which the file is written matters.
    """
    words = [len(each.split()) for each in queries]
    return len(words) == _VAL_QUERIES and all(
        sum(each >= least for each in words) == count for least, count in _VAL_LONG.items()
    )


def deltas(sizes: Sequence[int]) -> tuple[int, ...]:
    """How many queries more (or fewer, negative) than published each split has."""
    return tuple(size - there for size, there in zip(sizes, PUBLISHED_SIZES, strict=True))
