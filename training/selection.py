"""Which queries of a store a run works on: the rows of a split, a subset, or what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from data.annotations import dataset_of
from data.annotations.types import Annotation
from data.errors import UsageError, nearest, some
from data.store import Store

__all__ = ["HELD_OUT", "chosen", "is_held_out", "rows_of"]

HELD_OUT = "held_out"
"""Name of the split that `data.hold_out` takes from the training split."""

PARTS = 2**64


def rows_of(
    store: Store, split: str, train: str, hold_out: float, where: Mapping[str, Any], option: str
) -> list[Annotation]:
    """The queries of a split that are wanted, as the store has them.

    Args:
        store: the store.
        split: a split of the store, or `held_out`.
        train: the split that is trained on.
        hold_out: share of its videos that is not trained on.
        where: see `chosen`.
        option: the name of `where` for messages.

    Raises:
        UsageError: no such split, nothing is held out, or `where` chooses nothing.
    """
    splits = store.splits()
    if hold_out and split == HELD_OUT and HELD_OUT in splits:
        raise UsageError(
            f"data.hold_out={hold_out:g}: {store.path} has a split '{HELD_OUT}' of its own; score "
            "on that one with data.hold_out=0, or give it another name"
        )
    if hold_out and split in (HELD_OUT, train):
        rows = _divided(store, split, train, hold_out)
    elif split in splits:
        rows = store.annotations(split)
    else:
        raise UsageError(_no_split(store, split, train))
    return chosen(rows, where, option, split)


def _divided(store: Store, split: str, train: str, hold_out: float) -> list[Annotation]:
    """The training rows that are held out, or the others."""
    source_of, wanted = dataset_of(store.dataset).source_of, split == HELD_OUT
    rows = [
        row
        for row in store.annotations(train)
        if is_held_out(source_of(row.video_id), hold_out) == wanted
    ]
    if not rows:
        raise UsageError(
            f"data.hold_out={hold_out:g} leaves no video in '{split}'; choose another share"
        )
    return rows


def _no_split(store: Store, split: str, train: str) -> str:
    splits = store.splits()
    there = f"'{split}' is no split of {store.path}; {nearest(split, splits)}"
    if split == train:
        return f"data.train: {there}"
    return (
        f"{there}. Name one of them (eval.split or --split), or take some videos of '{train}' "
        f"with data.hold_out=0.1: they are split '{HELD_OUT}'"
    )


def is_held_out(source: str, share: float) -> bool:
    """Whether a recording is held out: a function of its id alone, as far as the share goes.

    A larger share holds out the same recordings and more, and videos that are added move none.
    """
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * PARTS


def chosen(
    rows: Sequence[Annotation], where: Mapping[str, Any], option: str, split: str
) -> list[Annotation]:
    """The rows whose other fields have the wanted values.

    Args:
        rows: of a split.
        where: value, or list of allowed values, by field of `Annotation.extra`; all must hold. A
            field that is a list or an object has each of its members or keys as a value.
        option: its name for messages.
        split: for messages.

    Raises:
        UsageError: no row has the field, or none the value; lists what there is.
    """
    found = list(rows)
    for field, wanted in where.items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        for value in allowed:
            _check(rows, field, value, option, split)
        found = [row for row in found if any(v in allowed for v in _values(row, field))]
    if not found:
        raise UsageError(f"{option}: no row of split '{split}' has all of {dict(where)}")
    return found


def _check(rows: Sequence[Annotation], field: str, value: Any, option: str, split: str) -> None:
    fields = {name for row in rows for name in row.extra}
    if field not in fields:
        there = nearest(field, fields) if fields else "its rows have no fields of their own"
        raise UsageError(f"{option}: no row of split '{split}' has a field '{field}'; {there}")
    given = [each for row in rows for each in _values(row, field)]
    if value not in given:
        there = some(sorted({str(each) for each in given}), 20)
        raise UsageError(
            f"{option}: no row of split '{split}' has {field} = {value!r}; there are: {there}"
        )


def _values(row: Annotation, field: str) -> list[Any]:
    """What a field of a row says: itself, or what it holds."""
    value = row.extra.get(field)
    if isinstance(value, list | dict):
        return list(value)
    return [] if value is None else [value]
