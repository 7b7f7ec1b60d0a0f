"""One row on its way into a shard: checked against the schema, with the CRC32 that guards it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import StoreError
from data.identity import canonical_json, check_id
from data.store.types import ItemKey, Row, Schema, StreamSpec

__all__ = ["ITEM_BYTES", "EncodedItem", "Text", "encode_item", "item_crc32"]

ITEM_BYTES = 150
"""About what the tables of a shard hold for one item."""

_CONTENT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Text:
    """A list of strings as bytes.

    Args:
        lengths: bytes of each string, int64, shape (k,).
        data: all strings, UTF-8, one after the other.
    """

    lengths: NDArray[np.int64]
    data: bytes

    @staticmethod
    def of(strings: Sequence[str]) -> Text:
        """Encode; UnicodeEncodeError for a lone surrogate."""
        encoded = [each.encode() for each in strings]
        return Text(np.array([len(each) for each in encoded], np.int64), b"".join(encoded))

    def strings(self) -> list[str]:
        """Decode."""
        ends = np.cumsum(self.lengths).tolist()
        starts = [0, *ends][:-1]
        return [self.data[a:b].decode() for a, b in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class EncodedItem:
    """A checked row, ready to be written. `grid_clips` is 0 for items that are not on a grid."""

    key: ItemKey
    duration_s: float
    clip_len_s: float
    grid_clips: int
    facts: bytes
    arrays: Mapping[str, NDArray[Any]]
    texts: Mapping[str, Text]
    crc32: int

    @property
    def size_bytes(self) -> int:
        """About how much it adds to a shard."""
        arrays = sum(array.nbytes for array in self.arrays.values())
        texts = sum(len(text.data) + text.lengths.nbytes for text in self.texts.values())
        return arrays + texts + len(self.facts) + 16 * self.grid_clips + ITEM_BYTES


def encode_item(row: Row, schema: Schema, stage: str) -> EncodedItem:
    """Check a row against what its stage declared.

    Raises:
        StoreError: naming stage, item and stream: wrong name, shape, dtype or number of rows,
            a value that is not finite, facts that are not plain JSON.
    """
    where = f"stage '{stage}', item '{row.key.id}'"
    _check_key(row.key, where)
    _check_names("array", row.arrays, schema.arrays, where)
    _check_names("text", row.texts, schema.texts, where)
    grid = row.grid
    rows = grid.n if grid is not None and row.key.parts == 1 else None
    arrays = {}
    for name, spec in schema.arrays.items():
        arrays[name] = _checked(row[name], spec, rows, f"{where}, stream '{name}'")
        if spec.per == "clip" and grid is None:
            raise StoreError(f"{where}: stream '{name}' is per clip, but the row has no grid")
    try:
        texts = {name: Text.of(row.texts[name]) for name in schema.texts}
        facts = canonical_json(dict(row.facts)).encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"{where}: facts or texts cannot be written: {error}") from error
    duration_s = grid.duration_s if grid is not None else float("nan")
    return EncodedItem(
        key=row.key,
        duration_s=duration_s,
        clip_len_s=grid.clip_len_s if grid is not None else float("nan"),
        grid_clips=grid.n if grid is not None else 0,
        facts=facts,
        arrays=arrays,
        texts=texts,
        crc32=item_crc32(row.key, duration_s, facts, arrays, texts),
    )


def item_crc32(
    key: ItemKey,
    duration_s: float,
    facts: bytes,
    arrays: Mapping[str, NDArray[Any]],
    texts: Mapping[str, Text],
) -> int:
    """CRC32 of everything of an item, names, types and shapes included."""
    head = f"{key.id}|{key.content}|{key.part}|{key.parts}|{float(duration_s).hex()}|{len(facts)}|"
    crc = zlib.crc32(facts, zlib.crc32(head.encode()))
    for name in sorted(arrays):
        array = arrays[name]
        crc = zlib.crc32(f"{name}|{array.dtype.str}|{array.shape}|".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    for name in sorted(texts):
        text = texts[name]
        crc = zlib.crc32(f"{name}|{len(text.lengths)}|".encode(), crc)
        crc = zlib.crc32(text.data, zlib.crc32(text.lengths.tobytes(), crc))
    return crc


def _check_key(key: ItemKey, where: str) -> None:
    check_id(key.id, what="item id")
    if not _CONTENT.fullmatch(key.content):
        raise StoreError(f"{where}: content must be 64 hex digits, got {key.content!r}")
    if not 0 <= key.part < key.parts:
        raise StoreError(f"{where}: part {key.part} of {key.parts} does not exist")


def _check_names(kind: str, given: Any, declared: Any, where: str) -> None:
    if set(given) != set(declared):
        raise StoreError(
            f"{where}: has the {kind}s {sorted(given)}, its stage declares {sorted(declared)}"
        )


def _checked(array: NDArray[Any], spec: StreamSpec, rows: int | None, where: str) -> NDArray[Any]:
    if array.dtype != np.dtype(spec.dtype) or array.shape[1:] != spec.shape or array.ndim == 0:
        raise StoreError(
            f"{where}: has shape {array.shape} and type {array.dtype}, "
            f"declared (rows, *{spec.shape}) of {spec.dtype}"
        )
    if spec.per == "clip" and rows is not None and len(array) != rows:
        raise StoreError(f"{where}: has {len(array)} rows on a grid of {rows} clips")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise StoreError(
            f"{where}: {bad} values are not finite (NaN or infinite); nothing was written"
        )
    # A stage may reuse its buffers while the row waits for its shard: keep an own copy.
    return np.array(array, order="C", copy=True)
