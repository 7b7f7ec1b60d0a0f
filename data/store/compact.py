"""`pipeline compact`: many small shards become few of even size. No visible row changes.

Shards of a good size stay as they are; the others are cut anew, their items in key order, in
pieces of even size. So adding a few videos to a large store and compacting it again does not
write the large store again. All new shards are there before the first old one goes, and old ones
go in reverse name order: whatever instant a kill comes at, readers find each row, and of a row
that is stored twice the same one as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DamageError, GoneError, StoreError
from data.store.files import locked, remove, size_of
from data.store.place import Place
from data.store.reader import FilePool, shard_sizes
from data.store.shard_reader import Shard
from data.store.types import ItemKey
from data.store.upkeep import build_items, in_order, write_shard

if TYPE_CHECKING:
    from data.store.store import Store

__all__ = ["TARGET_BYTES", "Compaction", "compact", "pack"]

TARGET_BYTES = 128 << 20
"""What `pipeline run` aims at, too (`engine.shard_mb`)."""
_GOOD = (0.5, 1.5)
"""A shard between these multiples of the target stays as it is."""
_ROUNDS = 8


@dataclass(frozen=True)
class Compaction:
    """What became of the shards of one stage under its current recipe.

    Args:
        stage: name of the stage.
        before, after: number of shards.
        bytes_before, bytes_after: their size.
        rows: items that are visible, before as after.
        dropped: rows left out: stored twice, or of content that is not the catalogue's any more.
        left_alone: damaged shards, with what is wrong; nothing of them was touched.
        written: shards that were written.
        note: why old shards stayed; "" if they went.
    """

    stage: str
    before: int
    after: int
    bytes_before: int
    bytes_after: int
    rows: int
    dropped: int
    left_alone: tuple[str, ...] = ()
    written: int = 0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def compact(
    store: Store,
    stages: Collection[str] = (),
    *,
    target_bytes: int = TARGET_BYTES,
    drop_superseded: bool = False,
    dry_run: bool = False,
) -> Iterator[Compaction]:
    """Rewrite the shards of the current recipes, stage by stage.

    Every row is checked while it is read; a shard with a damaged one is left alone and named.
    In memory is one new shard at a time. It may run while jobs write and readers read.

    Args:
        store: the store.
        stages: which; none means all.
        target_bytes: size of a new shard, about.
        drop_superseded: leave out rows of content that the catalogue has replaced.
        dry_run: change nothing; damage is then only found in item tables.

    Raises:
        StoreError: another compact is at work on a stage; the store cannot be read or written.
    """
    current = store.current
    contents = (
        {e.video_id: e.content for e in store.catalogue().values()} if drop_superseded else {}
    )
    for stage in sorted(stages or current):
        folder = store.folder(stage, current.get(stage))
        with _alone(folder):
            yield _Compaction(folder, target_bytes, contents, dry_run).run()


class _GivenUpError(Exception):
    """Nobody waits for it any more."""


def pack(
    store: Store,
    stage: str,
    recipe_id: str,
    target_bytes: int,
    go_on: Callable[[], bool] = lambda: True,
) -> Compaction | None:
    """The same for one recipe, current or not, while it is written; None if it does not pay.

    It pays when merging the shards that are too small leaves fewer of them.

    Args:
        store: the store.
        stage, recipe_id: which rows.
        target_bytes: size of a new shard, about.
        go_on: asked between shards; False ends it early. Then some rows may lie in two shards,
            which no reader sees, and the next packing ends.

    Raises:
        StoreError: as `compact`.
    """
    folder = store.folder(stage, recipe_id)
    small = [size for size in shard_sizes(folder).values() if size < _GOOD[0] * target_bytes]
    if len(small) <= max(1, math.ceil(sum(small) / target_bytes)):
        return None
    with _alone(folder), suppress(_GivenUpError):
        return _Compaction(folder, target_bytes, {}, dry_run=False, go_on=go_on).run()
    return None


Piece = tuple[ItemKey, ...]
"""The items of one shard that is to be, in order."""


class _Compaction:
    def __init__(
        self,
        folder: Place,
        target_bytes: int,
        contents: Mapping[str, str],
        dry_run: bool,
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self.go_on = go_on
        self.folder = folder
        self.target_bytes = max(1, target_bytes)
        self.contents = contents
        self.dry_run = dry_run
        self.amiss: dict[str, str] = {}
        self._files = FilePool()

    def run(self) -> Compaction:
        """Until a round meets no damaged shard."""
        first = shard_sizes(self.folder)
        while True:
            try:
                return self._round(first)
            except DamageError as error:
                if error.shard in self.amiss:
                    raise
                self.amiss[error.shard] = error.problem

    def _round(self, first: Mapping[Place, int]) -> Compaction:
        shards = self._open()
        where = _winners(shards)
        wanted = {key: place for key, place in where.items() if not self._superseded(key)}
        sizes = {key: s.size_bytes(i) for key, (s, i) in wanted.items()}
        # Shards that hold nothing but what is wanted, as their pieces would be.
        there = {
            tuple(shard.keys): shard
            for shard in shards
            if all(key in wanted and wanted[key][0] is shard for key in shard.keys)
        }
        pieces = plan(sizes, list(there), self.target_bytes)
        new = [piece for piece in pieces if piece not in there]
        keep = {there[piece].path for piece in pieces if piece in there}
        old = [shard.path for shard in shards if shard.path not in keep]
        written = keep | set(self._write(new, wanted)) if not self.dry_run else keep
        note = "" if self.dry_run else self._take_away(old, written)
        after = shard_sizes(self.folder)
        return Compaction(
            stage=self.folder.parent.name,
            before=len(first),
            after=len(pieces) + len(self.amiss) if self.dry_run else len(after),
            bytes_before=sum(first.values()),
            bytes_after=sum(sizes.values()) if self.dry_run else sum(after.values()),
            rows=len(wanted),
            dropped=sum(len(shard.keys) for shard in shards) - len(wanted),
            left_alone=tuple(f"{place}: {why}" for place, why in sorted(self.amiss.items())),
            written=len(new),
            note=note,
        )

    def _open(self) -> list[Shard]:
        """In name order; without those that are damaged, or were taken away meanwhile."""
        shards = []
        for place in self._files.ahead(shard_sizes(self.folder)):
            self._look_up()
            if str(place) in self.amiss:
                continue
            try:
                shard = Shard(place, self._files)
            except GoneError:
                continue  # another job merged it meanwhile: its rows are in that job's shard
            except StoreError as error:
                self.amiss[str(place)] = getattr(error, "problem", str(error))
                continue
            if (shard.recipe.stage, shard.recipe.id) != (
                self.folder.parent.name,
                self.folder.name,
            ):
                self.amiss[str(place)] = "belongs to another recipe"
                continue
            shards.append(shard)
        return shards

    def _superseded(self, key: ItemKey) -> bool:
        return self.contents.get(key.id, key.content) != key.content

    def _write(
        self, pieces: Sequence[Piece], where: Mapping[ItemKey, tuple[Shard, int]]
    ) -> Iterator[Place]:
        for piece in pieces:
            self._look_up()
            yield self._write_one([where[key] for key in piece])

    def _look_up(self) -> None:
        if not self.go_on():
            raise _GivenUpError

    def _write_one(self, places: Sequence[tuple[Shard, int]]) -> Place:
        items = [shard.encoded(index) for shard, index in places]
        name, content = build_items(places[0][0].recipe, items)
        write_shard(self.folder / name, content)
        return self.folder / name

    def _take_away(self, old: Sequence[Place], instead: Collection[Place]) -> str:
        """Remove old shards, the last in name order first; not where something else is missing."""
        gone = [place.name for place in instead if size_of(place) is None]
        if gone:
            return f"{gone[0]} went meanwhile: another compact or repair is at work; run it again"
        for place in sorted(set(old) - set(instead), reverse=True):
            remove(place)
        return ""


def _winners(shards: Sequence[Shard]) -> dict[ItemKey, tuple[Shard, int]]:
    """Where each item is; the first shard in name order wins, as in readers."""
    where: dict[ItemKey, tuple[Shard, int]] = {}
    for shard in shards:
        for index, key in enumerate(shard.keys):
            where.setdefault(key, (shard, index))
    return where


def plan(sizes: Mapping[ItemKey, int], there: Sequence[Piece], target_bytes: int) -> list[Piece]:
    """How the items are to lie in shards: a plan for its own result is that result.

    Args:
        sizes: about how many bytes each item takes.
        there: shards that may stay as they are.
        target_bytes: wanted size of a shard.
    """
    pieces = list(there)
    for _ in range(_ROUNDS):
        good = [piece for piece in pieces if _is_good(piece, sizes, target_bytes)]
        placed = {key for piece in good for key in piece}
        rest = sorted((key for key in sizes if key not in placed), key=in_order)
        planned = good + _even(rest, sizes, target_bytes)
        if set(planned) == set(pieces):
            break
        pieces = planned
    return pieces


def _is_good(piece: Piece, sizes: Mapping[ItemKey, int], target_bytes: int) -> bool:
    size = sum(sizes[key] for key in piece)
    least, most = (share * target_bytes for share in _GOOD)
    return size >= least and (size <= most or len(piece) == 1)


def _even(keys: Sequence[ItemKey], sizes: Mapping[ItemKey, int], target_bytes: int) -> list[Piece]:
    """Cut a sequence of items into ceil(total/target) pieces of about the same size."""
    total = sum(sizes[key] for key in keys)
    count = max(1, min(len(keys), math.ceil(total / target_bytes)))
    pieces: list[list[ItemKey]] = [[] for _ in range(count)]
    before = 0
    for key in keys:
        middle = before + sizes[key] / 2
        pieces[min(count - 1, int(middle * count / total))].append(key)
        before += sizes[key]
    return [tuple(piece) for piece in pieces if piece]


@contextmanager
def _alone(folder: Place) -> Iterator[None]:
    """One compact at a time on a folder of this machine; the kernel frees the lock of the dead.

    Where there are no locks two at a time are told apart by the check before shards go.
    """
    # `recipe.json` is there anyway and is never replaced.
    if not isinstance(folder, Path) or not (folder / "recipe.json").is_file():
        yield
        return
    with locked(folder / "recipe.json", wait=False) as is_mine:
        if not is_mine:
            raise StoreError(
                f"another compact is at work on {folder}; let it end, then run this again if needed"
            )
        yield
