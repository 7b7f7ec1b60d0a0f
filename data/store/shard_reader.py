"""Opening a shard that may be torn, damaged or a stranger's, and reading its items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.errors import DamageError, StoreError, UsageError
from data.foreign import strict_json
from data.grid import Grid
from data.identity import check_id
from data.store.hdf5 import Extent, Layout
from data.store.item import ITEM_BYTES, EncodedItem, Text, item_crc32
from data.store.place import Place
from data.store.recipes import check_schema_version, recipe_from_json
from data.store.remote_shard import ShardFile
from data.store.shard import FORMAT, empty_layout, index_crc32, is_table
from data.store.types import ItemKey, Recipe, Row

__all__ = ["Files", "Shard"]


class Files(Protocol):
    """Gives open files by path; decides how many stay open."""

    def get(self, path: Place) -> ShardFile:
        """The file, open for reading."""
        ...


@dataclass(frozen=True)
class _TextTable:
    item_offsets: NDArray[np.int64]
    string_offsets: NDArray[np.int64]
    data: Extent


class Shard:
    """An opened shard: its item table is in memory, its rows are read when asked for.

    Args:
        path: the file.
        files: where open files come from.

    Raises:
        DamageError: torn, damaged or foreign.
        StoreError: of another schema version, or it cannot be read.
        GoneError: there is no such file.
    """

    def __init__(self, path: Place, files: Files) -> None:
        self.path = path
        self._files = files
        file = files.get(path)
        layout = file.layout()
        self._demand(layout.attributes.get("format") == FORMAT, "is not a shard of a store")
        check_schema_version(layout.attributes.get("schema_version"), f"shard {path}")
        tables = self._read_tables(file, layout)
        self.recipe = self._read_recipe(layout, tables)
        self.clip_len_s = float(layout.attributes["clip_len_s"])
        self._read_items(tables)
        self._read_grids(layout, tables)
        self._read_streams(layout, tables)
        self._checked = bytearray(len(self.keys))

    def row(self, index: int) -> Row:
        """One item; its CRC32 is checked when it is read for the first time.

        Raises:
            DamageError: naming shard and item, if what was read is not what was written.
        """
        arrays, raw = self._read(index)
        try:
            texts = {name: text.strings() for name, text in raw.items()}
        except UnicodeDecodeError:
            raise self._error(f"holds texts of '{self.keys[index].id}' amiss") from None
        return Row(self.keys[index], self.grid(index), arrays, texts, self.facts(index))

    def array(self, index: int, name: str) -> NDArray[Any]:
        """One array of one item, checked as in `row`."""
        if not self._checked[index]:
            return self._read(index)[0][name]
        return self._array(self._files.get(self.path), index, name)

    def length(self, index: int, name: str) -> int:
        """How many rows one array of one item has."""
        start, stop = _cut(self._arrays[name][0], index)
        return stop - start

    def facts(self, index: int) -> dict[str, Any]:
        """The facts of one item."""
        return self._json(self._fact_bytes(index), f"facts of '{self.keys[index].id}'")

    def grid(self, index: int) -> Grid | None:
        """The clips of one item; None if it is not on a grid."""
        duration_s = float(self.durations_s[index])
        return None if np.isnan(duration_s) else Grid(duration_s, self.clip_len_s)

    def crc32(self, index: int) -> int:
        """What the CRC32 of an item must be."""
        return int(self._crc32[index])

    def encoded(self, index: int) -> EncodedItem:
        """One item as it goes into another shard, byte for byte.

        Raises:
            DamageError: as `row`; it is read anew even if it was checked before.
        """
        self._checked[index] = False
        arrays, texts = self._read(index)
        grid = self.grid(index)
        return EncodedItem(
            key=self.keys[index],
            duration_s=float(self.durations_s[index]),
            clip_len_s=grid.clip_len_s if grid is not None else float("nan"),
            grid_clips=grid.n if grid is not None else 0,
            facts=self._fact_bytes(index),
            arrays=arrays,
            texts=texts,
            crc32=self.crc32(index),
        )

    def size_bytes(self, index: int) -> int:
        """About how much one item adds to a shard; reads nothing."""
        # Not what its duration says, which a stranger may have made as long as he likes.
        first, last = _cut(self._clip_offsets, index)
        size = len(self._fact_bytes(index)) + 16 * (last - first) + ITEM_BYTES
        for name, (_, extent) in self._arrays.items():
            size += self.length(index, name) * extent.row_bytes
        for text in self._texts.values():
            first, last = _cut(text.item_offsets, index)
            strings = text.string_offsets
            size += int(strings[last] - strings[first]) + 8 * (last - first)
        return size

    def check(self, index: int) -> None:
        """Read all of one item, its timestamps too; DamageError if it is damaged."""
        self._checked[index] = False
        self._read(index)
        grid = self.grid(index)
        start, stop = _cut(self._clip_offsets, index)
        if grid is not None and stop > start:
            found = self._files.get(self.path).read(self._timestamps, start, stop)
            whole = np.array_equal(found, grid.spans_s)
            self._demand(whole, f"has damaged timestamps of '{self.keys[index].id}'")

    def _read_tables(self, file: ShardFile, layout: Layout) -> dict[str, NDArray[Any]]:
        """The small datasets, after the check that none of them has a flipped bit."""
        tables = file.tables(
            {name: extent for name, extent in layout.extents.items() if is_table(name)}
        )
        large = {
            name: (extent.shape, extent.dtype.str)
            for name, extent in layout.extents.items()
            if not is_table(name)
        }
        crc = index_crc32(layout.attributes, tables, large)
        self._demand(layout.attributes.get("index_crc32") == crc, "has a damaged item table")
        return tables

    def _read_recipe(self, layout: Layout, tables: Mapping[str, NDArray[Any]]) -> Recipe:
        """The recipe inside; every dataset must be one that it declares, of that type."""
        self._demand("recipe" in tables, "carries no recipe")
        value = self._json(tables["recipe"].tobytes(), "recipe")
        try:
            recipe = recipe_from_json(value, "the recipe in it")
        except StoreError as error:
            raise self._error(f"carries no recipe of this version: {error}") from error
        expected = {
            name: (array.dtype.str, array.shape[1:]) for name, array in empty_layout(recipe).items()
        }
        found = {name: (e.dtype.str, e.shape[1:]) for name, e in layout.extents.items()}
        self._demand(found == expected, "holds other arrays than its recipe declares")
        named = (layout.attributes.get("stage"), layout.attributes.get("recipe_id"))
        self._demand(named == (recipe.stage, recipe.id), "carries another recipe than it names")
        clip_len = layout.attributes.get("clip_len_s")
        self._demand(isinstance(clip_len, float), "does not state its clip length")
        return recipe

    def _read_items(self, tables: Mapping[str, NDArray[Any]]) -> None:
        self._crc32 = tables["items/crc32"]
        count = len(self._crc32)
        for name in ("content", "part", "parts", "duration_s"):
            self._demand(len(tables[f"items/{name}"]) == count, f"has a wrong number of {name}")
        blob = tables["items/ids"].tobytes().decode("latin-1")
        cuts = self._offsets(tables["items/id_offsets"], count, len(blob)).tolist()
        hexes = tables["items/content"].tobytes().hex()
        parts = zip(tables["items/part"].tolist(), tables["items/parts"].tolist(), strict=True)
        try:
            self.keys = [
                ItemKey(check_id(blob[cuts[i] : cuts[i + 1]]), hexes[64 * i : 64 * i + 64], *part)
                for i, part in enumerate(parts)
            ]
        except UsageError as error:
            raise self._error(f"holds a forbidden id: {error}") from error
        self._demand(len(set(self.keys)) == count, "holds an item twice")
        self._demand(all(0 <= key.part < key.parts for key in self.keys), "has impossible parts")
        self._facts = tables["items/facts"].tobytes()
        self._fact_offsets = self._offsets(tables["items/fact_offsets"], count, len(self._facts))

    def _read_grids(self, layout: Layout, tables: Mapping[str, NDArray[Any]]) -> None:
        self.durations_s: NDArray[np.float64] = tables["items/duration_s"]
        on_grid = ~np.isnan(self.durations_s)
        sane = bool((np.abs(self.durations_s[on_grid]) < np.inf).all())
        self._demand(sane and not (self.durations_s < 0).any(), "has impossible durations")
        usable = 0 < self.clip_len_s < np.inf or not on_grid.any()
        self._demand(usable, f"has an impossible clip length of {self.clip_len_s} s")
        clips = np.maximum(1, np.floor(self.durations_s / self.clip_len_s + 0.5))
        self._clips = np.where(on_grid, clips, 0)
        self._timestamps = layout.extents["timestamps"]
        offsets = tables["items/clip_offsets"]
        self._clip_offsets = self._offsets(offsets, len(self.keys), self._timestamps.shape[0])
        first = tables["items/part"] == 0
        own = np.where(first, self._clips, 0)
        self._demand(bool((np.diff(offsets) == own).all()), "has timestamps amiss")

    def _read_streams(self, layout: Layout, tables: Mapping[str, NDArray[Any]]) -> None:
        count = len(self.keys)
        whole = np.array([key.parts == 1 for key in self.keys], bool)
        self._arrays: dict[str, tuple[NDArray[np.int64], Extent]] = {}
        for name, spec in self.recipe.schema.arrays.items():
            extent = layout.extents[f"arrays/{name}"]
            offsets = self._offsets(tables[f"offsets/{name}"], count, extent.shape[0])
            self._arrays[name] = (offsets, extent)
            if spec.per == "clip":
                same = bool((np.diff(offsets) == self._clips)[whole].all())
                self._demand(same, f"has another number of rows of '{name}' than clips")
        self._texts: dict[str, _TextTable] = {}
        for name in self.recipe.schema.texts:
            data = layout.extents[f"texts/{name}/bytes"]
            strings = tables[f"texts/{name}/string_offsets"]
            items = tables[f"texts/{name}/item_offsets"]
            self._texts[name] = _TextTable(
                self._offsets(items, count, len(strings) - 1),
                self._offsets(strings, len(strings) - 1, data.shape[0]),
                data,
            )

    def _read(self, index: int) -> tuple[dict[str, NDArray[Any]], dict[str, Text]]:
        file = self._files.get(self.path)
        arrays = {name: self._array(file, index, name) for name in self._arrays}
        texts = {name: _read_text(file, table, index) for name, table in self._texts.items()}
        if not self._checked[index]:
            key, duration_s = self.keys[index], float(self.durations_s[index])
            crc = item_crc32(key, duration_s, self._fact_bytes(index), arrays, texts)
            self._demand(crc == self.crc32(index), f"has damaged rows of '{key.id}'")
            self._checked[index] = True
        return arrays, texts

    def _array(self, file: ShardFile, index: int, name: str) -> NDArray[Any]:
        offsets, extent = self._arrays[name]
        return file.read(extent, *_cut(offsets, index))

    def _fact_bytes(self, index: int) -> bytes:
        start, stop = _cut(self._fact_offsets, index)
        return self._facts[start:stop]

    def _offsets(self, table: NDArray[Any], count: int, total: int) -> NDArray[np.int64]:
        """The table, if it cuts `total` rows into `count` pieces without gap or overlap."""
        right_length = count >= 0 and len(table) == count + 1
        ends = right_length and table[0] == 0 and table[-1] == total
        self._demand(bool(ends and (np.diff(table) >= 0).all()), "has offsets out of bounds")
        return table

    def _json(self, text: bytes, what: str) -> dict[str, Any]:
        try:
            value = strict_json(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._error(f"holds an unreadable {what}")
        return value

    def _demand(self, condition: bool, problem: str) -> None:
        if not condition:
            raise self._error(problem)

    def _error(self, problem: str) -> DamageError:
        return DamageError(str(self.path), problem)


def _cut(offsets: NDArray[np.int64], index: int) -> tuple[int, int]:
    return int(offsets[index]), int(offsets[index + 1])


def _read_text(file: ShardFile, table: _TextTable, index: int) -> Text:
    first, last = _cut(table.item_offsets, index)
    cuts = table.string_offsets[first : last + 1]
    return Text(np.diff(cuts), file.read(table.data, int(cuts[0]), int(cuts[-1])).tobytes())
