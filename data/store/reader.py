"""Reading the rows of one stage under one recipe, from all shards of its folder."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import GoneError, StoreError
from data.grid import Grid
from data.store.hdf5 import OpenFile
from data.store.shard_reader import Shard
from data.store.types import ItemKey, Recipe, Row

__all__ = ["FilePool", "Problem", "StageReader", "shard_paths"]

T = TypeVar("T")

_SHARD = re.compile(r"shard-[0-9a-f]{16}\.h5")


def shard_paths(folder: Path) -> list[Path]:
    """The complete shards of a folder in name order; temporary files are not shards."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))


@dataclass(frozen=True)
class Problem:
    """Something in a store that cannot be trusted.

    Args:
        kind: `shard`, `item`, `recipe`, `grid`, `duplicate`, `catalogue` or `annotations`.
        where: file, or stage and id.
        message: a sentence that says what is wrong and what to do.
    """

    kind: str
    where: str
    message: str


class FilePool:
    """The most recently used open files.

    Forked processes may use the same pool: files are read by place, not by position. A pickled
    pool opens its files anew. A file that another thread still reads is closed after that.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._open: OrderedDict[Path, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> OpenFile:
        """The file, open for reading; StoreError if it cannot be opened."""
        with self._lock:
            file = self._open.pop(path, None) or OpenFile(path)
            self._open[path] = file
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return file

    def __reduce__(self) -> tuple[type[FilePool], tuple[int]]:
        return FilePool, (self._most,)


class StageReader:
    """All rows of one stage under one recipe. The first shard in name order wins a duplicate.

    Only item tables are read when it is made; rows are read when asked for, and checked against
    their CRC32 the first time. It may be used in forked processes and may be pickled.

    Args:
        folder: `<store>/<stage>/<recipe_id>`.
        recipe: the recipe of the folder; None takes it from the shards, if there are any.
        contents: current content of each video, asked for only when several are stored.
        strict: False skips shards that cannot be trusted and lists them in `problems`.

    Raises:
        StoreError: a shard that is torn, damaged or foreign (with `strict`).
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe | None,
        contents: Callable[[], Mapping[str, str]],
        *,
        strict: bool = True,
    ) -> None:
        self.stage, self.recipe_id = folder.parent.name, folder.name
        self._recipe = recipe
        self.problems: list[Problem] = []
        self._read_contents = contents
        self._contents: Mapping[str, str] | None = None
        self._where: dict[ItemKey, tuple[Shard, int]] = {}
        self._versions: dict[str, list[ItemKey]] = {}
        self._folder, self._strict, self._files = folder, strict, FilePool()
        self._shards: dict[Path, Shard] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were added or taken away since; those that stayed stay open.

        Raises:
            StoreError: as when the reader was made.
        """
        paths = shard_paths(self._folder)
        self._shards = {path: self._shards[path] for path in paths if path in self._shards}
        self._where, self._versions, self.problems = {}, {}, []
        for path in paths:
            try:
                self._add(path)
            except GoneError:
                continue
            except StoreError as error:
                if self._strict:
                    raise
                self.problems.append(Problem("shard", str(path), str(error)))
        for key in self._where:
            if key.part == 0 and self._complete(key):
                self._versions.setdefault(key.id, []).append(key)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the rows; StoreError if nothing was written under it yet."""
        if self._recipe is None:
            raise StoreError(
                f"stage '{self.stage}' was not run with recipe {self.recipe_id}; "
                f"run `pipeline run --stage {self.stage}`"
            )
        return self._recipe

    def keys(self) -> frozenset[ItemKey]:
        """The keys of all rows that are present, part by part."""
        return frozenset(self._where)

    def ids(self) -> list[str]:
        """Ids with all parts of some content present, sorted."""
        return sorted(self._versions)

    def row(self, id: str, content: str | None = None) -> Row:
        """The row of an item, its parts joined: rows and texts one after the other.

        `facts` are those of the row; of an item in several parts `{"parts": [facts, ...]}`.

        Args:
            id: video or query id.
            content: which content; None is the one in the catalogue if several are stored.

        Raises:
            StoreError: there is no such row, or it is damaged.
        """
        rows = self._read(id, content, lambda shard, index: shard.row(index))
        return rows[0] if len(rows) == 1 else self._join(rows)

    def array(self, id: str, name: str, content: str | None = None) -> NDArray[Any]:
        """One array of `row`, without reading the others."""
        if name not in self.recipe.schema.arrays:
            known = ", ".join(sorted(self.recipe.schema.arrays)) or "none"
            raise StoreError(f"stage '{self.stage}' has no array '{name}'; it has: {known}")
        arrays = self._read(id, content, lambda shard, index: shard.array(index, name))
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def facts(self, id: str, content: str | None = None) -> Mapping[str, Any]:
        """The facts of `row`, without reading arrays."""
        return _join_facts([shard.facts(index) for shard, index in self._places(id, content)])

    def key(self, id: str) -> ItemKey:
        """Which content `row(id)` gives, as the key of its first part."""
        shard, index = self._places(id, None)[0]
        return shard.keys[index]

    def grid(self, id: str) -> Grid | None:
        """The clips of an item, None if it is not on a grid; reads nothing."""
        shard, index = self._places(id, None)[0]
        return shard.grid(index)

    def length(self, id: str, name: str) -> int:
        """How many rows `array(id, name)` has; reads nothing."""
        return sum(shard.length(index, name) for shard, index in self._places(id, None))

    def __contains__(self, id: object) -> bool:
        return id in self._versions

    def __len__(self) -> int:
        return len(self._versions)

    def _add(self, path: Path) -> None:
        shard = self._shards.get(path) or Shard(path, self._files)
        if (shard.recipe.stage, shard.recipe.id) != (self.stage, self.recipe_id):
            raise StoreError(
                f"shard {shard.path} belongs to {shard.recipe.stage}/{shard.recipe.id}; "
                "it was put in the wrong folder: move it back"
            )
        self._shards[path] = shard
        self._recipe = self._recipe or shard.recipe
        for index, key in enumerate(shard.keys):
            self._where.setdefault(key, (shard, index))

    def _complete(self, first: ItemKey) -> bool:
        others = (replace(first, part=part) for part in range(1, first.parts))
        return all(key in self._where for key in others)

    def _places(self, id: str, content: str | None) -> list[tuple[Shard, int]]:
        first = self._choose(id, content)
        return [self._where[replace(first, part=part)] for part in range(first.parts)]

    def _read(self, id: str, content: str | None, read: Callable[[Shard, int], T]) -> list[T]:
        """`read` of every part; once more if a shard was replaced meanwhile (compact, repair)."""
        try:
            return [read(shard, index) for shard, index in self._places(id, content)]
        except GoneError:
            self.refresh()
        return [read(shard, index) for shard, index in self._places(id, content)]

    def _choose(self, id: str, content: str | None) -> ItemKey:
        versions = self._versions.get(id, [])
        if content is None and len({key.content for key in versions}) > 1:
            self._contents = self._contents or self._read_contents()
            content = self._contents.get(id)
        wanted = [key for key in versions if content is None or key.content == content]
        if not wanted or len({key.content for key in wanted}) > 1:
            raise StoreError(
                f"stage '{self.stage}' (recipe {self.recipe_id}) has no row for '{id}'"
                + (f" with its present content ({len(versions)} others)" if versions else "")
                + f"; run `pipeline run --stage {self.stage}`"
            )
        return min(wanted, key=lambda key: key.parts)

    def _join(self, rows: Sequence[Row]) -> Row:
        first, schema = rows[0], self.recipe.schema
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in schema.arrays}
        for name, spec in schema.arrays.items():
            clips = first.grid.n if first.grid else 0
            if spec.per == "clip" and len(arrays[name]) != clips:
                raise StoreError(
                    f"stage '{self.stage}', item '{first.key.id}': its {len(rows)} parts have "
                    f"{len(arrays[name])} rows of '{name}' together, on a grid of {clips} clips"
                )
        return Row(
            key=first.key,
            grid=first.grid,
            arrays=arrays,
            texts={
                name: [text for row in rows for text in row.texts[name]] for name in schema.texts
            },
            facts=_join_facts([row.facts for row in rows]),
        )


def _join_facts(facts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return facts[0] if len(facts) == 1 else {"parts": list(facts)}
