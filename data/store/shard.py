"""One shard: rows of many items of one stage under one recipe, in one immutable HDF5 file.

    /                      format, schema_version, stage, recipe_id, clip_len_s, index_crc32
    /recipe                the whole recipe, JSON bytes
    /items/ids             bytes, cut by id_offsets (N+1)
    /items/content         (N, 32) the 64 hex of the content
    /items/part, parts     (N,)
    /items/duration_s      (N,) NaN for items that are not on a grid
    /items/facts           JSON bytes, cut by fact_offsets (N+1)
    /items/crc32           (N,) of everything of an item
    /items/clip_offsets    (N+1) cuts /timestamps
    /timestamps            (clips, 2) start and end of each clip in seconds
    /arrays/<stream>       the rows of all items, one after the other
    /offsets/<stream>      (N+1) cuts them
    /texts/<text>/bytes    UTF-8, cut by string_offsets (K+1); item_offsets (N+1) cuts the strings

All is contiguous, uncompressed, little-endian; nothing has variable length. Headers and small
tables lie in front of the large arrays
(specs/pipeline_and_shards.md §4 has the measurements). Offsets count rows, bytes or strings.
`index_crc32` covers the small tables and the shapes of the large arrays and is checked when a
shard is opened; the CRC32 of an item is checked when it is read for the first time. The name of
the file carries its sha256, which `verify` checks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.errors import StoreError
from data.grid import Grid
from data.identity import canonical_json
from data.store.item import EncodedItem, encode_item
from data.store.types import SCHEMA_VERSION, Recipe, Row

__all__ = [
    "FORMAT",
    "Shape",
    "build_shard",
    "empty_layout",
    "encode_shard",
    "index_crc32",
    "is_table",
]

FORMAT = "storyline-shard"
_BLOCK_BYTES = 8 << 20
"""Rows are handed to HDF5 in blocks of about this size: fewer calls, little extra memory."""


def encode_shard(recipe: Recipe, rows: Iterable[Row]) -> bytes:
    """The bytes of a shard: the same rows in the same order give the same bytes.

    Raises:
        StoreError: a row that does not fit the schema of the recipe; names item and stream.
    """
    return build_shard(recipe, [encode_item(row, recipe.schema, recipe.stage) for row in rows])


def build_shard(recipe: Recipe, items: Sequence[EncodedItem]) -> bytes:
    """As `encode_shard`, for rows that were checked before."""
    tables = _tables(recipe, items)
    pieces = _pieces(recipe, items)
    shapes = {name: _stacked_shape(parts, empty) for name, (parts, empty) in pieces.items()}
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "stage": recipe.stage,
        "recipe_id": recipe.id,
        "clip_len_s": _common_clip_len(recipe, items),
    }
    attributes["index_crc32"] = index_crc32(attributes, tables, shapes)
    # 1.10's format is readable by all HDF5 of the last ten years and has a consistency flag.
    with h5py.File.in_memory(libver="v110") as file:
        for name, value in attributes.items():
            file.attrs[name] = _plain_attribute(value)
        # libhdf5 gives data its place when it is first written: all headers lie in front, then the
        # tables, then the large arrays. So few requests open a shard of an object store.
        for name, table in tables.items():
            file.create_dataset(name, table.shape, table.dtype, track_times=False)
        for name, (shape, dtype) in shapes.items():
            file.create_dataset(name, shape, dtype, track_times=False)
        file.flush()  # gives the indexes of large groups their place
        for name, table in tables.items():
            file[name][...] = table
        for name, (parts, _) in pieces.items():
            start = 0
            for block in _blocks(parts):
                file[name][start : start + len(block)] = block
                start += len(block)
        file.flush()
        return bytes(file.id.get_file_image())


def _plain_attribute(value: str | float) -> Any:
    if isinstance(value, str):
        return np.bytes_(value)  # a str would become a variable-length string
    return np.float64(value) if isinstance(value, float) else np.int64(value)


def _common_clip_len(recipe: Recipe, items: Sequence[EncodedItem]) -> float:
    lengths = {item.clip_len_s for item in items if item.grid_clips}
    if len(lengths) > 1:
        raise StoreError(
            f"stage '{recipe.stage}': rows of one shard have clips of {sorted(lengths)} seconds; "
            "a store has one clip length"
        )
    return lengths.pop() if lengths else float("nan")


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))]).astype(np.int64)


def _bytes(blob: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(blob, np.uint8)


def _tables(recipe: Recipe, items: Sequence[EncodedItem]) -> dict[str, NDArray[Any]]:
    ids = [item.key.id.encode() for item in items]
    contents = b"".join(bytes.fromhex(item.key.content) for item in items)
    tables: dict[str, NDArray[Any]] = {
        "recipe": _bytes(canonical_json(recipe.to_json()).encode()),
        "items/ids": _bytes(b"".join(ids)),
        "items/id_offsets": _offsets(map(len, ids)),
        "items/content": _bytes(contents).reshape(len(items), 32),
        "items/part": np.array([item.key.part for item in items], np.int32),
        "items/parts": np.array([item.key.parts for item in items], np.int32),
        "items/duration_s": np.array([item.duration_s for item in items], np.float64),
        "items/facts": _bytes(b"".join(item.facts for item in items)),
        "items/fact_offsets": _offsets(len(item.facts) for item in items),
        "items/crc32": np.array([item.crc32 for item in items], np.uint32),
        "items/clip_offsets": _offsets(map(_own_clips, items)),
    }
    for name in sorted(recipe.schema.arrays):
        tables[f"offsets/{name}"] = _offsets(len(item.arrays[name]) for item in items)
    for name in sorted(recipe.schema.texts):
        lengths = [item.texts[name].lengths for item in items]
        tables[f"texts/{name}/string_offsets"] = _offsets(
            np.concatenate([np.zeros(0, np.int64), *lengths]).tolist()
        )
        tables[f"texts/{name}/item_offsets"] = _offsets(map(len, lengths))
    return tables


def _own_clips(item: EncodedItem) -> int:
    """The grid of an item that is kept in parts is written once, with its first part."""
    return item.grid_clips if item.key.part == 0 else 0


_Pieces = tuple[Iterable[NDArray[Any]], NDArray[Any]]
"""Arrays to stack, and an empty one that says shape and type when there are none."""


def _pieces(recipe: Recipe, items: Sequence[EncodedItem]) -> dict[str, _Pieces]:
    pieces: dict[str, _Pieces] = {
        "timestamps": (
            [Grid(i.duration_s, i.clip_len_s).spans_s for i in items if _own_clips(i)],
            np.empty((0, 2), np.float64),
        )
    }
    for name, spec in sorted(recipe.schema.arrays.items()):
        empty = np.empty((0, *spec.shape), spec.dtype)
        pieces[f"arrays/{name}"] = ([item.arrays[name] for item in items], empty)
    for name in sorted(recipe.schema.texts):
        blobs = [_bytes(item.texts[name].data) for item in items]
        pieces[f"texts/{name}/bytes"] = (blobs, np.empty(0, np.uint8))
    return pieces


Shape = tuple[tuple[int, ...], str]
"""Shape and type of a whole dataset."""


def _stacked_shape(parts: Iterable[NDArray[Any]], empty: NDArray[Any]) -> Shape:
    return (sum(map(len, parts)), *empty.shape[1:]), empty.dtype.str


def _blocks(parts: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    waiting: list[NDArray[Any]] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += part.nbytes
        if size >= _BLOCK_BYTES:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def index_crc32(
    attributes: Mapping[str, Any],
    tables: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, Shape],
) -> int:
    """CRC32 of the attributes, of the small tables and of the shapes of the large arrays."""
    described = {name: repr(value) for name, value in attributes.items() if name != "index_crc32"}
    crc = zlib.crc32(canonical_json([described, shapes]).encode())
    for name in sorted(tables):
        table = tables[name]
        crc = zlib.crc32(f"{name}|{table.dtype.str}|{table.shape}|".encode(), crc)
        crc = zlib.crc32(table.tobytes(), crc)
    return crc


def is_table(name: str) -> bool:
    """Whether `index_crc32` covers the bytes of a dataset, not only its shape."""
    return not (name == "timestamps" or name.startswith("arrays/") or name.endswith("/bytes"))


def empty_layout(recipe: Recipe) -> dict[str, NDArray[Any]]:
    """What a shard of a recipe holds: every dataset by name, without rows."""
    return _tables(recipe, []) | {name: empty for name, (_, empty) in _pieces(recipe, []).items()}
