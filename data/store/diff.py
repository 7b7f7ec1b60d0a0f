"""`pipeline diff`: in which rows two stores, or two recipes of one, differ, and by how much."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import StoreError, UsageError, nearest
from data.store.inspection import max_difference
from data.store.place import Place, place_of
from data.store.reader import StageReader
from data.store.recipes import differences
from data.store.store import Store
from data.store.types import Row

__all__ = ["Side", "StageDifference", "StreamDifference", "VideoDifference", "diff"]

_SIDE = re.compile(r"(?P<store>.+):(?P<stage>[A-Za-z0-9_-]{1,64})/(?P<recipe>[0-9a-f]{16})")


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Args:
        store: the store.
        recipes: stage to recipe id.
        single: whether it is one recipe that was named, and not a store.
    """

    store: Store
    recipes: Mapping[str, str]
    single: bool = False

    @staticmethod
    def of(text: str | Place) -> Side:
        """From `STORE`, all current recipes of it, or `STORE:stage/recipe_id`.

        Raises:
            UsageError: no store there, or no such recipe.
            StoreError: a damaged store.
        """
        named = _SIDE.fullmatch(str(text))
        if named is None:
            store = Store.open(place_of(text))
            return Side(store, store.current)
        store = Store.open(place_of(named["store"]))
        stage, recipe_id = named["stage"], named["recipe"]
        if recipe_id not in store.recipes(stage):
            known = nearest(recipe_id, store.recipes(stage))
            raise UsageError(f"store {store.path} has no recipe {stage}/{recipe_id}; {known}")
        return Side(store, {stage: recipe_id}, single=True)


@dataclass(frozen=True)
class VideoDifference:
    """How one item differs.

    Args:
        id: the item.
        told: what differs beside the streams: grid, facts, texts, or that it cannot be read.
        cosine: per float stream the mean of the cosine over its rows; None if it has none.
        max_abs: per stream the largest absolute difference.
    """

    id: str
    told: tuple[str, ...] = ()
    cosine: Mapping[str, float | None] = field(default_factory=dict)
    max_abs: Mapping[str, float] = field(default_factory=dict)


@dataclass
class StreamDifference:
    """One stream over all items that differ.

    Args:
        items: in how many it differs.
        cosine_median, cosine_min: of the means per item; None where there is no cosine.
        max_abs: the largest absolute difference.
        worst: items with the lowest cosine, or the largest difference where there is none.
    """

    items: int
    cosine_median: float | None
    cosine_min: float | None
    max_abs: float
    worst: tuple[str, ...]


@dataclass
class StageDifference:
    """How the rows of one stage differ.

    Args:
        stage: name of the stage, or of both as `a | b`.
        recipes: recipe ids of both sides; None where a side has none.
        recipe: in which points the recipes differ, in words; "" if in none.
        only_a, only_b: items that the other side lacks.
        other_content: items whose input is another.
        equal: number of items that are equal bit for bit.
        within: number of those that differ by no more than the tolerance.
        differing: the first items that differ, the worst first.
        differ: number of all items that differ.
        streams: by name.
        texts: number of items with other texts, and first examples.
        problems: shards that cannot be read.
    """

    stage: str
    recipes: tuple[str | None, str | None]
    recipe: str = ""
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    other_content: list[str] = field(default_factory=list)
    equal: int = 0
    within: int = 0
    differ: int = 0
    differing: list[VideoDifference] = field(default_factory=list)
    streams: dict[str, StreamDifference] = field(default_factory=dict)
    texts: int = 0
    text_examples: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether every row of each side is, within the tolerance, one of the other."""
        lacking = self.only_a or self.only_b or self.other_content or self.problems
        return not (lacking or self.differ)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"same": self.same}


def diff(
    a: Side,
    b: Side,
    stages: Collection[str] = (),
    *,
    most: int = 5,
    tolerance: float = 0.0,
) -> Iterator[StageDifference]:
    """Compare stage by stage, item by item; in memory is one item of each side.

    Args:
        a, b: what to compare.
        stages: which; none means all of both sides.
        most: how many of the worst items and of examples are named.
        tolerance: rows that differ by no more than this in any number count as equal.

    Raises:
        UsageError: a stage that neither side has.
    """
    if a.single and b.single:
        (stage_a, id_a), (stage_b, id_b) = *a.recipes.items(), *b.recipes.items()
        yield _Comparison(a, (stage_a, id_a), b, (stage_b, id_b), most, tolerance).run()
        return
    names = sorted({*a.recipes, *b.recipes})
    if a.single or b.single:
        names = [name for name in names if name in (a if a.single else b).recipes]
    for name in stages:
        if name not in names:
            raise UsageError(f"neither side has a stage '{name}'; {nearest(name, names)}")
    for name in stages or names:
        sides = ((name, side.recipes.get(name)) for side in (a, b))
        yield _Comparison(a, next(sides), b, next(sides), most, tolerance).run()


_Named = tuple[str, str | None]


class _Comparison:
    def __init__(
        self, a: Side, of_a: _Named, b: Side, of_b: _Named, most: int, tolerance: float
    ) -> None:
        self.readers = [_reader(a, of_a), _reader(b, of_b)]
        stage = of_a[0] if of_a[0] == of_b[0] else f"{of_a[0]} | {of_b[0]}"
        self.found = StageDifference(stage, (of_a[1], of_b[1]))
        self.most = most
        self.tolerance = tolerance
        self._cosines: dict[str, list[tuple[float, str]]] = {}
        self._max_abs: dict[str, list[tuple[float, str]]] = {}

    def run(self) -> StageDifference:
        """Everything about the stage."""
        found = self.found
        contents = [_contents(reader) for reader in self.readers]
        readers = [reader for reader in self.readers if reader is not None]
        found.problems = [each.message for reader in readers for each in reader.problems]
        if len(readers) == 2:
            one, other = (reader.recipe.to_json() for reader in readers)
            found.recipe = differences(one, other)
        found.only_a = sorted(contents[0].keys() - contents[1].keys())
        found.only_b = sorted(contents[1].keys() - contents[0].keys())
        for id_ in sorted(contents[0].keys() & contents[1].keys()):
            both = contents[0][id_] & contents[1][id_]
            if both:
                self._item(id_, min(both))
            else:
                found.other_content.append(id_)
        self._forget()
        found.streams = {name: self._stream(name) for name in sorted(self._max_abs)}
        return found

    def _item(self, id_: str, content: str) -> None:
        try:
            one, other = (reader.row(id_, content) for reader in self.readers if reader is not None)
        except StoreError as error:
            self._differs(VideoDifference(id_, (str(error),)))
            return
        difference = compare(id_, one, other)
        if difference is None:
            self.found.equal += 1
        elif not difference.told and max(difference.max_abs.values()) <= self.tolerance:
            self.found.within += 1
        else:
            self._differs(difference)
            self._texts(id_, one, other)

    def _differs(self, difference: VideoDifference) -> None:
        found = self.found
        found.differ += 1
        found.differing.append(difference)
        if len(found.differing) > 4 * self.most + 100:
            self._forget()
        for name, most in difference.max_abs.items():
            self._max_abs.setdefault(name, []).append((most, difference.id))
            cosine = difference.cosine.get(name)
            if cosine is not None:
                self._cosines.setdefault(name, []).append((cosine, difference.id))

    def _forget(self) -> None:
        self.found.differing = sorted(self.found.differing, key=_badness)[: self.most]

    def _texts(self, id_: str, one: Row, other: Row) -> None:
        for name, texts in one.texts.items():
            pairs = zip(texts, other.texts.get(name, ()), strict=False)
            unequal = [(mine, yours) for mine, yours in pairs if mine != yours]
            if unequal or len(texts) != len(other.texts.get(name, ())):
                self.found.texts += 1
                if unequal and len(self.found.text_examples) < self.most:
                    mine, yours = (_short(text) for text in unequal[0])
                    self.found.text_examples.append(f"{id_}, {name}: {mine} -> {yours}")
                return

    def _stream(self, name: str) -> StreamDifference:
        cosines = sorted(self._cosines.get(name, []))
        largest = sorted(self._max_abs[name], reverse=True)
        values = [cosine for cosine, _ in cosines]
        return StreamDifference(
            items=len(largest),
            cosine_median=median(values) if values else None,
            cosine_min=values[0] if values else None,
            max_abs=largest[0][0],
            worst=tuple(id_ for _, id_ in (cosines or largest)[: self.most]),
        )


def _reader(side: Side, named: _Named) -> StageReader | None:
    stage, recipe_id = named
    if recipe_id is None:
        return None
    return side.store.reader(stage, recipe_id, strict=False)


def _contents(reader: StageReader | None) -> dict[str, set[str]]:
    contents: dict[str, set[str]] = {}
    if reader is not None:
        complete = set(reader.ids())
        for key in reader.keys():  # noqa: SIM118 (a reader is no mapping)
            if key.id in complete:
                contents.setdefault(key.id, set()).add(key.content)
    return contents


def compare(id_: str, one: Row, other: Row) -> VideoDifference | None:
    """How two rows of one input differ; None if they are equal bit for bit."""
    told = []
    if one.grid != other.grid:
        clips = [f"{row.grid.n} clips" if row.grid else "no grid" for row in (one, other)]
        told.append(f"other grids: {clips[0]} and {clips[1]}")
    if one.facts != other.facts:
        told.append("other facts")
    names = {*one.texts, *other.texts}
    if any([*one.texts.get(name, ())] != [*other.texts.get(name, ())] for name in names):
        told.append("other texts")
    cosines: dict[str, float | None] = {}
    most: dict[str, float] = {}
    for name in sorted({*one.arrays, *other.arrays}):
        mine, yours = one.arrays.get(name), other.arrays.get(name)
        if mine is None or yours is None or (mine.shape, mine.dtype) != (yours.shape, yours.dtype):
            forms = ["absent" if a is None else f"{a.shape} {a.dtype}" for a in (mine, yours)]
            told.append(f"'{name}' cannot be compared: {forms[0]} and {forms[1]}")
        elif mine.tobytes() != yours.tobytes():
            most[name] = max_difference(mine, yours)
            cosines[name] = mean_cosine(mine, yours)
    if not told and not most:
        return None
    return VideoDifference(id_, tuple(told), cosines, most)


def mean_cosine(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Mean over the rows of the cosine of the vectors of two float arrays.

    A vector of zeros has no direction: two of them count as 1, one of them as 0. None for arrays
    that hold no vectors of floats.
    """
    if one.dtype.kind != "f" or one.ndim != 2 or one.size == 0:
        return None
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), both_zero)
    return float(np.clip(cosines, -1, 1).mean())


def _badness(difference: VideoDifference) -> tuple[float, float, str]:
    cosines = [each for each in difference.cosine.values() if each is not None]
    most = max(difference.max_abs.values(), default=0.0)
    lowest = -2.0 if difference.told else min(cosines, default=1.0)
    return (lowest, -most, difference.id)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
