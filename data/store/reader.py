"""Reading the rows of one stage under one recipe, from all shards of its folder."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import GoneError, StoreError
from data.grid import Grid
from data.store.files import list_folder
from data.store.place import Place
from data.store.remote_shard import ShardFile, open_ahead, open_file
from data.store.shard_reader import Shard
from data.store.types import ItemKey, Recipe, Row

__all__ = ["FilePool", "Problem", "StageReader", "shard_paths", "shard_sizes"]

T = TypeVar("T")

_LOOKS = 8
"""How often a reader looks again because shards were taken away while it looked."""
_SHARD = re.compile(r"shard-[0-9a-f]{16}\.h5")


def shard_paths(folder: Place) -> list[Place]:
    """The complete shards of a folder in name order; temporary files are not shards."""
    return list(shard_sizes(folder))


def shard_sizes(folder: Place) -> dict[Place, int]:
    """`shard_paths` with the bytes of each."""
    entries = list_folder(folder)
    files = (each for each in entries if not each.is_folder and _SHARD.fullmatch(each.name))
    return {folder / each.name: each.size for each in files}


@dataclass(frozen=True)
class Problem:
    """Something in a store that cannot be trusted.

    Args:
        kind: `shard`, `item`, `recipe`, `grid`, `duplicate`, `catalogue`, `failures`,
            `annotations` or `file`.
        where: file, or stage and id.
        message: a sentence that says what is wrong and what to do.
        level: `error`: something cannot be trusted; `note`: nothing is wrong with any row.
    """

    kind: str
    where: str
    message: str
    level: Literal["error", "note"] = "error"


class FilePool:
    """The most recently used open files.

    Forked processes may use the same pool: files are read by place, not by position. A pickled
    pool opens its files anew. A file that another thread still reads is closed after that.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._open: OrderedDict[Place, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Place) -> ShardFile:
        """The file, open for reading; StoreError if it cannot be opened."""
        with self._lock:
            file = self._open.pop(path, None) or open_file(path)
            self._keep(path, file)
        return file

    def ahead(self, shards: Mapping[Place, int], known: Container[Place] = ()) -> Iterator[Place]:
        """The shards (place to size), to be opened one by one; remote ones are fetched ahead.

        Those that are `known` are given, too, but not fetched.
        """
        rest = iter(shards)
        while batch := list(islice(rest, self._most)):
            found = open_ahead({path: shards[path] for path in batch if path not in known})
            with self._lock:
                for path, file in found.items():
                    self._keep(path, file)
            yield from batch

    def forget(self, path: Place) -> None:
        """Do not read this file any more: another one may come under its name (repair)."""
        with self._lock:
            self._open.pop(path, None)

    def _keep(self, path: Place, file: ShardFile) -> None:
        self._open[path] = file
        while len(self._open) > self._most:
            self._open.popitem(last=False)

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
        folder: Place,
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
        self._shards: dict[Place, Shard] = {}
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were added or taken away since; those that stayed stay open.

        Raises:
            StoreError: as when the reader was made.
        """
        with self._lock:
            self._scan()

    def _scan(self) -> None:
        """Other threads go on to read what was there before, until all of the new is known."""
        before = self._shards
        shards, problems, some_went = self._look(before)
        for _ in range(_LOOKS):
            if not some_went:
                break
            # Gone since the listing: what came in their place may not have been there then.
            shards, problems, some_went = self._look(shards)
        some_left = any(shards.get(path) is not shard for path, shard in before.items())
        where = {} if some_left else self._where
        versions = {} if some_left else self._versions
        found = [s for path, s in shards.items() if some_left or path not in before]
        for shard in found:
            _enter(shard, where)
        for shard in found:
            _enter_versions(shard, where, versions)
        self._shards, self._where, self._versions = shards, where, versions
        self.problems = problems

    def _look(self, known: Mapping[Place, Shard]) -> tuple[dict[Place, Shard], list[Problem], bool]:
        """The shards that are there, what of them cannot be trusted, whether some went meanwhile.

        Args:
            known: shards that are open.
        """
        sizes = shard_sizes(self._folder)
        kept = {path: shard for path, shard in known.items() if path in sizes}
        for path in known.keys() - kept.keys():
            self._files.forget(path)
        problems, some_went = [], False
        for path in self._files.ahead(sizes, known=kept):
            try:
                if path not in kept:
                    kept[path] = self._opened(path)
            except GoneError:
                some_went = True
            except StoreError as error:
                self._files.forget(path)
                if self._strict:
                    raise
                problems.append(Problem("shard", str(path), str(error)))
        return kept, problems, some_went

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

    def holds(self, key: ItemKey) -> bool:
        """Whether the row of a key is present."""
        return key in self._where

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

    def part(self, key: ItemKey) -> Row:
        """The row of one part of an item, not joined to the others.

        Raises:
            StoreError: there is no such row, or it is damaged.
        """
        if key not in self._where:
            raise StoreError(f"stage '{self.stage}' (recipe {self.recipe_id}) has no row for {key}")
        shard, index = self._where[key]
        try:
            return shard.row(index)
        except GoneError:  # a compact or repair put it elsewhere
            self.refresh()
            if key not in self._where:
                raise
            shard, index = self._where[key]
            return shard.row(index)

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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _opened(self, path: Place) -> Shard:
        shard = Shard(path, self._files)
        if (shard.recipe.stage, shard.recipe.id) != (self.stage, self.recipe_id):
            raise StoreError(
                f"shard {shard.path} belongs to {shard.recipe.stage}/{shard.recipe.id}; "
                "it was put in the wrong folder: move it back"
            )
        self._recipe = self._recipe or shard.recipe
        return shard

    def _places(self, id: str, content: str | None) -> list[tuple[Shard, int]]:
        first = self._choose(id, content)
        if first.parts == 1:
            return [self._where[first]]
        return [self._where[replace(first, part=part)] for part in range(first.parts)]

    def _read(self, id: str, content: str | None, read: Callable[[Shard, int], T]) -> list[T]:
        """`read` of every part; again if a shard was replaced meanwhile (compact, repair)."""
        for _ in range(_LOOKS):
            try:
                return [read(shard, index) for shard, index in self._places(id, content)]
            except GoneError:
                self.refresh()
        return [read(shard, index) for shard, index in self._places(id, content)]

    def _choose(self, id: str, content: str | None) -> ItemKey:
        versions = self._versions.get(id, [])
        if content is None and len(versions) == 1:
            return versions[0]
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


_Where = dict[ItemKey, tuple[Shard, int]]


def _enter(shard: Shard, where: _Where) -> None:
    """The first shard in name order wins an item that several hold."""
    for index, key in enumerate(shard.keys):
        shown = where.setdefault(key, (shard, index))
        if shown[0] is not shard and shard.path.name < shown[0].path.name:
            where[key] = (shard, index)


def _enter_versions(shard: Shard, where: _Where, versions: dict[str, list[ItemKey]]) -> None:
    """Contents of which all parts are there, by id."""
    for key in shard.keys:
        if key.parts > 1:
            parts = [replace(key, part=part) for part in range(key.parts)]
            if not all(part in where for part in parts):
                continue
            key = parts[0]
        known = versions.get(key.id)
        if known is None:
            versions[key.id] = [key]
        elif key not in known:
            known.append(key)


def _join_facts(facts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return facts[0] if len(facts) == 1 else {"parts": list(facts)}
