"""What the scheduler notes: about each worker, about the whole set, and for whoever watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.engine.spent import TimeOfWorkers
from pipeline.engine.types import Task, Unit
from pipeline.stage import Item

__all__ = ["Seat", "Tally", "Watcher"]


class Watcher(Protocol):
    """Who is told how the work goes."""

    def advance(self, stage: str, *, done: int = 0, failed: int = 0) -> None:
        """Units were computed (negative: lost again) or given up."""
        ...

    def count(self, stage: str, counts: Mapping[str, int]) -> None:
        """What the rows of some units sum up to (`Stage.summed`), told once for each row."""
        ...

    def note(self, text: str) -> None:
        """Something that a person should know."""
        ...


@dataclass
class Tally:
    """How a run of one stage set ended.

    Args:
        stored: rows on disk, by stage.
        failed: units that were given up.
        unread: units whose upstream rows or file could not be read, nobody's fault.
        unread_because: why, for the last of them.
        damaged: the shards that were the reason, each with the reader's sentence.
        changed: ids whose file was replaced while they were worked on.
        interrupted: whether work was left because of the wish to stop.
        bytes: size of the shards.
        time: where the time of the workers went.
        counts: sums over the rows of this run, by stage and name (`Stage.summed`).
    """

    stored: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    unread: int = 0
    unread_because: str = ""
    damaged: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    interrupted: bool = False
    bytes: int = 0
    time: TimeOfWorkers = field(default_factory=TimeOfWorkers)
    counts: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass
class Seat:
    """A worker as the scheduler sees it.

    Args:
        doing: `starting`, `idle`, `working`, `flushing`, or `resting`: its worker died and the
            next one is started after a while.
        task: what it works on.
        upcoming: what it gets next; it may decode that ahead.
        deadline: `time.monotonic()` at which it must have answered, or has rested.
        allowed_s: seconds that it had for that.
        held: rows that are computed and not on disk.
        since: `time.monotonic()` of its last answer.
        began: `time.monotonic()` at which it began what it does.
    """

    doing: str = "starting"
    task: Task | None = None
    upcoming: Task | None = None
    deadline: float = 0.0
    allowed_s: float = 0.0
    held: dict[Unit, Item] = field(default_factory=dict)
    since: float = 0.0
    began: float = 0.0
