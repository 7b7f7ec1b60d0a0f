"""What a store must hold after all: the rows of an undisturbed run, each once, and no damage."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from data.errors import GoneError
from data.identity import canonical_json
from data.store import Row, Store
from data.store.reader import FilePool
from data.store.shard_reader import Shard
from data.store.types import ItemKey

from .figures import BrokenError

__all__ = [
    "Contents",
    "Finding",
    "check",
    "contents",
    "problems",
    "row_digest",
    "rows",
    "shard_names",
    "temporaries",
    "visible",
]

Place: TypeAlias = tuple[str, str, str]
"""Stage, id, content."""

Contents: TypeAlias = Mapping[Place, str]
"""Digest of every visible row of the current recipes."""


def row_digest(row: Row) -> str:
    """sha256 of everything that a reader gets: key, grid, arrays bit for bit, texts, facts."""
    whole = hashlib.sha256(repr((row.key, row.grid)).encode())
    for name in sorted(row.arrays):
        array = row.arrays[name]
        whole.update(f"{name}|{array.dtype.str}|{array.shape}|".encode() + array.tobytes())
    texts = {name: list(strings) for name, strings in row.texts.items()}
    whole.update(canonical_json([texts, dict(row.facts)]).encode())
    return whole.hexdigest()


def contents(path: Path) -> dict[Place, str]:
    """All rows that readers of a store see."""
    store = Store.open(path)
    found: dict[Place, str] = {}
    for stage, recipe_id in sorted(store.current.items()):
        reader = store.reader(stage, recipe_id)
        keys = reader.keys()
        for id_, content in {(key.id, key.content) for key in keys if key.id in reader}:
            found[stage, id_, content] = row_digest(reader.row(id_, content))
    return found


def shard_names(path: Path) -> set[Path]:
    """The shards that are visible now, relative to the store; cheap."""
    return {each.relative_to(path) for each in path.glob("*/*/shard-*.h5")}


def visible(path: Path, names: set[Path]) -> set[tuple[str, ItemKey]]:
    """Stage and key of every row of some shards; one that cannot be opened is an error."""
    files = FilePool()
    found: set[tuple[str, ItemKey]] = set()
    for name in names:
        found |= {(name.parts[0], key) for key in Shard(path / name, files).keys}
    return found


def rows(path: Path) -> set[tuple[str, ItemKey]]:
    """Stage and key of every row that is visible now, also while a run packs its shards."""
    for _ in range(20):
        try:
            return visible(path, shard_names(path))
        except GoneError:
            continue  # merged since the listing
    raise BrokenError(f"{path}: its shards go faster than they can be opened")


def temporaries(path: Path) -> list[Path]:
    """Files that killed writers left behind; no reader looks at them."""
    return sorted(path.rglob(".tmp-*"))


def problems(path: Path) -> list[str]:
    """What `verify` finds wrong; notes (temporary files and the like) are not problems."""
    found = Store.open(path).verify()
    return [
        f"{each.kind}: {each.where}: {each.message}"
        for each in found
        if getattr(each, "level", "error") == "error"
    ]


@dataclass(frozen=True)
class Finding:
    """Numbers of one check, all of a store that turned out right.

    Args:
        rows: visible rows.
        twice: keys that lie in more than one shard with equal rows (readers see one).
        temporaries: files left behind by killed writers.
    """

    rows: int
    twice: int
    temporaries: int


def check(path: Path, reference: Contents) -> Finding:
    """Compare a store with an undisturbed one.

    Raises:
        BrokenError: rows are missing, too many or different, `verify` is not clean, or something
            is in quarantine.
    """
    for sentence in [*_differences(contents(path), reference), *problems(path)]:
        raise BrokenError(f"{path}: {sentence}")
    for stage, failure in _quarantine(path):
        raise BrokenError(f"{path}: {stage}: {failure} is in quarantine without a fault of its own")
    twice = Counter(
        (name.parts[0], key) for name in shard_names(path) for _, key in visible(path, {name})
    )
    return Finding(
        rows=len(reference),
        twice=sum(count > 1 for count in twice.values()),
        temporaries=len(temporaries(path)),
    )


def _differences(found: Contents, reference: Contents) -> Iterator[str]:
    missing, extra = sorted(reference.keys() - found), sorted(found.keys() - reference)
    wrong = sorted(key for key in reference.keys() & found if reference[key] != found[key])
    for what, keys in (("missing", missing), ("not wanted", extra), ("different", wrong)):
        if keys:
            yield f"{len(keys)} rows are {what}, the first is {keys[0]}"


def _quarantine(path: Path) -> Iterator[tuple[str, str]]:
    store = Store.open(path)
    for stage, recipe_id in store.current.items():
        stored = store.reader(stage, recipe_id).keys()
        for failure in store.failures(stage, recipe_id).read().values():
            if failure.key not in stored:
                yield stage, f"{failure.key.id} ({failure.reason}: {failure.message})"
