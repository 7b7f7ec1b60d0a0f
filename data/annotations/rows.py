"""What holds for the rows of every annotation file, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable

from data.annotations.formats import Record
from data.annotations.types import Annotation
from data.errors import UsageError

__all__ = ["checked", "form_of"]

_NAMES = ("windows", "clip_ids", "saliency")


def checked(records: Iterable[Record]) -> list[Annotation]:
    """All rows of a file.

    Raises:
        UsageError: a row of wrong form; a qid that came before; a row with ground truth among
            rows without, or the other way round.
    """
    rows: list[Annotation] = []
    first: dict[tuple[type, int | str], str] = {}
    for record in records:
        row = record.annotation()
        qid = (type(row.qid), row.qid)
        if qid in first:
            raise UsageError(
                f"{record.where}: qid {row.qid!r} came before, in {first[qid]}; every query needs "
                "its own"
            )
        first[qid] = record.where
        if rows and form_of(row) != form_of(rows[0]):
            raise UsageError(
                f"{record.where}: has {sorted(form_of(row)) or 'no ground truth'}, the rows before "
                f"have {sorted(form_of(rows[0])) or 'none'}; a file is with ground truth or without"
            )
        rows.append(row)
    return rows


def form_of(row: Annotation) -> set[str]:
    """Which ground truth a row has."""
    return {name for name in _NAMES if getattr(row, name) is not None}
