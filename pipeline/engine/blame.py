"""Whose fault a death was: what is counted against an input, and what is forgiven.

A poison input that ends its process without a trace looks like a machine that is taken away. Both
are counted as `killed`; an innocent input must survive the second. Three rules do it:

- a death from outside has a higher limit, and the input rests before it is tried again, longer
  each time: a gust of kills is over by then;
- while machines are known to die at random, deaths from outside are forgiven. That is known when
  a worker dies that had no input in hand, when a machine is lost, or when an input that had
  "killed" its worker is done later: no poison input gives any of these signs;
- forgiveness ends: after three times its limit an input is given up all the same, so that a run
  ends, whatever its inputs are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from pipeline.engine.limits import FROM_OUTSIDE, Limits
from pipeline.engine.types import Unit

__all__ = ["Blame"]

_FORGIVEN = 2
"""Deaths that may be forgiven, in multiples of the limit of their cause."""


class Blame:
    """Counts attempts by unit and cause; only units that failed are kept.

    Args:
        limits: how often what may happen.
        clock: monotonic seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._counted: dict[Unit, Counter[str]] = {}
        self._forgiven: dict[Unit, Counter[str]] = {}
        self._random_at: float | None = None

    def count(self, unit: Unit, cause: str) -> bool:
        """One more failure of a unit; whether it is to be given up."""
        if cause == "node-lost":
            self.random_death()
        forgiven = self._forgiven.setdefault(unit, Counter())
        limit = self._limits.of(cause)
        if self._is_storm(cause) and forgiven[cause] < _FORGIVEN * limit:
            forgiven[cause] += 1
            return False
        self._counted.setdefault(unit, Counter())[cause] += 1
        return self._counted[unit][cause] >= limit

    def random_death(self) -> None:
        """A worker died and no input can have been the cause."""
        self._random_at = self._clock()

    def done(self, unit: Unit) -> None:
        """A unit was computed: what ended its workers before was not it."""
        if self.deaths(unit):
            self.random_death()
        self._counted.pop(unit, None)
        self._forgiven.pop(unit, None)

    def refused(self, unit: Unit) -> None:
        """A unit will never do; its attempt counts."""
        self._counted.setdefault(unit, Counter())["refused"] += 1

    def attempts(self, unit: Unit) -> int:
        """How often a unit failed, forgiven deaths included."""
        return sum(each[unit].total() for each in (self._counted, self._forgiven) if unit in each)

    def deaths(self, unit: Unit) -> int:
        """How often the worker of a unit died from outside."""
        return sum(
            each[unit][cause]
            for each in (self._counted, self._forgiven)
            if unit in each
            for cause in FROM_OUTSIDE
        )

    def is_suspect(self, unit: Unit) -> bool:
        """Whether a unit may end or hang the next worker, too."""
        deadly = (*FROM_OUTSIDE, "crash", "engine-died", "timeout")
        return any(
            each[unit][cause]
            for each in (self._counted, self._forgiven)
            if unit in each
            for cause in deadly
        )

    def needs_room(self, unit: Unit) -> bool:
        """Whether a unit ran out of memory before: it should have the machines for itself."""
        return bool(self._counted.get(unit, Counter())["out-of-memory"]) or bool(
            self._forgiven.get(unit, Counter())["out-of-memory"]
        )

    def _is_storm(self, cause: str) -> bool:
        recent = (
            self._random_at is not None and self._clock() - self._random_at < self._limits.storm_s
        )
        return cause in FROM_OUTSIDE and recent
