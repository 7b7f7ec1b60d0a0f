"""A close look at one shard: what is in it, and what of it cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import GoneError, StorylineError
from data.store.files import sha256_of
from data.store.place import Place
from data.store.reader import FilePool, Problem
from data.store.shard_reader import Shard
from data.store.types import ItemKey, Row

__all__ = ["Comparison", "Inspector", "ShardReport", "SoundInspector", "compare_rows"]

T = TypeVar("T")

REFILL = "`pipeline repair` keeps what is whole in it, then `pipeline run` makes the rest again"

_ROUNDINGS = 8
"""Two machines may round a network's last bits differently: so many units in the last place of
the largest value of an array. More than that is another result."""


@dataclass(frozen=True)
class Item:
    """What `verify` must know of one item: its key, CRC32, and clips if it is on a grid."""

    key: ItemKey
    crc32: int
    clips: int | None


@dataclass(frozen=True)
class ShardReport:
    """What is in a shard; `items` is empty if its tables cannot be trusted."""

    items: tuple[Item, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """How two rows of one key differ.

    Args:
        rounding: whether they differ by the rounding of floats alone.
        told: the difference in half a sentence.
    """

    rounding: bool
    told: str


class Inspector(Protocol):
    """Looks at shards; `data.store.untrusted` has one that does so in a child process."""

    def report(self, place: Place, *, deep: bool, clip_len_s: float) -> ShardReport:
        """What is in a shard, and what is wrong with it."""
        ...

    def compare(self, one: Place, other: Place, key: ItemKey) -> Comparison:
        """How the rows of one key in two shards differ."""
        ...


@dataclass
class SoundInspector:
    """Looks at shards in this process: for stores that one wrote oneself."""

    files: FilePool = field(default_factory=FilePool)

    def report(self, place: Place, *, deep: bool, clip_len_s: float) -> ShardReport:
        """What is in a shard, and what is wrong with it."""
        look = _Look(place, self.files)
        try:
            look.run(deep, clip_len_s)
        except (GoneError, FileNotFoundError):
            told = "was taken away meanwhile, as compact and repair do"
            return ShardReport(problems=(Problem("file", str(place), told, "note"),))
        return ShardReport(tuple(look.items), tuple(look.found))

    def compare(self, one: Place, other: Place, key: ItemKey) -> Comparison:
        """How the rows of one key in two shards differ."""
        try:
            shards = [Shard(place, self.files) for place in (one, other)]
            rows = [shard.row(shard.keys.index(key)) for shard in shards]
        except (StorylineError, OSError) as error:
            return Comparison(rounding=False, told=f"cannot be compared: {error}")
        return compare_rows(*rows)


class _Look:
    def __init__(self, place: Place, files: FilePool) -> None:
        self.place = place
        self.found: list[Problem] = []
        self.items: list[Item] = []
        self._files = files

    def run(self, deep: bool, clip_len_s: float) -> None:
        sha256 = self._try("shard", str(self.place), self._sha256) if deep else None
        if sha256 is not None and not sha256.startswith(self.place.stem.removeprefix("shard-")):
            self._add("shard", str(self.place), f"its sha256 is not that of its name; {REFILL}")
        shard = self._try("shard", str(self.place), lambda: Shard(self.place, self._files))
        if shard is None:
            return
        expected = (self.place.parent.parent.name, self.place.parent.name)
        if (shard.recipe.stage, shard.recipe.id) != expected:
            told = f"belongs to {shard.recipe.stage}/{shard.recipe.id}; move it there"
            self._add("shard", str(self.place), told)
        grids = [shard.grid(index) for index in range(len(shard.keys))]
        if any(grids) and shard.clip_len_s != clip_len_s:
            told = f"clips of {shard.clip_len_s} s, the store has {clip_len_s} s"
            self._add("grid", str(self.place), told)
        for index, (key, grid) in enumerate(zip(shard.keys, grids, strict=True)):
            if deep:
                self._check(shard, index)
            self.items.append(Item(key, shard.crc32(index), grid.n if grid else None))

    def _sha256(self) -> str:
        return sha256_of(self.place)

    def _check(self, shard: Shard, index: int) -> None:
        self._try("item", f"{self.place}: {shard.keys[index].id}", lambda: shard.check(index))

    def _try(self, kind: str, where: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (GoneError, FileNotFoundError):
            raise
        except (StorylineError, OSError) as error:
            self._add(kind, where, str(error))
            return None

    def _add(self, kind: str, where: str, message: str) -> None:
        self.found.append(Problem(kind, where, message))


def compare_rows(one: Row, other: Row) -> Comparison:
    """How two rows of the same key differ; CRCs tell whether they do."""
    parts = (
        ("grids", one.grid == other.grid),
        ("facts", one.facts == other.facts),
        (
            "texts",
            {n: [*t] for n, t in one.texts.items()} == {n: [*t] for n, t in other.texts.items()},
        ),
    )
    amiss = [name for name, same in parts if not same]
    if amiss:
        return Comparison(rounding=False, told=f"have other {' and '.join(amiss)}")
    worst, told, rounding = 0.0, "", True
    for name, array in one.arrays.items():
        mine, yours = array, other[name]
        if mine.shape != yours.shape or mine.dtype != yours.dtype:
            shapes = f"{mine.shape} and {yours.shape}"
            return Comparison(rounding=False, told=f"have '{name}' of the shapes {shapes}")
        most = max_difference(mine, yours)
        if most > worst or not told:
            worst, told = most, f"differ by up to {most:.3g} in '{name}'"
        rounding &= most <= _rounding_of(mine)
    return Comparison(rounding, told or "differ in nothing but their CRC32")


def max_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest absolute difference of two arrays of one shape."""
    if one.size == 0:
        return 0.0
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())


def _rounding_of(array: NDArray[Any]) -> float:
    if array.dtype.kind != "f" or array.size == 0:
        return 0.0
    most = float(np.abs(array.astype(np.float64)).max())
    return _ROUNDINGS * float(np.finfo(array.dtype).eps) * most
