"""`pipeline repair`: sets aside what cannot be trusted and keeps what is whole in it.

Nothing is deleted: damaged files are moved to `set-aside/`, whose log says what, why and when.
What was lost with them is missing from then on, so the next `pipeline run` makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from data.errors import StoreError, StorylineError
from data.foreign import strict_json
from data.store.files import atomic_write, change_file, list_folder, read_bytes, read_json, size_of
from data.store.place import Place
from data.store.reader import FilePool, shard_paths
from data.store.recipes import save_recipe
from data.store.records import CatalogueEntry, catalogue_entry, failure_of, probed_entry
from data.store.salvage import Salvage, copy_aside, examine, salvage_shard, set_aside
from data.store.shard_reader import Shard
from data.store.types import SCHEMA_VERSION, Recipe
from data.store.upkeep import in_order, readable, recipe_folders, relative

if TYPE_CHECKING:
    from data.store.store import Store

__all__ = ["Repair", "Salvage", "repair", "salvage_shard", "set_aside"]

PROBE = "probe"
"""The stage whose rows say what a video is; the catalogue can be made from them."""


@dataclass(frozen=True)
class Repair:
    """One thing that was repaired, or would be.

    Args:
        what: `shard`, `recipe`, `failures`, `catalogue` or `annotations`.
        where: path from the store.
        told: what was wrong and what was done.
        kept: items that were saved from it.
        lost: items that the next `pipeline run` makes again.
        done: False for what only a person can decide; `told` says how.
    """

    what: str
    where: str
    told: str
    kept: int = 0
    lost: int = 0
    done: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def repair(store: Store, *, dry_run: bool = False) -> list[Repair]:
    """Repair everything that `verify` finds and that can be repaired; [] if nothing is wrong.

    It may run while jobs do, and be killed at any instant; run it again then.

    Args:
        store: the store.
        dry_run: change nothing; say what would be done.
    """
    return list(_Mending(store, dry_run).run())


class _Mending:
    def __init__(self, store: Store, dry_run: bool) -> None:
        self.store = store
        self.dry_run = dry_run

    def run(self) -> Iterator[Repair]:
        for folder in recipe_folders(self.store.path):
            for place in shard_paths(folder):
                yield from self._shard(place)
            yield from self._recipe(folder)
            yield from self._failures(folder)
        yield from self._catalogue()
        for split in self.store.splits():
            yield from self._annotations(split)

    def _shard(self, place: Place) -> Iterator[Repair]:
        where = relative(self.store, place)
        try:
            if self.dry_run:
                found = examine(self.store, place)
                kept, lost, why = len(found.whole), len(found.lost), found.why
            else:
                done = salvage_shard(self.store, place)
                kept, lost, why = len(done.kept), len(done.lost), done.why
        except StoreError as error:
            yield Repair("shard", where, f"was left alone: {error}", done=False)
            return
        if why:
            rest = f"{lost} to make again" if kept or lost else "what was in it to make again"
            yield Repair("shard", where, f"{why}: set aside, {kept} items kept, {rest}", kept, lost)

    def _recipe(self, folder: Place) -> Iterator[Repair]:
        """`recipe.json` from the recipe in the shards, which must be that of the folder's name."""
        place, where = folder / "recipe.json", relative(self.store, folder / "recipe.json")
        if (why := _unreadable(place)) is not None:
            yield Repair("recipe", where, f"was left alone: {why}", done=False)
            return
        is_there = size_of(place) is not None
        if readable(folder) is not None or not (is_there or shard_paths(folder)):
            return
        if is_there and _is_of_another_version(place):
            yield Repair("recipe", where, "was left alone: another schema version", done=False)
            return
        recipe = _recipe_in_shards(folder)
        if recipe is None and not is_there:
            told = "is missing, and no shard beside it can be opened: see these"
            yield Repair("recipe", where, told, done=False)
            return
        if not self.dry_run:
            if is_there:
                set_aside(self.store, place, "is not the recipe of its folder")
            if recipe is not None:
                save_recipe(folder, recipe)
        how = "was damaged or edited: set aside" if is_there else "was missing"
        again = "written again from the shards" if recipe else "no shard has it; the next run does"
        yield Repair("recipe", where, f"{how}, {again}")

    def _failures(self, folder: Place) -> Iterator[Repair]:
        """Lines that are no failure go; what they were about is tried again."""
        pieces = folder / "failures.jsonl.d"
        for place in [folder / "failures.jsonl", *(pieces / e.name for e in list_folder(pieces))]:
            lines = _Lines.of(place, failure_of)
            if lines is not None and lines.amiss:
                if not self.dry_run:
                    copy_aside(self.store, place, lines.raw, lines.told)
                    atomic_write(place, lines.good)
                where = relative(self.store, place)
                told = f"{lines.told}: left out, their inputs are tried again; a copy is set aside"
                yield Repair("failures", where, told, len(lines.records), lines.lost)

    def _catalogue(self) -> Iterator[Repair]:
        """Whole lines stay; videos with one probed content are entered again."""
        place = self.store.path / "videos.jsonl"
        lines = _Lines.of(place, catalogue_entry)
        known = {entry.video_id for entry in lines.records} if lines else set()
        new = [entry for entry in _probed(self.store) if entry.video_id not in known]
        damaged = lines is not None and lines.amiss
        if not damaged and not new:
            return
        if not self.dry_run:
            if lines is not None and lines.amiss:
                copy_aside(self.store, place, lines.raw, lines.told)
                # A job may have added to it since it was read.
                change_file(place, lambda raw: _Lines.within(raw or b"", catalogue_entry).good)
            self.store.update_catalogue(new)
        how = f"{lines.told}; a copy is set aside" if lines and lines.amiss else "lacked videos"
        told = (
            f"{how}; {len(new)} videos entered from the rows of `{PROBE}` "
            "(those probed with several contents are left to the next `pipeline run`)"
        )
        yield Repair("catalogue", "videos.jsonl", told, len(known), 0)

    def _annotations(self, split: str) -> Iterator[Repair]:
        """A split of which a line is missing would be another data set: it goes as a whole."""
        try:
            self.store.annotations(split)
        except StorylineError as error:
            place = self.store.path / "annotations" / f"{split}.jsonl"
            if (why := _unreadable(place)) is not None:
                told = f"was left alone: {why}"
                yield Repair("annotations", relative(self.store, place), told, done=False)
                return
            if not self.dry_run:
                set_aside(self.store, place, str(error))
            told = f"{error}; set aside, the next `pipeline run` with a config writes it again"
            yield Repair("annotations", relative(self.store, place), told)


T = TypeVar("T")


@dataclass(frozen=True)
class _Lines(Generic[T]):
    """The lines of a file of records: which are whole, and what they say."""

    raw: bytes
    good: bytes
    records: list[T]
    lost: int

    @property
    def amiss(self) -> bool:
        """Whether the file is not what writers leave behind."""
        return self.raw != self.good

    @property
    def told(self) -> str:
        """What is wrong with it."""
        return f"has {self.lost} lines that are no records" if self.lost else "has a torn end"

    @staticmethod
    def of(place: Place, parse: Callable[[Mapping[str, Any]], T]) -> _Lines[T] | None:
        """None if there is no such file."""
        try:
            return _Lines.within(read_bytes(place), parse)
        except FileNotFoundError:
            return None

    @staticmethod
    def within(raw: bytes, parse: Callable[[Mapping[str, Any]], T]) -> _Lines[T]:
        """Those of the bytes of a file."""
        good, records, lost = [], [], 0
        for line in filter(bytes.strip, raw.split(b"\n")):
            try:
                records.append(parse(strict_json(line)))
                good.append(line + b"\n")
            except (ValueError, KeyError, TypeError, AttributeError):
                lost += 1
        return _Lines(raw, b"".join(good), records, lost)


def _unreadable(place: Place) -> str | None:
    """Why a file cannot be read: an error of disk or network, which is no damage."""
    try:
        read_bytes(place)
    except FileNotFoundError:
        return None
    except StoreError as error:
        return str(error)
    return None


def _is_of_another_version(place: Place) -> bool:
    try:
        value = read_json(place)
    except (StoreError, FileNotFoundError):
        return False
    version = value.get("schema_version")
    return isinstance(version, int) and version > SCHEMA_VERSION


def _recipe_in_shards(folder: Place) -> Recipe | None:
    """The recipe that the shards of a folder carry, if it is that of its name."""
    for place in shard_paths(folder):
        try:
            recipe = Shard(place, FilePool(1)).recipe
        except StoreError:
            continue  # `repair` has reported this shard; any other of the folder will do
        if (recipe.stage, recipe.id) == (folder.parent.name, folder.name):
            return recipe
    return None


def _probed(store: Store) -> Iterator[CatalogueEntry]:
    """Videos with exactly one content in the current rows of the probe."""
    try:
        recipe_id = store.current.get(PROBE)
        if recipe_id is None:
            return
        reader = store.reader(PROBE, recipe_id, strict=False)
        contents: dict[str, set[str]] = {}
        for key in sorted(reader.keys(), key=in_order):
            contents.setdefault(key.id, set()).add(key.content)
    except StoreError:
        return
    for id_ in reader.ids():
        if len(contents[id_]) == 1:
            key = reader.key(id_)
            yield probed_entry(key, reader.facts(id_, key.content))
