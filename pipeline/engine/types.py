"""What travels between the scheduler and its workers: jobs and tasks out, reports back.

Everything here is small and picklable. Frames and rows never travel: a worker reads the video and
writes the shard itself, the driver gets keys and shard names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from data.errors import StorylineError
from data.store import ShardRef
from data.store.place import Place
from data.store.types import ItemKey, Recipe
from pipeline.engine.spent import Spent
from pipeline.stage import Item, StageSet

__all__ = [
    "UNKNOWN_CONTENT",
    "Crashed",
    "EngineLostError",
    "Event",
    "Executor",
    "Failed",
    "FileHash",
    "Finished",
    "Job",
    "Outcome",
    "Ready",
    "Report",
    "StageSetupError",
    "Task",
    "Unit",
    "UpstreamError",
    "unit_of",
]

UNKNOWN_CONTENT = "0" * 64
"""Content of a video whose file nobody has read yet; the worker replaces it by the file's hash."""

Unit: TypeAlias = tuple[str, str, int]
"""`(stage, id, part)`: the smallest thing that is attempted, stored or quarantined."""


def unit_of(stage: str, key: ItemKey) -> Unit:
    """The unit of a stage and a key; contents are left out, they may be unknown before probing."""
    return stage, key.id, key.part


class StageSetupError(StorylineError):
    """A stage cannot be set up on a worker (a missing checkpoint, a missing package).

    Args:
        stage: name of the stage; "" if nobody knows which of the set it was.
        message: the sentence for the user.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage

    def __reduce__(self) -> tuple[type[StageSetupError], tuple[str, str]]:
        return type(self), (self.stage, str(self))


class EngineLostError(StorylineError):
    """What carries the workers (a local Ray) is killed again and again."""


class UpstreamError(StorylineError):
    """The rows that a stage reads cannot be read now; no fault of the stage or the input.

    Args:
        message: the sentence of the reader.
        shard: the damaged shard as text; "" if the bytes are not known to be wrong (an I/O error,
            rows that somebody took away).
    """

    def __init__(self, message: str, shard: str = "") -> None:
        super().__init__(message)
        self.shard = shard

    def __reduce__(self) -> tuple[type[UpstreamError], tuple[str, str]]:
        return type(self), (str(self), self.shard)


@dataclass(frozen=True)
class Job:
    """What every worker of one stage set is built from.

    Args:
        stages: the stages, constructed but not set up.
        recipes: recipe of each of the stages.
        upstream: recipe id of every stage whose rows may be read.
        store: folder of the store, here or remote.
        shard_bytes: a shard is written when its rows reach this size.
        commit_every_s: a shard is written when its oldest row is this old.
        gpu_share: GPUs of one worker, where its stages leave that to the engine (`gpus: auto`).
    """

    stages: StageSet
    recipes: Mapping[str, Recipe]
    upstream: Mapping[str, str]
    store: Place
    shard_bytes: int
    commit_every_s: float
    gpu_share: float = 1.0


@dataclass(frozen=True)
class Task:
    """Items that travel to a worker together, and the stages of the set that lack their rows."""

    items: tuple[Item, ...]
    stages: tuple[str, ...]

    @property
    def units(self) -> tuple[Unit, ...]:
        """Everything that this task should bring."""
        return tuple(unit_of(stage, item.key) for item in self.items for stage in self.stages)

    def item_of(self, key: ItemKey) -> Item:
        """The item of a key; its content may have been unknown when the task was made."""
        for item in self.items:
            if (item.key.id, item.key.part) == (key.id, key.part):
                return item
        raise ValueError(f"a worker answered for {key}, which it was not asked for")

    def split(self) -> list[Task]:
        """One task per unit: after a crash nobody knows which unit was the cause."""
        return [Task((item,), (stage,)) for item in self.items for stage in self.stages]


@dataclass(frozen=True)
class Outcome:
    """How one unit ended on a worker.

    Args:
        stage: the stage.
        key: the item's key; its content is known now if the file could be read.
        status: "done": the row is held by the worker, not yet durable; "present": the file turned
            out to be one whose row is stored; "refused": the input is at fault, trying again is
            useless; "error": the stage raised; "unread": the rows that it reads cannot be read
            now; "changed": its file is not the one that it was. The last two are nobody's fault.
        reason: short code of a failure.
        message: a sentence for a person.
        log: end of the traceback.
        shard: the damaged shard, where one is known to be the reason.
    """

    stage: str
    key: ItemKey
    status: Literal["done", "present", "refused", "error", "unread", "changed"]
    reason: str = ""
    message: str = ""
    log: str = ""
    shard: str = ""

    @property
    def unit(self) -> Unit:
        """What ended."""
        return unit_of(self.stage, self.key)


@dataclass(frozen=True)
class FileHash:
    """sha256 of a media file, with its `stat` from before it was read."""

    path: Path
    sha256: str
    stat: os.stat_result


@dataclass(frozen=True)
class Report:
    """What a worker answers: how units ended, which rows became durable, which files were hashed.

    Args:
        outcomes: one per unit of the task.
        shards: shards that were written; they name the keys that are durable now.
        hashes: media files that this worker hashed.
        spent: where the time of the call went.
        counts: sums over the rows that were made, by stage and name (`Stage.summed`).
    """

    outcomes: tuple[Outcome, ...] = ()
    shards: tuple[ShardRef, ...] = ()
    hashes: tuple[FileHash, ...] = ()
    spent: Spent = field(default_factory=Spent)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """A worker has set up its stages."""

    worker: int


@dataclass(frozen=True)
class Finished:
    """A worker answered a call."""

    worker: int
    report: Report


@dataclass(frozen=True)
class Failed:
    """A call raised what is no input's fault: set-up failed, the store cannot be written."""

    worker: int
    error: Exception


@dataclass(frozen=True)
class Crashed:
    """The process of a worker is gone, or what it computes with.

    Args:
        worker: its number.
        why: a sentence.
        cause: `crash`, `engine-died`, `killed`, `out-of-memory` or `node-lost`
            (`pipeline.engine.limits`).
        log: end of what it wrote to stderr.
    """

    worker: int
    why: str
    cause: str = "crash"
    log: str = ""


Event: TypeAlias = Ready | Finished | Failed | Crashed


class Executor(Protocol):
    """Where workers live. One call per worker is in flight; a killed worker is silent."""

    def fit(self, job: Job, samples: Sequence[Item]) -> tuple[Job, str]:
        """The job with the GPU share of its workers, and a sentence how that was found ("": it
        was not looked for). May measure the stages on the samples, which takes some seconds.
        """
        ...

    def capacity(self, job: Job) -> int:
        """How many workers of this job fit; UsageError if not even one ever can."""
        ...

    def start(self, worker: int, job: Job) -> None:
        """Begin to start and set up a worker; `Ready`, `Failed` or `Crashed` follows."""
        ...

    def submit(self, worker: int, task: Task, upcoming: Task | None) -> None:
        """Begin `Worker.run`; `Finished`, `Failed` or `Crashed` follows."""
        ...

    def flush(self, worker: int) -> None:
        """Begin `Worker.flush`; `Finished`, `Failed` or `Crashed` follows."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """Events that have happened; waits at most `timeout_s` for the first one."""
        ...

    def is_placed(self, worker: int) -> bool:
        """Whether a worker that starts has a machine, or still waits for one."""
        ...

    def said(self, worker: int) -> str:
        """End of what a worker wrote to stderr; "" where nobody can tell."""
        ...

    def kill(self, worker: int) -> None:
        """End a worker at once, whatever it does."""
        ...

    def close(self) -> None:
        """End all workers and what this executor started for them."""
        ...
