"""The one loop of the engine: who works on what, what counts as an attempt, when it is over.

The scheduler owns attempts and deadlines, workers own rows. It knows nothing of Ray: workers live
behind `Executor`. What it promises:

- an input is given up after its own attempts and no other input is charged for it (`blame.py`);
- rows that a dying worker had computed but not written are computed again, uncharged;
- a unit counts as done when its shard is on disk, not before;
- after a wish to stop, and when the store cannot be written, what is in work may end and what is
  held is written, as far as that can be done within the grace.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from data.errors import StoreError, StorylineError, UsageError
from data.store import Failure, FailureLog, FileHashes
from pipeline.engine.blame import Blame
from pipeline.engine.content import is_readable
from pipeline.engine.limits import FROM_OUTSIDE, Limits
from pipeline.engine.queue import TaskQueue
from pipeline.engine.stop import StopFlag
from pipeline.engine.tally import Seat, Tally, Watcher
from pipeline.engine.types import (
    Crashed,
    Event,
    Executor,
    Failed,
    Finished,
    Job,
    Outcome,
    Ready,
    Report,
    StageSetupError,
    Task,
    Unit,
    unit_of,
)
from pipeline.stage import FrameStage, Item, SoundStage

__all__ = ["Scheduler"]


_PATIENCE_S = 60.0

_PAUSE_S = 30.0
"""A turn of the loop takes well under a second; after one of this length the process was stopped
(a suspended job or machine), and its workers with it."""

_STALE_S = 1.0
"""A worker that was idle for so long is asked whether it lives before it gets an input: a death
that nobody noticed would be charged to that input."""


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
        self._seats: dict[int, Seat] = {}
        self._blame = Blame(limits)
        self._queue = TaskQueue(self._blame, self._fail)
        self._barren: Counter[str] = Counter()
        self._gusts: Counter[int] = Counter()
        self._error: Exception | None = None
        self._error_at = 0.0
        self._lost_rows = 0
        self._most = 0
        self._rechecked = self._began = self._turned = time.monotonic()
        self._said: set[str] = set()
        self._prefetches = any(
            isinstance(each, FrameStage | SoundStage) for each in job.stages.stages
        )

    def run(self, tasks: Iterable[Task], workers: int, most: int | None = None) -> Tally:
        """Work until everything is stored or given up, or until the wish to stop.

        Args:
            tasks: taken one by one as workers become free.
            workers: how many workers to start.
            most: how many there may be when the cluster has grown; None means `workers`.

        Raises:
            StageSetupError: a stage cannot be set up, or its workers keep dying without work.
            StoreError, OSError: the store cannot be written.
        """
        self._queue.fill(tasks)
        self._most = workers if most is None else most
        try:
            for number in range(workers):
                self._start(number)
            while self._seats:
                for event in self.executor.wait(0.2):
                    self._handle(event)
                self._excuse_pause()
                self._end_overdue()
                self._assign()
                self._recheck()
                self._tell()
        finally:
            for number in self._seats:
                self.executor.kill(number)
        if self._error is not None:
            self._mourn()
            raise self._error
        return self.tally

    @property
    def _closing(self) -> bool:
        """Whether no new work is begun."""
        return bool(self.stop) or self._error is not None

    # --- handing out

    def _assign(self) -> None:
        for number, seat in list(self._seats.items()):
            if seat.doing == "starting" and self._closing:
                self._dismiss(number)
            elif seat.doing == "idle":
                self._give_work(number, seat)
            elif seat.doing == "resting":
                self._wake(number, seat)

    def _give_work(self, number: int, seat: Seat) -> None:
        task = None if self._closing else self._next_for(seat)
        if task is not None and not self._may_begin(task):
            self._queue.put_back(task)
            task = None
        suspect = task is not None and self._queue.is_suspect(task)
        stale = task is not None and time.monotonic() - seat.since > _STALE_S
        if stale or (seat.held and (task is None or suspect)):
            seat.upcoming = task
            self._begin(seat, "flushing", self.limits.timeout_s)
            self.executor.flush(number)
        elif task is not None:
            seat.task, seat.upcoming = task, self._peek()
            self._begin(seat, "working", self.limits.allowed_s(task))
            self.executor.submit(number, task, seat.upcoming)
        elif self._closing or not (self._is_busy() or self._queue.has_suspects):
            self._dismiss(number)

    def _wake(self, number: int, seat: Seat) -> None:
        """End the rest of a place whose worker died from outside."""
        if self._closing or not (self._queue.has_work() or self._is_busy()):
            self._dismiss(number)
        elif self._queue.has_work() and time.monotonic() > seat.deadline:
            self._start(number)

    def _is_busy(self) -> bool:
        return any(seat.doing not in ("idle", "resting") for seat in self._seats.values())

    def _may_begin(self, task: Task) -> bool:
        """What ran out of memory before is worked on while nothing else is."""
        working = [seat.task for seat in self._seats.values() if seat.task is not None]
        return not working or not any(self._needs_room(each) for each in (task, *working))

    def _needs_room(self, task: Task) -> bool:
        return any(map(self._blame.needs_room, task.units))

    def _next_for(self, seat: Seat) -> Task | None:
        task, seat.upcoming = seat.upcoming, None
        return task or self._queue.take() or self._steal()

    def _peek(self) -> Task | None:
        """The task that a worker gets after the current one, so that it can decode ahead."""
        task = self._queue.take() if self._prefetches and not self._closing else None
        if task is not None and self._queue.is_suspect(task):
            self._queue.put_back(task)
            return None
        return task

    def _steal(self) -> Task | None:
        """A task that waits for a busy worker while this one has nothing to do."""
        for seat in self._seats.values():
            if seat.upcoming is not None:
                task, seat.upcoming = seat.upcoming, None
                return task
        return None

    def _begin(self, seat: Seat, doing: str, seconds: float) -> None:
        now = time.monotonic()
        if seat.doing == "idle":
            self.tally.time.idle_s += now - seat.since
        seat.doing, seat.began = doing, now
        seat.allowed_s = seconds
        seat.deadline = now + seconds

    def _account(self, seat: Seat) -> None:
        """A worker did what it was told: how long that took."""
        seconds = time.monotonic() - seat.began
        if seat.doing == "starting":
            self.tally.time.starting_s += seconds
        else:
            self.tally.time.calls_s += seconds

    def _start(self, number: int) -> None:
        seat = self._seats[number] = Seat()
        self._begin(seat, "starting", self.limits.setup_timeout_s)
        self.executor.start(number, self.job)

    def _dismiss(self, number: int) -> None:
        if self.stop:
            self.tally.interrupted = True
        seat = self._seats.pop(number)
        if seat.doing == "idle":
            self.tally.time.idle_s += time.monotonic() - seat.since
        self.executor.kill(number)
        if seat.held:
            with suppress(StorylineError):
                self._lost_rows += len(self._unwritten(seat))

    def _recheck(self) -> None:
        """Use machines that were added; do not wait for workers on machines that are gone."""
        now = time.monotonic()
        if self._closing or now - self._rechecked < self.limits.recheck_s:
            return
        self._rechecked = now
        try:
            room = self.executor.capacity(self.job)
        except UsageError:
            room = 0  # a cluster may be empty for a while
        for number in range(self._most):
            if number not in self._seats and len(self._seats) < room and self._queue.has_work():
                self.watcher.note("one more worker fits by now")
                self._start(number)
        for number, seat in list(self._seats.items()):
            if seat.doing == "starting" and len(self._seats) > max(1, room):
                self._dismiss(number)

    # --- what workers answer

    def _handle(self, event: Event) -> None:
        seat = self._seats.get(event.worker)
        if seat is None:
            return
        try:
            if isinstance(event, Failed):
                self._fail(event.error)
                self._dismiss(event.worker)
            elif isinstance(event, Crashed):
                self._lose(event.worker, seat, event.cause, event.why, event.log)
            else:
                self._hear(event, seat)
        except StorylineError as error:
            # The driver itself cannot write, or workers keep dying.
            self._fail(error)

    def _hear(self, event: Ready | Finished, seat: Seat) -> None:
        """A worker did what it was told."""
        self._barren[seat.doing] = 0
        if seat.doing == "working":
            self._gusts[event.worker] = 0
        self._account(seat)
        seat.doing, seat.since = "idle", time.monotonic()
        if isinstance(event, Finished):
            self.tally.time.spent += event.report.spent
            self._book(seat, event.report)
        seat.task = None

    def _fail(self, error: Exception) -> None:
        """Begin no new work; let the others end and write theirs, then raise the first error."""
        if self._error is None:
            self._error, self._error_at = error, time.monotonic()

    def _mourn(self) -> None:
        if self._lost_rows:
            self.watcher.note(
                f"{self._lost_rows} rows were computed and could not be written; the next run "
                "makes them again"
            )

    def _book(self, seat: Seat, report: Report) -> None:
        for each in report.hashes:
            # The cache is of this host's files; on a cluster a worker may see one that it does not.
            with suppress(OSError, StoreError):
                self.hashes.remember(each.path, each.sha256, each.stat)
        for outcome in report.outcomes:
            self._settle(seat, outcome)
        for stage, counts in report.counts.items():
            self.tally.counts.setdefault(stage, Counter()).update(counts)
            self.watcher.count(stage, counts)
        for shard in report.shards:
            self.tally.bytes += shard.size_bytes
            self.tally.stored[shard.stage] += len(shard.keys)
            for key in shard.keys:
                seat.held.pop((shard.stage, key.id, key.part), None)

    def _settle(self, seat: Seat, outcome: Outcome) -> None:
        if seat.task is None:
            raise ValueError(f"a worker answered for {outcome.unit}, which it was not asked for")
        item = replace(seat.task.item_of(outcome.key), key=outcome.key)
        if outcome.status == "done":
            self._barren["engine"] = 0
            seat.held[outcome.unit] = item
            self._blame.done(outcome.unit)
            self.watcher.advance(outcome.stage, done=1)
        elif outcome.status == "present":
            self.tally.stored[outcome.stage] += 1
            self.watcher.advance(outcome.stage, done=1)
        elif outcome.reason == "missing" and is_readable(item.video):
            # Its machine lacks the file: one such machine would refuse every input at once.
            self.tally.unread += 1
            self.tally.unread_because = (
                f"{outcome.message}: this machine can read it; every machine of the cluster must "
                "see the videos under the same path"
            )
            if self.tally.unread == 1:
                self._say(self.tally.unread_because)
        elif outcome.status == "refused":
            self._blame.refused(outcome.unit)
            self._give_up(outcome.stage, item, outcome.reason, outcome.message, outcome.log)
        elif outcome.status == "unread":
            self.tally.unread += 1
            self.tally.unread_because = outcome.message
            if self.tally.unread == 1 or outcome.shard not in ("", *self.tally.damaged):
                self._say(f"rows that {outcome.stage} reads cannot be read: {outcome.message}")
            if outcome.shard:
                self.tally.damaged.setdefault(outcome.shard, outcome.message)
        elif outcome.status == "changed":
            self.tally.changed.add(outcome.key.id)
            self._say(outcome.message)
        else:
            task = Task((item,), (outcome.stage,))
            self._charge(task, outcome.reason, outcome.message, outcome.log)

    # --- failures

    def _charge(self, task: Task, cause: str, message: str, log: str = "") -> None:
        """Count one attempt of a task that is one unit; try again or give up."""
        (unit,) = task.units
        if self._blame.count(unit, cause):
            self._give_up(unit[0], task.items[0], cause, message, log)
        else:
            self._queue.suspect(task, self.limits.rest_after(self._blame.deaths(unit)))

    def _give_up(self, stage: str, item: Item, reason: str, message: str, log: str) -> None:
        attempts = self._blame.attempts(unit_of(stage, item.key))
        failure = Failure(stage, item.key, reason, message, attempts, log)
        self.failures[stage].record(failure)
        self.tally.failed += 1
        self.watcher.advance(stage, failed=1)

    def _lose(self, number: int, seat: Seat, cause: str, why: str, log: str = "") -> None:
        """A worker is gone: charge what it worked on, give its unwritten rows to others."""
        del self._seats[number]
        outside = cause in FROM_OUTSIDE
        self._gusts[number] += outside
        if seat.upcoming is not None:
            self._queue.again([seat.upcoming])
        self._requeue_lost(seat)
        at_hand = self._left_of(seat.task)
        if self.stop:
            self.tally.interrupted = True
        elif self._error is None:
            self._rest(number, self.limits.rest_after(self._gusts[number]))
        if cause == "engine-died":
            self._give_up_on_engines(why)
        if at_hand:
            self._suspect(at_hand, cause, why, log)
        else:
            if cause in ("killed", "node-lost"):
                self._blame.random_death()
            self._give_up_on_workers(number, seat.doing, cause, why)

    def _left_of(self, task: Task | None) -> list[Task]:
        """What a lost worker had in hand, unit by unit, without what it had written before."""
        if task is None:
            return []
        units = {unit: item for item in task.items for unit in Task((item,), task.stages).units}
        written = self.durable(units)
        for unit in written:
            self._blame.done(unit)
            self.tally.stored[unit[0]] += 1
            self.watcher.advance(unit[0], done=1)
        return [each for each in task.split() if each.units[0] not in written]

    def _suspect(self, tasks: list[Task], cause: str, why: str, log: str) -> None:
        first, *others = dict.fromkeys(each.items[0].key.id for each in tasks)
        ids = f"{first} and {len(others)} more" if others else first
        self.watcher.note(f"a worker was lost while it worked on {ids}: {why}")
        if len(tasks) == 1:
            self._charge(tasks[0], cause, why, log)
            return
        for each in tasks:
            self._queue.suspect(each)

    def _rest(self, number: int, seconds: float) -> None:
        seat = self._seats[number] = Seat()
        self._begin(seat, "resting", seconds)

    def _unwritten(self, seat: Seat) -> dict[Unit, Item]:
        written = self.durable(seat.held) if seat.held else set()
        return {unit: item for unit, item in seat.held.items() if unit not in written}

    def _requeue_lost(self, seat: Seat) -> None:
        lost = self._unwritten(seat)
        if self._closing:
            self._lost_rows += len(lost)
        by_item: dict[str, tuple[Item, list[str]]] = {}
        for unit, item in seat.held.items():
            stage, id_, part = unit
            if unit not in lost:
                self.tally.stored[stage] += 1
            else:
                by_item.setdefault(f"{id_}/{part}", (item, []))[1].append(stage)
                self.watcher.advance(stage, done=-1)
        self._queue.again(Task((item,), tuple(stages)) for item, stages in by_item.values())

    def _give_up_on_workers(self, number: int, doing: str, cause: str, why: str) -> None:
        """End the stage if its workers never get to work; kills from outside are no reason soon."""
        outside = cause in FROM_OUTSIDE
        self._barren[doing] += not outside
        count = self._gusts[number] if outside else self._barren[doing]
        if count < (self.limits.barren_outside if outside else self.limits.barren):
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

    def _give_up_on_engines(self, why: str) -> None:
        """End the stage if no engine gets anything done: that is no fault of so many inputs."""
        self._barren["engine"] += 1
        if self._barren["engine"] >= self.limits.barren_outside + len(self._seats):
            names = ", ".join(self.job.stages.names)
            raise StageSetupError(
                self.job.stages.names[0],
                f"what {names} computes with died {self._barren['engine']} times in a row and did "
                f"nothing in between: {why}",
            )

    def _excuse_pause(self) -> None:
        """Time in which this process stood still is nobody's."""
        now = time.monotonic()
        paused_s, self._turned = now - self._turned, now
        if paused_s > _PAUSE_S:
            for seat in self._seats.values():
                seat.deadline += paused_s

    def _end_overdue(self) -> None:
        now = time.monotonic()
        ends = [self.stop.at] if self.stop.at is not None else []
        ends += [self._error_at] if self._error is not None else []
        too_late = bool(ends) and now > min(ends) + self.limits.grace_s
        for number, seat in list(self._seats.items()):
            if seat.doing in ("idle", "resting"):
                continue
            if too_late:
                self._dismiss(number)
            elif seat.doing == "starting" and not self.executor.is_placed(number):
                # Others fill the cluster: its time begins when it has a place.
                self._begin(seat, "starting", self.limits.setup_timeout_s)
            elif now > seat.deadline:
                log = self.executor.said(number)
                self.executor.kill(number)
                try:
                    why = f"no answer within {seat.allowed_s:g} s"
                    self._lose(number, seat, "timeout", why, log)
                except StorylineError as error:
                    self._fail(error)

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
