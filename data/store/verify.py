"""Looks at everything in a store and says what cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from data.errors import StorylineError
from data.identity import imported_content
from data.store.files import list_folder, size_of
from data.store.inspection import Inspector, SoundInspector
from data.store.place import Place
from data.store.reader import Problem, shard_paths
from data.store.recipes import load_recipe
from data.store.types import ItemKey
from data.store.unfinished import FOLDER as UNFINISHED
from data.store.unfinished import Unfinished
from data.store.upkeep import (
    SET_ASIDE,
    is_our_file,
    is_shard,
    is_temporary,
    put_aside,
    recipe_folders,
)

if TYPE_CHECKING:
    from data.store.store import Store

__all__ = ["verify"]

T = TypeVar("T")

_MOST_NAMED = 20
"""Videos of a stage that are named one by one where all have the same problem."""

_TWICE = "readers take the first in name order"
_OTHERWISE = (
    "two jobs disagreed about this input; find out which is right, remove the other file, then "
    "`pipeline run` fills in what only it held"
)


def verify(store: Store, *, deep: bool = True, inspector: Inspector | None = None) -> list[Problem]:
    """Everything that is wrong with a store, and notes on what lies about in it.

    Checked are: the name of each shard against its sha256; each item against its CRC32; recipes
    against the names of their folders; the clip length; equal numbers of clips of a video in all
    current stages; equality of rows that are stored twice; every video in the catalogue; whether
    catalogue, failures and annotations can be read.

    Notes, which are no damage: rows stored twice that differ by the rounding of floats, unfinished
    files, foreign files, files that were set aside, recipes whose upstream recipe is not there.

    Args:
        store: the store.
        deep: False reads item tables only, not the rows, and hashes nothing.
        inspector: who opens the shards; None does so in this process.
    """
    inspection = _Inspection(store, deep, inspector or SoundInspector())
    inspection.run()
    return inspection.found


class _Inspection:
    def __init__(self, store: Store, deep: bool, inspector: Inspector) -> None:
        self.store = store
        self.deep = deep
        self.inspector = inspector
        self.found: list[Problem] = []
        self._clips: dict[tuple[str, str], tuple[int, str]] = {}

    def run(self) -> None:
        catalogue = self._try("catalogue", "videos.jsonl", self.store.catalogue)
        current = self.store.current
        for folder in recipe_folders(self.store.path):
            stage, name = folder.parent.name, f"{folder.parent.name}/{folder.name}"
            clips = self._folder(folder, current)
            if catalogue is not None:
                self._check_listed(name, clips, set(catalogue))
            if current.get(stage) == folder.name:
                self._compare_grids(name, clips)
            self._try("failures", name, self.store.failures(stage, folder.name).read)
            for file in self._try("file", name, Unfinished(folder).damaged) or ():
                told = "is not what was written; its row is made again as a whole"
                self._note("file", str(folder / UNFINISHED / file), told)
        for stage, recipe_id in current.items():
            if not list_folder(self.store.path / stage / recipe_id):
                told = f"{recipe_id} is current but has no folder; `pipeline run --stage {stage}`"
                self._add("recipe", stage, told)
        for split in self.store.splits():
            self._try("annotations", split, partial(self.store.annotations, split))
        self._look_at_files()

    def _folder(self, folder: Place, current: dict[str, str]) -> dict[ItemKey, int]:
        """Check one recipe's folder; gives the number of clips of what is on a grid."""
        shards = shard_paths(folder)
        self._recipe(folder, bool(shards), current)
        seen: dict[ItemKey, tuple[int, Place]] = {}
        clips: dict[ItemKey, int] = {}
        for place in shards:
            report = self.inspector.report(place, deep=self.deep, clip_len_s=self.store.clip_len_s)
            self.found += report.problems
            for item in report.items:
                crc, first = seen.setdefault(item.key, (item.crc32, place))
                if crc != item.crc32:
                    self._differing(item.key, first, place)
                if item.clips is not None:
                    clips[item.key] = item.clips
        return clips

    def _recipe(self, folder: Place, has_rows: bool, current: dict[str, str]) -> None:
        if not has_rows and size_of(folder / "recipe.json") is None:
            self._note("recipe", str(folder), "has neither rows nor a recipe; `pipeline gc`")
            return
        recipe = self._try("recipe", str(folder), lambda: load_recipe(folder))
        for stage, recipe_id in recipe.upstream.items() if recipe else ():
            # What nobody reads any more may well have lost what it was made from.
            is_current = current.get(folder.parent.name) == folder.name
            if is_current and not list_folder(self.store.path / stage / recipe_id):
                told = f"was made from {stage}/{recipe_id}, which is not in this store"
                self._note("recipe", f"{folder.parent.name}/{folder.name}", told)

    def _differing(self, key: ItemKey, first: Place, place: Place) -> None:
        found = self.inspector.compare(first, place, key)
        rows = f"the rows of {key.id} in it and in {first} {found.told}"
        if found.rounding:
            self._note("duplicate", str(place), f"{rows}: rounding of two machines; {_TWICE}")
        else:
            self._add("duplicate", str(place), f"{rows}; {_TWICE}: {_OTHERWISE}")

    def _check_listed(self, name: str, clips: dict[ItemKey, int], catalogue: set[str]) -> None:
        # Nobody probes a video that is known by imported features alone.
        probed = {key.id for key in clips if key.content != imported_content(key.id)}
        missing = sorted(probed - catalogue)
        told = "not in the catalogue; `pipeline repair` or `pipeline run --stage probe` enters"
        for id in missing[:_MOST_NAMED]:
            self._add("catalogue", f"{name}: {id}", f"is {told} it")
        if len(missing) > _MOST_NAMED:
            more = len(missing) - _MOST_NAMED
            self._add("catalogue", name, f"{more:,} more videos are {told} them")

    def _compare_grids(self, name: str, clips: dict[ItemKey, int]) -> None:
        for key, count in clips.items():
            other, where = self._clips.setdefault((key.id, key.content), (count, name))
            if other != count:
                self._add("grid", key.id, f"has {count} clips in {name} and {other} in {where}")

    def _look_at_files(self) -> None:
        aside = [entry.size for _, entry in put_aside(self.store)]
        if aside:
            told = f"{len(aside)} files, {sum(aside):,} bytes; `pipeline gc --set-aside` removes"
            self._note("file", SET_ASIDE, f"{told} old ones")
        folders = [self.store.path, *recipe_folders(self.store.path)]
        for folder in folders:
            for entry in list_folder(folder):
                where = str(folder / entry.name)
                if is_temporary(entry.name):
                    told = "is being written, or was left by a killed job; then `pipeline gc`"
                    self._note("file", where, told)
                elif folder != self.store.path and not is_our_file(entry.name):
                    told = "is not a file of the store" + _renamed(entry.name)
                    self._note("file", where, told)

    def _try(self, kind: str, where: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (StorylineError, OSError) as error:
            self._add(kind, where, str(error))
            return None

    def _note(self, kind: str, where: str, message: str) -> None:
        self._add(kind, where, message, "note")

    def _add(
        self, kind: str, where: str, message: str, level: Literal["error", "note"] = "error"
    ) -> None:
        self.found.append(Problem(kind, where, message, level))


def _renamed(name: str) -> str:
    if name.endswith(".h5") and not is_shard(name):
        return "; a shard is called shard-<16 hex>.h5 after its sha256, others are not read"
    return "; nothing reads it"
