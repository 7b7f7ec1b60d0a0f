"""`pipeline gc`: removes what nothing points at.

These go: unfinished files of killed writers; recipes that are neither current nor read, directly
or not, by one that is; what was set aside, if asked for. All of it only when it is old enough,
by the clock of its file system; what carries a time in the future stays, for then some clock was
wrong. Links are neither followed nor removed, and nothing outside the store is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from data.errors import StoreError
from data.store.files import Entry, remove, size_of
from data.store.place import Place
from data.store.unfinished import FOLDER as UNFINISHED
from data.store.upkeep import (
    files_below,
    is_our_file,
    is_shard,
    is_temporary,
    put_aside,
    recipe_folders,
    relative,
    remove_if_empty,
    upstream_of,
)

if TYPE_CHECKING:
    from data.store.store import Store

__all__ = ["Waste", "gc"]

_FOLDERS = ("failures.jsonl.d", UNFINISHED)
"""Folders that a recipe may have."""

WEEK_S = 7 * 86_400.0
_HOUR_S = 3_600.0
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Waste:
    """Something that was removed, or would be; or that stays, and why.

    Args:
        what: path from the store.
        why: why it goes, or stays.
        bytes: its size; 0 for what stays.
        files: how many files.
        removed: False for what stays.
    """

    what: str
    why: str
    bytes: int
    files: int
    removed: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def gc(
    store: Store,
    *,
    older_than_s: float = WEEK_S,
    set_aside: bool = False,
    dry_run: bool = False,
    now: float | None = None,
) -> list[Waste]:
    """Remove what nothing points at.

    A run that makes the rows of a new recipe is safe as long as its newest file is younger than
    `older_than_s`; so is a recipe that was current until lately, for the new one's files are new
    and what these were made from is kept.

    Args:
        store: the store.
        older_than_s: age that a recipe or a file set aside must have, in seconds. Unfinished files
            go after a day, or after this if it is shorter, but never within an hour.
        set_aside: remove what repair has set aside, too.
        dry_run: change nothing.
        now: seconds since 1970; None is the clock of this machine.
    """
    collection = _Collection(store, older_than_s, dry_run, time.time() if now is None else now)
    found = [*collection.unfinished(), *collection.recipes()]
    if set_aside:
        found += collection.set_aside()
    return found


class _Collection:
    def __init__(self, store: Store, older_than_s: float, dry_run: bool, now: float) -> None:
        self.store = store
        self.older_than_s = older_than_s
        self.dry_run = dry_run
        self.now = now

    def unfinished(self) -> Iterator[Waste]:
        """Temporary files."""
        least_s = max(_HOUR_S, min(_DAY_S, self.older_than_s))
        for place, entry in files_below(self.store.path):
            if is_temporary(entry.name) and self._is_older(entry, least_s):
                yield from self._remove([(place, entry)], place, "left by a killed writer")

    def recipes(self) -> Iterator[Waste]:
        """Folders of recipes that nothing reads."""
        folders = recipe_folders(self.store.path)
        young = {_name(folder) for folder in folders if not self._is_old(folder)}
        try:
            used = self._used(young)
        except StoreError as error:
            told = (
                f"every recipe stays: nobody can tell what is read ({error}); `pipeline repair` "
                "or the next run mends that"
            )
            yield Waste("recipes", told, 0, 0, removed=False)
            return
        for folder in folders:
            if _name(folder) in used:
                continue
            # Somebody may have gone back to it since.
            if self.store.current.get(folder.parent.name) == folder.name:
                continue
            files = [each for each in files_below(folder) if self._is_ours(folder, each[0])]
            yield from self._remove(_rows_first(files), folder, "neither current nor read by one")
            if not self.dry_run:
                for name in _FOLDERS:
                    remove_if_empty(folder / name)
                remove_if_empty(folder)
                remove_if_empty(folder.parent)

    def set_aside(self) -> Iterator[Waste]:
        """What repair has set aside; its log stays."""
        for place, entry in put_aside(self.store):
            if self._is_older(entry, self.older_than_s):
                yield from self._remove([(place, entry)], place, "set aside")
                if not self.dry_run:
                    remove_if_empty(place.parent)

    def _used(self, young: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """Current recipes, young ones, and all that these were made from."""
        used: set[tuple[str, str]] = set()
        for stage, recipe_id in self.store.current.items():
            used |= upstream_of(self.store, stage, recipe_id)
        for stage, recipe_id in young:
            place = self.store.path / stage / recipe_id / "recipe.json"
            # One that is being made may have no recipe.json yet.
            there = size_of(place) is not None
            used |= upstream_of(self.store, stage, recipe_id) if there else {(stage, recipe_id)}
        return used

    def _is_old(self, folder: Place) -> bool:
        """Whether the newest file of a recipe is old enough."""
        return all(self._is_older(entry, self.older_than_s) for _, entry in files_below(folder))

    def _is_older(self, entry: Entry, least_s: float) -> bool:
        return entry.mtime is not None and self.now - entry.mtime >= least_s

    @staticmethod
    def _is_ours(folder: Place, place: Place) -> bool:
        return is_our_file(place.name) or place.parent in [folder / name for name in _FOLDERS]

    def _remove(self, files: list[tuple[Place, Entry]], what: Place, why: str) -> Iterator[Waste]:
        if not files:
            return
        if not self.dry_run:
            for place, _ in files:
                remove(place)
        size = sum(entry.size for _, entry in files)
        yield Waste(relative(self.store, what), why, size, len(files))


def _name(folder: Place) -> tuple[str, str]:
    return folder.parent.name, folder.name


def _rows_first(files: list[tuple[Place, Entry]]) -> list[tuple[Place, Entry]]:
    """So that what a kill leaves is a recipe with fewer rows, never rows without a recipe."""
    return sorted(
        files, key=lambda each: (each[1].name == "recipe.json", not is_shard(each[1].name))
    )
