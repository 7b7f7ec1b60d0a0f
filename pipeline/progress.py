"""What a person sees while the pipeline works: a live table, or plain lines without a terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from data.terminal import new_table

__all__ = ["LimitOf", "Progress", "StageProgress", "duration"]

LimitOf = Callable[[float], float | None]
"""Mean new tokens of a caption to the captions per second that the machine can do at most."""

_PLAIN_EVERY_S = 5.0


@dataclass
class StageProgress:
    """How far one stage is. `total` counts what was to do when the stage began.

    Args:
        name: the stage.
        total: units to work on in this run.
        before: units that were there already.
        counts: sums over the rows that were made (`Stage.summed`).
        limit: what could be at most, where somebody knows.
    """

    name: str
    total: int
    before: int
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    failed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    limit: LimitOf | None = None
    began: float = field(init=False)
    first: float | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def seconds(self) -> float:
        """Seconds since the stage began, until it ended."""
        return (self.ended if self.ended is not None else self.clock()) - self.began

    def advance(self, done: int, failed: int) -> None:
        """Count; the clock of the rate starts with the first unit."""
        self.done += done
        self.failed += failed
        self.first = self.clock() if self.first is None else self.first

    @property
    def rate_hz(self) -> float | None:
        """Units per second: in the end over all the time; before that since the first unit, whose
        time is mostly the start of the workers; None while nobody can know.
        """
        finished = self.done + self.failed
        if self.ended is not None:
            return finished / max(self.seconds, 1e-6)
        if self.first is None or finished < 2:
            return None
        return (finished - 1) / max(self.clock() - self.first, 1e-6)

    @property
    def eta_s(self) -> float | None:
        """Seconds that the rest takes at this rate; None while nobody can know."""
        left = self.total - self.done - self.failed
        return left / self.rate_hz if self.rate_hz else None

    @property
    def text(self) -> str:
        """One line."""
        failures = f", {self.failed} failed" if self.failed else ""
        head = f"{self.name}: {self.done}/{self.total}{failures}, {_rate(self.rate_hz)}/s"
        tail = f"; {self.counted}" if self.counts else ""
        if self.ended is not None:
            return f"{head}, took {duration(self.seconds)}{tail}"
        return f"{head}, {duration(self.eta_s)} left{tail}"

    @property
    def counted(self) -> str:
        """Captions and tokens, how fast they come, and the share of the limit; "" without any."""
        if not self.counts:
            return ""
        seconds = max(self.seconds, 1e-6)
        captions, tokens = self.counts["captions"], self.counts["new_tokens"]
        others = ((name, self.counts[name]) for name in ("reused", "flagged", "failed"))
        parts = [f"{captions:,} captions, {_rate(captions / seconds)}/s"]
        parts += [f"{_rate(tokens / seconds)} tokens/s"] if tokens else []
        parts += [f"{count:,} {name}" for name, count in others if count]
        most_hz = self.limit(tokens / captions) if self.limit and captions else None
        if most_hz:
            parts.append(f"{captions / seconds / most_hz:.0%} of the computed limit")
        return ", ".join(parts)


class Progress:
    """Follows the stages of a run.

    Args:
        console: where to print; a live table if it is a terminal, else plain lines.
        every_s: seconds between plain lines.
    """

    def __init__(self, console: Console, every_s: float = _PLAIN_EVERY_S) -> None:
        self.console = console
        self.every_s = every_s
        self.stages: dict[str, StageProgress] = {}
        self._live: Live | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, stage: str, total: int, before: int) -> None:
        """A stage begins; beginning again after a part of its set was dropped starts anew."""
        self.stages[stage] = StageProgress(stage, total, before)
        self._line(f"{stage}: {total} to do, {before} there already")

    def end(self, stage: str) -> None:
        """A stage ended."""
        one = self.stages[stage]
        one.ended = one.clock()
        self._line(one.text)

    def advance(self, stage: str, *, done: int = 0, failed: int = 0) -> None:
        """Units were computed (negative: lost again) or given up."""
        one = self.stages[stage]
        one.advance(done, failed)
        if self._live is None and time.monotonic() - self._printed >= self.every_s:
            self._line(one.text)

    def count(self, stage: str, counts: Mapping[str, int]) -> None:
        """What the rows of some units sum up to, e.g. captions and tokens."""
        self.stages[stage].counts.update(counts)

    def limit(self, stage: str, limit: LimitOf) -> None:
        """What could be at most."""
        self.stages[stage].limit = limit

    def note(self, text: str) -> None:
        """Something that a person should know."""
        self.console.print(text, soft_wrap=True)

    def table(self) -> Table:
        """All stages so far."""
        table = new_table("", "stage", "there>", "done>", "of>", "failed>", "per s>", "left>")
        for one in self.stages.values():
            left = f"took {duration(one.seconds)}" if one.ended else duration(one.eta_s)
            counts = (one.before, one.done, one.total, one.failed)
            table.add_row(one.name, *map(str, counts), _rate(one.rate_hz), left)
        told = [f"{one.name}: {one.counted}" for one in self.stages.values() if one.counts]
        table.caption = "\n".join(told) or None
        return table

    def _line(self, text: str) -> None:
        if self._live is None:
            self._printed = time.monotonic()
            self.note(text)


def _rate(rate_hz: float | None) -> str:
    return "?" if rate_hz is None else f"{rate_hz:.3g}"


def duration(seconds: float | None) -> str:
    """A length of time for a person."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
