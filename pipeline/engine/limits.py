"""How often what may happen to an input, and for how long: the patience of the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pipeline.engine.types import Task
from pipeline.stage import Item

__all__ = ["ATTEMPTS", "FROM_OUTSIDE", "Limits"]

ATTEMPTS: Mapping[str, int] = MappingProxyType(
    {
        "crash": 3,
        "killed": 5,
        "out-of-memory": 3,
        "node-lost": 10,
        "timeout": 2,
        "exception": 2,
        "decoder": 3,
    }
)
"""How often each cause may happen to one input before it is given up.

- `crash`: the worker's process died by its own making (a signal that left a trace, an exit code)
- `killed`: it ended without a trace: SIGKILL by somebody, the kernel's OOM killer, `os._exit`
- `out-of-memory`: Ray ended it, for the machine ran out of memory
- `node-lost`: its machine is gone
- `timeout`: no answer in time
- `exception`: the stage raised
- `decoder`: the decoder's child process died or hung
"""

_AS = {"engine-died": "crash"}
"""What counts like another cause. `engine-died`: the worker lives, what it computes with does not
(`data.errors.EngineDiedError`)."""

FROM_OUTSIDE = frozenset({"killed", "node-lost", "out-of-memory"})
"""Causes that may well be no fault of the input that was at hand."""

_LONGEST_REST_S = 8.0


@dataclass(frozen=True)
class Limits:
    """How patient the scheduler is.

    Args:
        attempts: tries of an input, by cause; what is left out has the default.
        timeout_s: longest time for a task of up to ten minutes of video, or of up to 100 MB where
            the length is not known yet; longer ones get proportionally more. A part of a video
            counts with its share of it; what goes together counts together.
        setup_timeout_s: longest time to start a worker and set up its stages.
        grace_s: time to finish and write after a wish to stop.
        barren: workers in a row that may die by their own making while they start or write.
        barren_outside: the same from outside, per place of a worker.
        rest_s: pause after the first death from outside, before an input is tried again or a
            worker is started again; it doubles with every further one, up to 8 s.
        storm_s: how long a death that was nobody's fault excuses the others (`blame.py`).
        recheck_s: how often the cluster is asked whether more or fewer workers fit.
    """

    attempts: Mapping[str, int] = field(default_factory=dict)
    timeout_s: float = 1800.0
    setup_timeout_s: float = 1800.0
    grace_s: float = 30.0
    barren: int = 3
    barren_outside: int = 10
    rest_s: float = 0.5
    storm_s: float = 60.0
    recheck_s: float = 10.0

    def of(self, cause: str) -> int:
        """How often `cause` may happen to one unit."""
        kind = "decoder" if cause.startswith("decoder-") else _AS.get(cause, cause)
        return self.attempts.get(kind, ATTEMPTS[kind])

    def rest_after(self, deaths: int) -> float:
        """Seconds of rest after so many deaths from outside."""
        return min(self.rest_s * 2.0 ** min(deaths - 1, 10), _LONGEST_REST_S) if deaths else 0.0

    def allowed_s(self, task: Task) -> float:
        """Longest time for all items of a task.

        Many small items are not many times as patient with an engine that hangs: a group that was
        too slow is tried again item by item, uncharged.
        """
        return self.timeout_s * max(1.0, sum(_usual_videos(item) for item in task.items))


def _usual_videos(item: Item) -> float:
    """How many usual videos an item is worth; sentences next to nothing."""
    if item.facts is not None:
        # A part of a long video is no long video: decoding begins near it.
        return item.facts.duration_s / item.key.parts / 600
    if item.video is not None and item.video.path.is_file():
        return item.video.path.stat().st_size / 100e6
    return 0.0
