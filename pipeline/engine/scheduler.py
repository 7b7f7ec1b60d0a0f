"""The one loop of the engine: who works on what, what counts as an attempt, when it is over.

The scheduler owns attempts and deadlines, workers own rows. It knows nothing of Ray: workers live
behind `Executor`. What it promises:

- an input is given up after its own attempts and no other input is charged for it;
- rows that a dying worker had computed but not written are computed again, uncharged;
- a unit counts as done when its shard is on disk, not before.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from data.errors import StoreError
from data.store import Failure, FailureLog, FileHashes
from pipeline.engine.stop import StopFlag
from pipeline.engine.types import (
    Crashed,
    Event,
    Executor,
    Failed,
    Finished,
    Job,
    Outcome,
    Report,
    StageSetupError,
    Task,
    Unit,
)
from pipeline.stage import FrameStage, Item

__all__ = ["Limits", "Scheduler", "Tally", "Watcher"]


_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Limits:
    """How patient the scheduler is.

    Args:
        attempts: tries of an input that crashes its worker or runs out of time.
        exceptions: tries of an input for which a stage raises.
        timeout_s: longest time for one item of up to ten minutes of video, or of up to 100 MB
            where the length is not known yet; longer ones get proportionally more.
        setup_timeout_s: longest time to start a worker and set up its stages.
        grace_s: time to finish and write after a wish to stop.
        barren: workers in a row that may die while they start, or while they write.
    """

    attempts: int = 3
    exceptions: int = 2
    timeout_s: float = 1800.0
    setup_timeout_s: float = 1800.0
    grace_s: float = 30.0
    barren: int = 3

    def of(self, cause: str) -> int:
        """How often `cause` may happen to one unit."""
        return self.exceptions if cause == "exception" else self.attempts

    def allowed_s(self, task: Task) -> float:
        """Longest time for all items of a task."""
        return self.timeout_s * sum(_usual_videos(item) for item in task.items)


class Watcher(Protocol):
    """Who is told how the work goes."""

    def advance(self, stage: str, *, done: int = 0, failed: int = 0) -> None:
        """Units were computed (negative: lost again) or given up."""
        ...

    def note(self, text: str) -> None:
        """Something that a person should know."""
        ...


@dataclass
class Tally:
    """How a run of one stage set ended."""

    stored: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    bytes: int = 0


@dataclass
class _Seat:
    """A worker as the scheduler sees it."""

    doing: str = "starting"
    task: Task | None = None
    upcoming: Task | None = None
    deadline: float = 0.0
    allowed_s: float = 0.0
    held: dict[Unit, Item] = field(default_factory=dict)


class Scheduler:
    """Runs tasks of one job to their end.

    Args:
        job: the stages and where they write.
        executor: where workers live; started and closed by the caller.
        limits: attempts and deadlines.
        failures: where each stage of the job records what it gave up.
        hashes: where contents of files are remembered.
        durable: asks the store which of some units are on disk; used after a worker died, which
            may have written a shard that it could not report any more.
        watcher: who is told.
        stop: the wish to stop.
    """

    def __init__(
        self,
        job: Job,
        executor: Executor,
        limits: Limits,
        failures: Mapping[str, FailureLog],
        hashes: FileHashes,
        durable: Callable[[Mapping[Unit, Item]], set[Unit]],
        watcher: Watcher,
        stop: StopFlag,
    ) -> None:
        self.job = job
        self.executor = executor
        self.limits = limits
        self.failures = failures
        self.hashes = hashes
        self.durable = durable
        self.watcher = watcher
        self.stop = stop
        self.tally = Tally()
        self._seats: dict[int, _Seat] = {}
        self._fresh: Iterator[Task] = iter(())
        self._again: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._tries: Counter[tuple[Unit, str]] = Counter()
        self._barren: Counter[str] = Counter()
        self._began = time.monotonic()
        self._said: set[str] = set()
        self._prefetches = any(isinstance(each, FrameStage) for each in job.stages.stages)

    def run(self, tasks: Iterable[Task], workers: int) -> Tally:
        """Work until everything is stored or given up, or until the wish to stop.

        Args:
            tasks: taken one by one as workers become free.
            workers: how many workers to start.

        Raises:
            StageSetupError: a stage cannot be set up, or its workers keep dying without work.
            StoreError, OSError: the store cannot be written.
        """
        self._fresh = iter(tasks)
        try:
            for number in range(workers):
                self._start(number)
            while self._seats:
                for event in self.executor.wait(0.2):
                    self._handle(event)
                self._end_overdue()
                self._assign()
                self._tell()
        finally:
            for number in self._seats:
                self.executor.kill(number)
        return self.tally

    # --- handing out

    def _assign(self) -> None:
        for number, seat in list(self._seats.items()):
            if seat.doing == "starting" and self.stop:
                self._dismiss(number)
            elif seat.doing == "idle":
                self._give_work(number, seat)

    def _give_work(self, number: int, seat: _Seat) -> None:
        task = None if self.stop else self._next_for(seat)
        if seat.held and (task is None or self._is_suspect(task)):
            seat.upcoming = task
            self._begin(seat, "flushing", self.limits.timeout_s)
            self.executor.flush(number)
        elif task is not None:
            seat.task, seat.upcoming = task, self._peek()
            self._begin(seat, "working", self.limits.allowed_s(task))
            self.executor.submit(number, task, seat.upcoming)
        elif self.stop or not any(each.doing != "idle" for each in self._seats.values()):
            self._dismiss(number)

    def _next_for(self, seat: _Seat) -> Task | None:
        task, seat.upcoming = seat.upcoming, None
        return task or self._take() or self._steal()

    def _take(self) -> Task | None:
        if self._again:
            return self._again.popleft()
        fresh = next(self._fresh, None)
        if fresh is None and self._suspects:
            return self._suspects.popleft()
        return fresh

    def _has_work(self) -> bool:
        """Whether anything waits for a worker."""
        if not (self._again or self._suspects):
            self._again.extend(islice(self._fresh, 1))
        return bool(self._again or self._suspects)

    def _peek(self) -> Task | None:
        """The task that a worker gets after the current one, so that it can decode ahead."""
        task = self._take() if self._prefetches and not self.stop else None
        if task is not None and self._is_suspect(task):
            self._suspects.appendleft(task)
            return None
        return task

    def _steal(self) -> Task | None:
        """A task that waits for a busy worker while this one has nothing to do."""
        for seat in self._seats.values():
            if seat.upcoming is not None:
                task, seat.upcoming = seat.upcoming, None
                return task
        return None

    def _is_suspect(self, task: Task) -> bool:
        return any(
            self._tries[unit, cause] for unit in task.units for cause in ("crash", "timeout")
        )

    def _begin(self, seat: _Seat, doing: str, seconds: float) -> None:
        seat.doing = doing
        seat.allowed_s = seconds
        seat.deadline = time.monotonic() + seconds

    def _start(self, number: int) -> None:
        seat = self._seats[number] = _Seat()
        self._begin(seat, "starting", self.limits.setup_timeout_s)
        self.executor.start(number, self.job)

    def _dismiss(self, number: int) -> None:
        if self.stop:
            self.tally.interrupted = True
        self.executor.kill(number)
        del self._seats[number]

    # --- what workers answer

    def _handle(self, event: Event) -> None:
        seat = self._seats.get(event.worker)
        if seat is None:
            return
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Crashed):
            self._lose(event.worker, seat, "crash", event.why)
            return
        self._barren[seat.doing] = 0
        if isinstance(event, Finished):
            self._book(seat, event.report)
        seat.doing, seat.task = "idle", None

    def _book(self, seat: _Seat, report: Report) -> None:
        for each in report.hashes:
            # The cache is of this host's files; on a cluster a worker may see one that it does not.
            with suppress(OSError):
                self.hashes.remember(each.path, each.sha256, each.stat)
        for outcome in report.outcomes:
            self._settle(seat, outcome)
        for shard in report.shards:
            self.tally.bytes += shard.size_bytes
            self.tally.stored[shard.stage] += len(shard.keys)
            for key in shard.keys:
                seat.held.pop((shard.stage, key.id, key.part), None)

    def _settle(self, seat: _Seat, outcome: Outcome) -> None:
        item = replace(_item_of(seat.task, outcome), key=outcome.key)
        if outcome.status == "done":
            seat.held[outcome.unit] = item
            self.watcher.advance(outcome.stage, done=1)
        elif outcome.status == "present":
            self.tally.stored[outcome.stage] += 1
            self.watcher.advance(outcome.stage, done=1)
        elif outcome.status == "refused":
            self._tries[outcome.unit, "refused"] += 1
            self._give_up(outcome.stage, item, outcome.reason, outcome.message, outcome.log)
        else:
            task = Task((item,), (outcome.stage,))
            self._charge(task, outcome.reason, outcome.message, outcome.log)

    # --- failures

    def _charge(self, task: Task, cause: str, message: str, log: str = "") -> None:
        """Count one attempt of a task that is one unit; try again or give up."""
        (unit,) = task.units
        self._tries[unit, cause] += 1
        if self._tries[unit, cause] < self.limits.of(cause):
            self._suspects.append(task)
        else:
            self._give_up(unit[0], task.items[0], cause, message, log)

    def _give_up(self, stage: str, item: Item, reason: str, message: str, log: str) -> None:
        unit = (stage, item.key.id, item.key.part)
        attempts = sum(n for (each, _), n in self._tries.items() if each == unit)
        failure = Failure(stage, item.key, reason, message, attempts, log)
        self.failures[stage].record(failure)
        self.tally.failures.append(failure)
        self.watcher.advance(stage, failed=1)

    def _lose(self, number: int, seat: _Seat, cause: str, why: str) -> None:
        """A worker is gone: charge what it worked on, give its unwritten rows to others."""
        if seat.task is not None:
            first, *others = [item.key.id for item in seat.task.items]
            ids = f"{first} and {len(others)} more" if others else first
            self.watcher.note(f"a worker was lost while it worked on {ids}: {why}")
            alone = len(seat.task.units) == 1
            for task in seat.task.split():
                if alone:
                    self._charge(task, cause, why)
                else:
                    self._suspects.append(task)
        else:
            self._barren[seat.doing] += 1
            self._give_up_on_workers(seat.doing, why)
        if seat.upcoming is not None:
            self._again.append(seat.upcoming)
        self._requeue_lost(seat)
        del self._seats[number]
        if self.stop:
            self.tally.interrupted = True
        elif self._has_work():
            self._start(number)

    def _requeue_lost(self, seat: _Seat) -> None:
        written = self.durable(seat.held) if seat.held else set()
        by_item: dict[str, tuple[Item, list[str]]] = {}
        for unit, item in seat.held.items():
            stage, id_, part = unit
            if unit in written:
                self.tally.stored[stage] += 1
            else:
                by_item.setdefault(f"{id_}/{part}", (item, []))[1].append(stage)
                self.watcher.advance(stage, done=-1)
        self._again.extend(Task((item,), tuple(stages)) for item, stages in by_item.values())

    def _give_up_on_workers(self, doing: str, why: str) -> None:
        count = self._barren[doing]
        if count < self.limits.barren:
            return
        names = ", ".join(self.job.stages.names)
        if doing == "flushing":
            raise StoreError(
                f"{count} workers in a row ended while writing shards of {names} to "
                f"{self.job.store}: {why}; check that the disk answers and has room, then run again"
            )
        raise StageSetupError(
            self.job.stages.names[0] if len(self.job.stages.names) == 1 else "",
            f"workers of {names} end while they start ({count} in a row): {why}; run once "
            "with --executor inline to see the error itself",
        )

    def _end_overdue(self) -> None:
        now = time.monotonic()
        too_late = self.stop.at is not None and now > self.stop.at + self.limits.grace_s
        for number, seat in list(self._seats.items()):
            if seat.doing == "idle":
                continue
            if too_late:
                self._dismiss(number)
            elif now > seat.deadline:
                self.executor.kill(number)
                self._lose(number, seat, "timeout", f"no answer within {seat.allowed_s:g} s")

    def _tell(self) -> None:
        """Say once that a stop is on its way, or that no worker has come up."""
        busy = sum(seat.doing != "idle" for seat in self._seats.values())
        if self.stop and busy:
            self._say(
                f"stopping: finishing and writing what is in work, at most {self.limits.grace_s:g} "
                "s; once more Ctrl-C ends at once"
            )
        waiting = all(seat.doing == "starting" for seat in self._seats.values())
        if busy and waiting and time.monotonic() - self._began > _PATIENCE_S:
            self._say(
                f"no worker of {', '.join(self.job.stages.names)} has started after "
                f"{_PATIENCE_S:g} s: it loads weights, or the cluster is full (`ray status`)"
            )

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.watcher.note(text)


def _item_of(task: Task | None, outcome: Outcome) -> Item:
    items = task.items if task is not None else ()
    for item in items:
        if (item.key.id, item.key.part) == (outcome.key.id, outcome.key.part):
            return item
    raise ValueError(f"a worker answered for {outcome.unit}, which it was not asked for")


def _usual_videos(item: Item) -> float:
    """How many usual videos an item is worth, at least one."""
    if item.facts is not None:
        return max(1.0, item.facts.duration_s / 600)
    if item.video is not None and item.video.path.is_file():
        return max(1.0, item.video.path.stat().st_size / 100e6)
    return 1.0
