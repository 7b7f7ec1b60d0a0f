"""What waits for a worker: fresh tasks, those that others lost, and those that may end a worker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from data.errors import StorylineError
from pipeline.engine.blame import Blame
from pipeline.engine.types import Task

__all__ = ["TaskQueue"]


class TaskQueue:
    """Tasks in the order in which they are handed out: lost ones, fresh ones, suspects last.

    Args:
        blame: knows which tasks are suspects.
        failed: told if the next fresh task cannot be made.
    """

    def __init__(self, blame: Blame, failed: Callable[[Exception], None]) -> None:
        self._blame = blame
        self._failed = failed
        self._fresh: Iterator[Task] = iter(())
        self._again: deque[Task] = deque()
        self._suspects: deque[tuple[float, Task]] = deque()

    def fill(self, tasks: Iterable[Task]) -> None:
        """Tasks that are taken one by one."""
        self._fresh = iter(tasks)

    @property
    def has_suspects(self) -> bool:
        """Whether suspects wait, perhaps for their rest to end."""
        return bool(self._suspects)

    def is_suspect(self, task: Task) -> bool:
        """Whether a task may end or hang its worker."""
        return any(map(self._blame.is_suspect, task.units))

    def take(self) -> Task | None:
        """The next task; None if none may be begun now."""
        if self._again:
            return self._again.popleft()
        return self._next_fresh() or self._rested()

    def put_back(self, task: Task) -> None:
        """It was taken too early."""
        if self.is_suspect(task):
            self._suspects.appendleft((0.0, task))
        else:
            self._again.appendleft(task)

    def again(self, tasks: Iterable[Task]) -> None:
        """Tasks that went down with a worker and are not at fault."""
        self._again.extend(tasks)

    def suspect(self, task: Task, rest_s: float = 0.0) -> None:
        """A task that may be at fault, to be tried after a rest."""
        self._suspects.append((time.monotonic() + rest_s, task))

    def has_work(self) -> bool:
        """Whether anything waits for a worker."""
        if not (self._again or self._suspects) and (task := self._next_fresh()):
            self._again.append(task)
        return bool(self._again or self._suspects)

    def _next_fresh(self) -> Task | None:
        try:
            return next(self._fresh, None)
        except StorylineError as error:
            # Rows that tell about the next input cannot be read: what is held is written first.
            self._failed(error)
            return None

    def _rested(self) -> Task | None:
        """The first suspect that may be tried again by now."""
        now = time.monotonic()
        for index, (due, task) in enumerate(self._suspects):
            if due <= now:
                del self._suspects[index]
                return task
        return None
