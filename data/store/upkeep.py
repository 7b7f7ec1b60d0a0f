"""What verify, repair, gc, compact and diff have in common: what lies where in a store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import StoreError
from data.store.files import Entry, atomic_write, list_folder, sha256_of, size_of
from data.store.item import EncodedItem
from data.store.place import Place
from data.store.recipes import load_recipe
from data.store.shard import build_shard
from data.store.types import ItemKey, Recipe
from data.store.unfinished import FOLDER as UNFINISHED

if TYPE_CHECKING:
    from data.store.store import Store

__all__ = [
    "SET_ASIDE",
    "Entry",
    "build_items",
    "files_below",
    "in_order",
    "is_link",
    "is_our_file",
    "is_shard",
    "is_temporary",
    "put_aside",
    "readable",
    "recipe_folders",
    "relative",
    "remove_if_empty",
    "upstream_of",
    "write_shard",
]

SET_ASIDE = "set-aside"
"""Folder of a store for files that cannot be trusted; nothing reads it."""

_RECIPE_ID = re.compile(r"[0-9a-f]{16}")
_SHARD = re.compile(r"shard-[0-9a-f]{16}\.h5")
_RECORDS = ("recipe.json", "failures.jsonl", "failures.jsonl.d", UNFINISHED)


def is_temporary(name: str) -> bool:
    """Whether a file is one that a writer has not finished, or never will."""
    return name.startswith(".tmp-")


def is_shard(name: str) -> bool:
    """Whether a file is named like a shard."""
    return _SHARD.fullmatch(name) is not None


def is_our_file(name: str) -> bool:
    """Whether a file in the folder of a recipe is one that Storyline writes there."""
    return is_shard(name) or is_temporary(name) or name in _RECORDS


def is_link(place: Place) -> bool:
    """Whether a place is a symbolic link of a local file system; those are never followed."""
    return isinstance(place, Path) and place.is_symlink()


def recipe_folders(root: Place) -> list[Place]:
    """The folders `<stage>/<recipe_id>` of a store in order; links are left out."""
    stages = [root / each.name for each in list_folder(root) if each.is_folder]
    return sorted(
        stage / each.name
        for stage in stages
        if not is_link(stage)
        for each in list_folder(stage)
        if each.is_folder and _RECIPE_ID.fullmatch(each.name) and not is_link(stage / each.name)
    )


def files_below(folder: Place) -> Iterator[tuple[Place, Entry]]:
    """All files below a folder, deepest folders first; links are neither given nor followed."""
    entries = sorted(list_folder(folder), key=lambda entry: (not entry.is_folder, entry.name))
    for entry in entries:
        place = folder / entry.name
        if is_link(place):
            continue
        if entry.is_folder:
            yield from files_below(place)
        else:
            yield place, entry


def put_aside(store: Store) -> Iterator[tuple[Place, Entry]]:
    """The files that were set aside; the log of it, which always stays, is none of them."""
    folder = store.path / SET_ASIDE
    for place, entry in files_below(folder):
        if place != folder / "log.jsonl" and place.parent != folder / "log.jsonl.d":
            yield place, entry


def relative(store: Store, place: Place) -> str:
    """A place inside a store, as its path from there."""
    return str(place).removeprefix(str(store.path)).lstrip("/")


def in_order(key: ItemKey) -> tuple[str, str, int, int]:
    """The order of the items of a shard."""
    return (key.id, key.content, key.parts, key.part)


def build_items(recipe: Recipe, items: Sequence[EncodedItem]) -> tuple[str, bytes]:
    """Name and bytes of a shard of items that were read from others, byte for byte."""
    shard = build_shard(recipe, sorted(items, key=lambda item: in_order(item.key)))
    return f"shard-{sha256(shard).hexdigest()[:16]}.h5", shard


def write_shard(place: Place, shard: bytes) -> None:
    """Write the bytes of a shard, unless they are there already.

    Raises:
        StoreError: the file system refused; nothing was changed.
    """
    if not (size_of(place) is not None and sha256_of(place) == sha256(shard).hexdigest()):
        atomic_write(place, shard)


def upstream_of(store: Store, stage: str, recipe_id: str) -> set[tuple[str, str]]:
    """A recipe and all that it reads, directly or not, as (stage, recipe id).

    Raises:
        StoreError: one of these recipes cannot be read, so nobody knows what it reads.
    """
    found: set[tuple[str, str]] = set()
    waiting = [(stage, recipe_id)]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        folder = store.path / one[0] / one[1]
        if list_folder(folder):
            waiting += load_recipe(folder).upstream.items()
    return found


def remove_if_empty(folder: Place) -> None:
    """Take away a folder with nothing in it; object stores have none."""
    if isinstance(folder, Path) and folder.is_dir() and not is_link(folder):
        with suppress(OSError):
            folder.rmdir()


def readable(folder: Place) -> Recipe | None:
    """The recipe of a folder; None if it is missing or edited."""
    try:
        return load_recipe(folder)
    except StoreError:
        return None
