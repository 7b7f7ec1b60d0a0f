"""Where the time of workers goes: a stopwatch in each worker, and the sum of all of them.

A worker's time is charged to exactly one part at a time, so the parts add up to it. On a GPU,
calls return before the network has run: charged to it is the time in which a worker is blocked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

__all__ = ["PARTS", "Part", "Spent", "Stopwatch", "TimeOfWorkers"]

T = TypeVar("T")

Part: TypeAlias = Literal["decoder", "network", "stage", "files", "store", "rest"]

PARTS: Mapping[Part, str] = {
    "decoder": "decoder",
    "network": "network",
    "stage": "stage",
    "files": "hashing files",
    "store": "shards",
    "rest": "worker's own",
}
"""The parts of a worker's time, in the order in which they are told, with their words:

- `decoder`: waiting for the next window of the decoding child
- `network`: in `encode` and `finish` of stages over frames and sound
- `stage`: in `process` of stages over rows (`probe` decodes in there)
- `files`: reading media files to know their content
- `store`: writing shards, looking at what is stored
- `rest`: everything else that a worker does for a task
"""

_WORK: tuple[Part, ...] = ("decoder", "network", "stage")
"""What would also be spent in a plain loop without any engine."""


@dataclass(frozen=True)
class Spent:
    """Seconds of one or of many workers, by part."""

    seconds: Mapping[Part, float] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """All parts together."""
        return sum(self.seconds.values())

    def __add__(self, other: Spent) -> Spent:
        return Spent({p: self.seconds.get(p, 0) + other.seconds.get(p, 0) for p in PARTS})


class Stopwatch:
    """Charges time to the innermost part that is on.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._on: Part = "rest"
        self._since = now()
        self._seconds: dict[Part, float] = {}

    @contextmanager
    def on(self, part: Part) -> Iterator[None]:
        """Charge what happens inside to a part."""
        before = self._turn(part)
        try:
            yield
        finally:
            self._turn(before)

    def over(self, part: Part, things: Iterable[T]) -> Generator[T, None, None]:
        """The same things; the time in which one waits for the next is charged to a part.

        Closing it closes `things` if they come from a generator.
        """
        iterator = iter(things)
        end = object()
        try:
            while True:
                with self.on(part):
                    thing = next(iterator, end)
                if thing is end:
                    return
                yield thing  # type: ignore[misc]  # `end` is the only object that is no T
        finally:
            if isinstance(iterator, Generator):
                with self.on(part):
                    iterator.close()

    def begin(self) -> None:
        """Forget what came before: nobody's task was worked on."""
        self._turn("rest")
        self._seconds = {}

    def take(self) -> Spent:
        """What was spent since `begin`."""
        self._turn(self._on)
        spent, self._seconds = Spent(self._seconds), {}
        return spent

    def _turn(self, part: Part) -> Part:
        now, before = self._now(), self._on
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._on, self._since = part, now
        return before


@dataclass
class TimeOfWorkers:
    """Where the time of all workers of one stage set went, as the driver sees it.

    Args:
        spent: what the workers say of their calls.
        starting_s: from the start of a worker until it has set up its stages.
        calls_s: length of their calls, seen from the driver; the way there and back included.
        idle_s: between calls: no work is left, or the driver is busy.
    """

    spent: Spent = field(default_factory=Spent)
    starting_s: float = 0.0
    calls_s: float = 0.0
    idle_s: float = 0.0

    @property
    def work_s(self) -> float:
        """Seconds in decoders, networks and stages: what no engine could spare."""
        return sum(self.spent.seconds.get(part, 0.0) for part in _WORK)

    @property
    def present_s(self) -> float:
        """Seconds in which workers were ready."""
        return self.calls_s + self.idle_s

    @property
    def overhead(self) -> float:
        """Share of the time of ready workers that went into neither decoder, network nor stage."""
        return 1 - self.work_s / self.present_s if self.present_s > 0 else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Parts of the time of ready workers, by their words; they add up to 1."""
        if self.present_s <= 0:
            return {}
        told = {words: self.spent.seconds.get(part, 0.0) for part, words in PARTS.items()}
        told["calls"] = max(0.0, self.calls_s - self.spent.total_s)
        told["idle"] = self.idle_s
        return {words: seconds / self.present_s for words, seconds in told.items()}

    @property
    def sentence(self) -> str:
        """The shares of at least half a percent, and the engine's part of it."""
        shares = {words: share for words, share in self.shares.items() if share >= 0.005}
        told = ", ".join(f"{words} {share:.0%}" for words, share in shares.items())
        return f"{told}; engine {self.overhead:.0%}" if told else "no time was spent"

    def to_json(self) -> dict[str, float]:
        """Seconds by part, and the engine's share; plain JSON."""
        parts = {f"{part}_s": self.spent.seconds.get(part, 0.0) for part in PARTS}
        own = {"starting_s": self.starting_s, "calls_s": self.calls_s, "idle_s": self.idle_s}
        return {**parts, **own, "overhead": self.overhead}
