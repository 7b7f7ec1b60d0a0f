"""Looks at everything in a store and says what cannot be trusted."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.errors import StorylineError
from data.identity import file_sha256
from data.store.reader import FilePool, Problem, shard_paths
from data.store.recipes import load_recipe
from data.store.shard_reader import Shard
from data.store.types import ItemKey

if TYPE_CHECKING:
    from data.store.store import Store

__all__ = ["verify"]

T = TypeVar("T")

_RECIPE_ID = re.compile(r"[0-9a-f]{16}")
_TWICE = (
    "readers take the first in name order. Machines may round the last bit of a network "
    "differently; remove either file, then `pipeline run` fills in what only it held"
)
_REFILL = "`pipeline repair` keeps what is whole in it, then `pipeline run` makes the rest again"


def verify(store: Store, *, deep: bool = True) -> list[Problem]:
    """Everything that is wrong with a store; [] if nothing is.

    Checked are: the name of each shard against its sha256; each item against its CRC32; recipes
    against the names of their folders; the clip length; equal numbers of clips of a video in all
    current stages; equality of rows that are stored twice; every video in the catalogue; whether
    catalogue, failures and annotations can be read.

    Args:
        store: the store.
        deep: False reads item tables only, not the rows, and hashes nothing.
    """
    inspection = _Inspection(store, deep)
    inspection.run()
    return inspection.found


class _Inspection:
    def __init__(self, store: Store, deep: bool) -> None:
        self.store = store
        self.deep = deep
        self.found: list[Problem] = []
        self._files = FilePool()
        self._clips: dict[tuple[str, str], tuple[int, str]] = {}

    def run(self) -> None:
        catalogue = self._try("catalogue", "videos.jsonl", self.store.catalogue)
        current = self.store.current
        for folder in self._recipe_folders():
            stage, name = folder.parent.name, f"{folder.parent.name}/{folder.name}"
            clips = self._folder(folder)
            if catalogue is not None:
                self._check_listed(name, clips, set(catalogue))
            if current.get(stage) == folder.name:
                self._compare_grids(name, clips)
            self._try("failures", name, self.store.failures(stage, folder.name).read)
        for stage, recipe_id in current.items():
            if not (self.store.path / stage / recipe_id).is_dir():
                self._add("recipe", stage, f"{recipe_id} is current but has no folder")
        for split in self.store.splits():
            self._try("annotations", split, partial(self.store.annotations, split))

    def _recipe_folders(self) -> list[Path]:
        stages = [each for each in self.store.path.iterdir() if each.is_dir()]
        folders = [each for stage in stages for each in stage.iterdir() if each.is_dir()]
        return sorted(each for each in folders if _RECIPE_ID.fullmatch(each.name))

    def _folder(self, folder: Path) -> dict[ItemKey, int]:
        """Check one recipe's folder; gives the number of clips of what is on a grid."""
        self._try("recipe", str(folder), lambda: load_recipe(folder))
        seen: dict[ItemKey, tuple[int, Path]] = {}
        clips: dict[ItemKey, int] = {}
        for path in shard_paths(folder):
            shard = self._open(path)
            if shard is None:
                continue
            for index, key in enumerate(shard.keys):
                self._check_item(shard, index)
                crc, first = seen.setdefault(key, (shard.crc32(index), path))
                if crc != shard.crc32(index):
                    told = f"the row of {key.id} differs from its row in {first}; {_TWICE}"
                    self._add("duplicate", str(path), told)
                grid = shard.grid(index)
                if grid is not None:
                    clips[key] = grid.n
        return clips

    def _open(self, path: Path) -> Shard | None:
        sha256 = self._try("shard", str(path), partial(file_sha256, path)) if self.deep else None
        if sha256 is not None and not sha256.startswith(path.stem.removeprefix("shard-")):
            self._add("shard", str(path), f"its sha256 is not that of its name; {_REFILL}")
        shard = self._try("shard", str(path), partial(Shard, path, self._files))
        if shard is not None:
            expected = (path.parent.parent.name, path.parent.name)
            if (shard.recipe.stage, shard.recipe.id) != expected:
                self._add("shard", str(path), f"belongs to {shard.recipe.stage}/{shard.recipe.id}")
            on_grid = any(shard.grid(index) for index in range(len(shard.keys)))
            if on_grid and shard.clip_len_s != self.store.clip_len_s:
                told = f"clips of {shard.clip_len_s} s, the store has {self.store.clip_len_s} s"
                self._add("grid", str(path), told)
        return shard

    def _check_item(self, shard: Shard, index: int) -> None:
        if self.deep:
            where = f"{shard.path}: {shard.keys[index].id}"
            self._try("item", where, partial(shard.check, index))

    def _check_listed(self, name: str, clips: dict[ItemKey, int], catalogue: set[str]) -> None:
        for id in sorted({key.id for key in clips} - catalogue):
            message = "is not in the catalogue; `pipeline run --stage probe` lists it"
            self._add("catalogue", f"{name}: {id}", message)

    def _compare_grids(self, name: str, clips: dict[ItemKey, int]) -> None:
        for key, count in clips.items():
            other, where = self._clips.setdefault((key.id, key.content), (count, name))
            if other != count:
                self._add("grid", key.id, f"has {count} clips in {name} and {other} in {where}")

    def _try(self, kind: str, where: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (StorylineError, OSError) as error:
            self._add(kind, where, str(error))
            return None

    def _add(self, kind: str, where: str, message: str) -> None:
        self.found.append(Problem(kind, where, message))
