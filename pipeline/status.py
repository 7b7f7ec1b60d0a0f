"""What is in a store, stage by stage, without a config."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.table import Table

from data.store import StageReader, Store
from data.store.compact import TARGET_BYTES
from data.store.files import Entry, list_folder
from data.store.recipes import is_import
from data.store.upkeep import SET_ASIDE, is_shard, put_aside
from data.terminal import new_table, size_text
from pipeline.plan import Plan
from pipeline.stage import STAGES

__all__ = ["StageStatus", "StoreRemarks", "read_status", "status_table"]

_MANY_SHARDS = 8
_TIMES_FEWER = 4
"""`compact` is recommended where it makes so many times fewer shards of at least so many."""


@dataclass(frozen=True)
class StageStatus:
    """One stage of a store under its current recipe.

    Args:
        stage: name of the stage.
        recipe: id of the current recipe.
        done: inputs with all their rows.
        missing: inputs without, that are not in quarantine; None if nobody knows what is wanted.
        failed: inputs in quarantine.
        blocked: inputs that a stage before gave up; None without a config.
        bytes: size of the shards.
        shards: number of the shards.
        damaged: shards that cannot be read.
        other_recipes: recipes that are kept beside the current one.
        last_write: time of the newest shard, ISO 8601, of the machine's clock; None without shards.
        imported: whether the rows come from files of others (`pipeline import`).
        told: what the stage says of its rows (`Stage.remarks`).
    """

    stage: str
    recipe: str
    done: int
    missing: int | None
    failed: int
    blocked: int | None
    bytes: int
    shards: int
    damaged: int
    other_recipes: int
    last_write: str | None
    imported: bool = False
    told: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """What a maintainer may want to do about it, with the command."""
        remarks = ["imported"] if self.imported else []
        remarks += self.told
        if self.failed:
            remarks.append(f"{self.failed} failed: `pipeline failures --stage {self.stage}`")
        if self.damaged:
            remarks.append(f"{self.damaged} damaged shards: `pipeline repair`")
        few = max(1, math.ceil(self.bytes / TARGET_BYTES))
        if self.shards >= _MANY_SHARDS and self.shards >= _TIMES_FEWER * few:
            each = size_text(self.bytes // self.shards)
            remarks.append(f"{self.shards:,} shards of {each}: `pipeline compact` makes {few:,}")
        if self.other_recipes:
            remarks.append(f"{self.other_recipes} other recipes: `pipeline gc` removes old ones")
        return remarks

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"remarks": self.remarks}


@dataclass(frozen=True)
class StoreRemarks:
    """What a maintainer should know of a store beside its stages.

    Args:
        set_aside: number of files that repair has set aside.
        set_aside_bytes: their size.
    """

    set_aside: int
    set_aside_bytes: int

    @staticmethod
    def of(store: Store) -> StoreRemarks:
        """Look into `set-aside/`."""
        sizes = [entry.size for _, entry in put_aside(store)]
        return StoreRemarks(len(sizes), sum(sizes))

    @property
    def told(self) -> str:
        """In words; "" if there is nothing to say."""
        if not self.set_aside:
            return ""
        return (
            f"{self.set_aside} files ({size_text(self.set_aside_bytes)}) are set aside: see "
            f"{SET_ASIDE}/log.jsonl; `pipeline gc --set-aside` removes old ones"
        )


def read_status(store: Store, plan: Plan | None = None) -> list[StageStatus]:
    """The stages of a store in the order of the plan, else by name.

    Args:
        store: the store.
        plan: what a config wants of it; without one the probed videos and the store's queries
            are what is wanted. Files that were not hashed yet are taken for those of the catalogue.
    """
    current = store.current
    order = [line.stage for line in plan.lines] if plan else []
    names = [name for name in dict.fromkeys([*order, *sorted(current)]) if name in current]
    return [_stage(store, name, current[name], plan) for name in names]


def _stage(store: Store, name: str, recipe: str, plan: Plan | None) -> StageStatus:
    reader = store.reader(name, recipe, strict=False)
    present = reader.keys()
    failures = store.failures(name, recipe).read().values()
    failed = {each.key.id for each in failures if each.key not in present}
    entries = list_folder(store.folder(name, recipe))
    shards = [each for each in entries if is_shard(each.name) and not each.is_folder]
    line = next((each for each in plan.lines if each.stage == name), None) if plan else None
    done = len(reader)
    wanted = line.wanted if line else _wanted(store, name)
    missing = None if wanted is None else max(0, wanted - done - len(failed))
    if line is not None and line.recipe == recipe:
        stored = _stored(store, reader, name, plan.unhashed if plan else ())
        done, missing = line.present + stored, line.missing - stored
    return StageStatus(
        stage=name,
        recipe=recipe,
        done=done,
        missing=missing,
        failed=len(failed),
        blocked=line.blocked if line else None,
        bytes=sum(entry.size for entry in shards),
        shards=len(shards),
        damaged=len(reader.problems),
        other_recipes=len([each for each in store.recipes(name) if each != recipe]),
        last_write=_newest(shards),
        imported=recipe in store.recipes(name) and is_import(store.recipe(name, recipe)),
        told=_told(reader, name),
    )


def _told(reader: StageReader, name: str) -> tuple[str, ...]:
    """What the stage makes of the facts of its rows; nothing for one that counts none."""
    kind = STAGES.get(name) if name in STAGES else None
    if kind is None or not kind.remarked:
        return ()
    sums = dict.fromkeys(kind.remarked, 0)
    for id_ in reader.ids():
        facts = reader.facts(id_)
        for part in facts.get("parts", (facts,)):
            for each in sums:
                value = part.get(each, 0)
                sums[each] += value if isinstance(value, int) else 0
    return tuple(kind.remarks(sums))


def _stored(store: Store, reader: StageReader, name: str, ids: Sequence[str]) -> int:
    """How many of some videos have rows of the content that the catalogue knows."""
    if not ids or name not in STAGES or STAGES.get(name).over != "videos":
        return 0
    catalogue = store.catalogue()
    return sum(id_ in reader and reader.key(id_).content == catalogue[id_].content for id_ in ids)


def _wanted(store: Store, name: str) -> int | None:
    if name not in STAGES:
        return None
    if STAGES.get(name).over == "videos":
        return len(store.catalogue())
    rows = (row for split in store.splits() for row in store.annotations(split))
    return len({row.query for row in rows})


def _newest(shards: Iterable[Entry]) -> str | None:
    newest = max((entry.mtime for entry in shards if entry.mtime is not None), default=None)
    if newest is None:
        return None
    return datetime.fromtimestamp(newest).astimezone().isoformat(timespec="seconds")


def status_table(lines: Iterable[StageStatus], title: str) -> Table:
    """For a terminal."""
    columns = ("done>", "missing>", "failed>", "blocked>", "size>", "shards>", "recipe")
    table = new_table(title, "stage", *columns, "last write", "")
    for one in lines:
        numbers = (one.done, one.missing, one.failed, one.blocked)
        cells = ["–" if each is None else f"{each:,}" for each in numbers]
        size = size_text(one.bytes)
        written = one.last_write or "–"
        table.add_row(one.stage, *cells, size, str(one.shards), one.recipe, written, _remark(one))
    return table


def _remark(one: StageStatus) -> str:
    return "; ".join(one.remarks)
