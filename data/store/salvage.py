"""Setting a damaged shard aside and keeping what is whole in it. Nothing is deleted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from data.errors import DamageError, GoneError, StoreError
from data.store.files import append_records, atomic_write, move, read_bytes, sha256_of, size_of
from data.store.item import EncodedItem
from data.store.place import Place
from data.store.reader import FilePool
from data.store.shard_reader import Shard
from data.store.types import ItemKey, Recipe
from data.store.upkeep import SET_ASIDE, build_items, relative, write_shard

if TYPE_CHECKING:
    from data.store.store import Store

__all__ = ["Salvage", "copy_aside", "examine", "salvage_shard", "set_aside"]


@dataclass(frozen=True)
class Salvage:
    """What became of a damaged shard.

    Args:
        kept: items whose bytes are whole; they are in a new shard.
        lost: items that the next run makes again; () where nobody can tell what was in it.
        set_aside: where the damaged file is now; None if it was gone when its turn came (another
            job was faster) or turned out to be whole.
        why: what is wrong with it, in half a sentence; "" if nothing is.
    """

    kept: tuple[ItemKey, ...]
    lost: tuple[ItemKey, ...]
    set_aside: Place | None
    why: str = ""


@dataclass(frozen=True)
class Findings:
    """What is whole in a shard, and what is not.

    Args:
        why: what is wrong, in half a sentence; "" for a shard in which nothing is.
        whole: items whose own CRC32 is right.
        lost: the others.
        recipe: of its rows; None if its tables cannot be trusted.
        sha256: of its bytes.
    """

    why: str
    sha256: str
    whole: tuple[EncodedItem, ...] = ()
    lost: tuple[ItemKey, ...] = ()
    recipe: Recipe | None = None


def salvage_shard(store: Store, place: Place) -> Salvage:
    """Keep the whole items of a damaged shard in a new one, and move it to `set-aside/`.

    Safe at a kill at any instant, and while jobs run: first the new shard, then the move. Calling
    it for a shard that is whole or gone changes nothing.

    Args:
        store: the store.
        place: the shard, as in `DamageError.shard` or `Store.shards`.

    Raises:
        StoreError: the file cannot be read (an error of disk or network is no damage), is of
            another schema version, or the store cannot be written; it stays where it is.
    """
    try:
        found = examine(store, place)
    except GoneError:
        return Salvage((), (), None)
    kept = tuple(item.key for item in found.whole)
    if not found.why:
        return Salvage(kept, (), None)
    news = (found.why, kept, found.lost)
    if found.whole and found.recipe is not None:
        name, shard = build_items(found.recipe, found.whole)
        if name == place.name:
            return Salvage(kept, found.lost, _replace(store, place, shard, news), found.why)
        write_shard(place.with_name(name), shard)
    where = set_aside(store, place, *news, sha256=found.sha256)
    return Salvage(kept, found.lost, where, found.why)


def examine(store: Store, place: Place) -> Findings:
    """What is whole in a shard, and what is not; changes nothing.

    Raises:
        GoneError: it is not there any more.
        StoreError: it cannot be read, or is a whole shard of another schema version.
    """
    sha256 = _sha256(place)
    with _at_hand(place) as local:
        try:
            return _examine(store, local, sha256)
        except GoneError:
            raise
        except StoreError as error:
            raise StoreError(str(error).replace(str(local), str(place))) from error


@contextmanager
def _at_hand(place: Place) -> Iterator[Path]:
    """The file on this machine, as it is in the store: damaged, so not by way of scratch."""
    if isinstance(place, Path):
        yield place
        return
    with TemporaryDirectory(prefix="storyline-salvage-") as folder:
        local = Path(folder) / place.parent.parent.name / place.parent.name / place.name
        local.parent.mkdir(parents=True)
        try:
            local.write_bytes(read_bytes(place))
        except FileNotFoundError:
            raise GoneError(f"{place} is not there any more") from None
        yield local


def _examine(store: Store, place: Path, sha256: str) -> Findings:
    named_right = sha256.startswith(place.stem.removeprefix("shard-"))
    try:
        shard = Shard(place, FilePool(1))
    except DamageError as error:
        return Findings(error.problem, sha256)
    except GoneError:
        raise
    except StoreError as error:
        if named_right:  # as it was written: by another version of Storyline
            raise
        return Findings(f"cannot be trusted: {error}", sha256)
    if (shard.recipe.stage, shard.recipe.id) != (place.parent.parent.name, place.parent.name):
        belongs = f"{shard.recipe.stage}/{shard.recipe.id}"
        return Findings(f"belongs to {belongs}; if that is in this store, move it there", sha256)
    on_grid = any(shard.grid(index) for index in range(len(shard.keys)))
    if on_grid and shard.clip_len_s != store.clip_len_s:
        why = f"has clips of {shard.clip_len_s} s in a store of clips of {store.clip_len_s} s"
        return Findings(why, sha256, lost=tuple(shard.keys))
    whole, lost, amiss = _examine_items(shard)
    if lost:
        why = f"has {len(lost)} damaged items of {len(shard.keys)}"
    else:
        untold = "is not as it was written, though every item is whole"
        why = "" if named_right and not amiss else untold
    return Findings(why, sha256, tuple(whole), tuple(lost), shard.recipe)


def _sha256(place: Place) -> str:
    try:
        return sha256_of(place)
    except FileNotFoundError:
        raise GoneError(f"{place} is not there any more") from None


def _examine_items(shard: Shard) -> tuple[list[EncodedItem], list[ItemKey], bool]:
    """The whole items, keys of the others, and whether timestamps of the former are damaged."""
    whole: list[EncodedItem] = []
    lost: list[ItemKey] = []
    amiss = False
    for index, key in enumerate(shard.keys):
        try:
            whole.append(shard.encoded(index))
        except DamageError:
            lost.append(key)
            continue
        try:
            shard.check(index)
        except DamageError:  # timestamps follow from the duration, which is whole
            amiss = True
    return whole, lost, amiss


_News: TypeAlias = tuple[str, Sequence[ItemKey], Sequence[ItemKey]]
"""Why, what was kept, what was lost."""


def _replace(store: Store, place: Place, shard: bytes, news: _News) -> Place:
    """Write a shard over the damaged file that has its name, of which a copy is kept."""
    target = copy_aside(store, place, read_bytes(place), *news)
    atomic_write(place, shard)
    return target


def copy_aside(
    store: Store,
    place: Place,
    content: bytes,
    why: str,
    kept: Sequence[ItemKey] = (),
    lost: Sequence[ItemKey] = (),
) -> Place:
    """Keep the bytes of a file that is about to be replaced, as `set_aside` does."""
    target = _free(store, place)
    atomic_write(target, content)
    _log(store, place, target, why, kept, lost)
    return target


def set_aside(
    store: Store,
    place: Place,
    why: str,
    kept: Sequence[ItemKey] = (),
    lost: Sequence[ItemKey] = (),
    *,
    sha256: str | None = None,
) -> Place | None:
    """Move a file to `set-aside/`, with a line in its log; None if it is gone, or whole again.

    Args:
        store: the store.
        place: a file in the store.
        why: what is wrong with it.
        kept: items of it that are stored elsewhere now.
        lost: items of it that are not.
        sha256: of the file that is meant; one that a job wrote anew meanwhile stays.
    """
    target = _free(store, place)
    try:
        move(place, target)
    except FileNotFoundError:
        return None
    if sha256 is not None and sha256_of(target) != sha256:
        move(target, place)
        return None
    _log(store, place, target, why, kept, lost)
    return target


def _log(
    store: Store,
    place: Place,
    target: Place,
    why: str,
    kept: Sequence[ItemKey],
    lost: Sequence[ItemKey],
) -> None:
    record: Mapping[str, Any] = {
        "what": relative(store, place),
        "moved_to": relative(store, target),
        "why": why,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "kept": [_short(key) for key in kept],
        "lost": [_short(key) for key in lost],
    }
    append_records(store.path / SET_ASIDE / "log.jsonl", [record])


def _short(key: ItemKey) -> str:
    part = f" part {key.part + 1}/{key.parts}" if key.parts > 1 else ""
    return f"{key.id} {key.content[:12]}{part}"


def _free(store: Store, place: Place) -> Place:
    """A name in `set-aside/` that is not taken: what was set aside before stays."""
    folder = store.path / SET_ASIDE
    for part in relative(store, place.parent).split("/"):
        folder = folder / part if part else folder
    target, number = folder / place.name, 1
    while size_of(target) is not None:
        target, number = folder / f"{place.name}.{number}", number + 1
    return target
