"""Workers in the driver's own process: for a debugger, a profiler, or a machine without Ray.

The loop is the same one. What it cannot do is said here: a stage that ends the process ends the
run, and a stage that hangs hangs the run (nobody is left to look at the clock).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from data.errors import EngineDiedError
from pipeline.engine.types import Crashed, Event, Failed, Finished, Job, Ready, Report, Task
from pipeline.engine.work import Worker
from pipeline.stage import Item

__all__ = ["InlineExecutor"]


class InlineExecutor:
    """Does each call when the scheduler waits for its answer."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}
        self._calls: deque[tuple[int, Callable[[], Event]]] = deque()

    def fit(self, job: Job, samples: Sequence[Item]) -> tuple[Job, str]:
        """As it is: the one worker has what there is."""
        del samples
        return job, ""

    def capacity(self, job: Job) -> int:
        """One: there is one process."""
        del job
        return 1

    def start(self, worker: int, job: Job) -> None:
        """Set up the stages at the next `wait`."""
        made = self._workers[worker] = Worker(job)

        def setup() -> Event:
            made.setup()
            return Ready(worker)

        self._calls.append((worker, setup))

    def submit(self, worker: int, task: Task, upcoming: Task | None) -> None:
        """Work on a task at the next `wait`."""
        made = self._workers[worker]
        self._answer(worker, lambda: made.run(task, upcoming))

    def flush(self, worker: int) -> None:
        """Write what is held at the next `wait`."""
        self._answer(worker, self._workers[worker].flush)

    def wait(self, timeout_s: float) -> list[Event]:
        """Do the oldest call; its event."""
        if not self._calls:
            time.sleep(timeout_s)  # what is left may not be tried yet
            return []
        worker, call = self._calls.popleft()
        try:
            return [call()]
        except EngineDiedError as error:
            with suppress(Exception):  # what is dead may not be able to close
                self.kill(worker)
            return [Crashed(worker, str(error), "engine-died")]
        except Exception as error:
            return [Failed(worker, error)]

    def is_placed(self, worker: int) -> bool:
        """Always: it is here."""
        del worker
        return True

    def said(self, worker: int) -> str:
        """Nothing: it went to the terminal."""
        del worker
        return ""

    def kill(self, worker: int) -> None:
        """Forget the worker and what it was to do."""
        made = self._workers.pop(worker, None)
        self._calls = deque(each for each in self._calls if each[0] != worker)
        if made is not None:
            made.close()

    def close(self) -> None:
        """Forget all workers."""
        for worker in list(self._workers):
            self.kill(worker)

    def _answer(self, worker: int, work: Callable[[], Report]) -> None:
        self._calls.append((worker, lambda: Finished(worker, work())))
