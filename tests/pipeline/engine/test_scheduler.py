"""Attempts, deadlines and lost rows, with workers that die and hang where a test says so."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import toys

from data.errors import StoreError
from data.store import Store
from data.store.types import ItemKey
from data.video.types import VideoFacts
from pipeline.engine.inline import InlineExecutor
from pipeline.engine.scheduler import Limits
from pipeline.engine.stop import StopFlag
from pipeline.engine.types import Crashed, Event, Finished, Task
from pipeline.stage import Item

Fate = Callable[[str, Task | None], str]
"""What happens to a call ("start", "run", "flush"): "" it works, "crash", "crash after", "hang"."""


class FatefulExecutor(InlineExecutor):
    """Real workers in this process whose calls meet a fate."""

    def __init__(self, fate: Fate, workers: int = 2) -> None:
        super().__init__()
        self.workers = workers
        self.fate = fate
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self._kinds: list[tuple[int, str, Task | None]] = []

    def capacity(self, job: object) -> int:
        return self.workers

    def start(self, worker: int, job: object) -> None:
        super().start(worker, job)  # type: ignore[arg-type]
        self._kinds.append((worker, "start", None))

    def submit(self, worker: int, task: Task, upcoming: Task | None) -> None:
        super().submit(worker, task, upcoming)
        self._kinds.append((worker, "run", task))

    def flush(self, worker: int) -> None:
        super().flush(worker)
        self._kinds.append((worker, "flush", None))

    def kill(self, worker: int) -> None:
        super().kill(worker)
        self._kinds = [each for each in self._kinds if each[0] != worker]

    def wait(self, timeout_s: float) -> list[Event]:
        if not self._kinds:
            return []
        worker, kind, task = self._kinds[0]
        fate = self.fate(kind, task)
        if fate == "hang":
            self._kinds.append(self._kinds.pop(0))
            self._calls.rotate(-1)
            time.sleep(0.01)
            return []
        self.calls.append((kind, tuple(item.key.id for item in task.items) if task else ()))
        self._kinds.pop(0)
        if fate != "crash":
            events = super().wait(timeout_s)
            if fate == "":
                return events
            assert all(isinstance(event, Finished) for event in events)
        self._calls = type(self._calls)(call for call in self._calls if call[0] != worker)
        self._workers.pop(worker).close()
        return [Crashed(worker, "the test killed it")]

    def runs(self) -> Counter[str]:
        """How often each input was worked on."""
        return Counter(id_ for kind, ids in self.calls if kind == "run" for id_ in ids)


def probed(tmp_path: Path, run_toys: toys.RunToys, ids: list[str]) -> None:
    toys.write_videos(tmp_path / "videos", ids)
    run_toys(["probe"])


def stored(tmp_path: Path, stage: str = "rows") -> list[str]:
    return Store.open(tmp_path / "store").reader(stage).ids()


def once(kind: str, id_: str = "", fate: str = "crash") -> Fate:
    """The first call of a kind (on an input) meets a fate, all others work."""
    met: list[bool] = []

    def choose(call: str, task: Task | None) -> str:
        ids = [item.key.id for item in task.items] if task else []
        if met or call != kind or (id_ and id_ not in ids):
            return ""
        met.append(True)
        return fate

    return choose


def test_rows_that_die_with_their_worker_are_computed_again_uncharged(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a", "b", "c", "d", "e"])
    executor = FatefulExecutor(once("run", "e"))
    result = run_toys(["rows"], executor=executor, engine={"attempts": 2})
    assert (result.exit_code, stored(tmp_path)) == (0, ["a", "b", "c", "d", "e"])
    runs = executor.runs()
    assert runs["e"] == 2
    # two workers had taken turns: one of them held two or three rows and died
    assert sorted(runs.values()) == [1, 1, 2, 2, 2]


def test_a_worker_that_dies_right_after_writing_costs_nothing(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a", "b", "c"])
    executor = FatefulExecutor(once("flush", fate="crash after"))
    assert run_toys(["rows"], executor=executor).exit_code == 0
    assert executor.runs() == {"a": 1, "b": 1, "c": 1}
    assert stored(tmp_path) == ["a", "b", "c"]


def test_an_input_is_given_up_after_its_attempts(tmp_path: Path, run_toys: toys.RunToys) -> None:
    probed(tmp_path, run_toys, ["a", "bad", "c"])

    def fate(kind: str, task: Task | None) -> str:
        return "crash" if task and task.items[0].key.id == "bad" else ""

    executor = FatefulExecutor(fate)
    result = run_toys(["rows"], executor=executor, engine={"attempts": 3})
    assert [(each.key.id, each.reason, each.attempts) for each in result.failures] == [
        ("bad", "crash", 3)
    ]
    assert (executor.runs()["bad"], stored(tmp_path)) == (3, ["a", "c"])


def test_rows_are_written_before_a_suspect_is_tried_again(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a", "b", "bad"])

    def fate(kind: str, task: Task | None) -> str:
        return "crash" if task and task.items[0].key.id == "bad" else ""

    executor = FatefulExecutor(fate, workers=1)
    run_toys(["rows"], executor=executor, engine={"attempts": 5})
    runs = executor.runs()
    assert runs.pop("bad") == 5
    assert max(runs.values()) <= 2


def test_an_input_out_of_time_is_given_up_and_the_others_go_on(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a", "slow", "z"])

    def fate(kind: str, task: Task | None) -> str:
        return "hang" if task and task.items[0].key.id == "slow" else ""

    result = run_toys(
        ["rows"], executor=FatefulExecutor(fate), engine={"attempts": 2, "timeout_s": 0.3}
    )
    (failure,) = result.failures
    assert (failure.key.id, failure.reason, failure.attempts) == ("slow", "timeout", 2)
    assert failure.message == "no answer within 0.3 s"
    assert stored(tmp_path) == ["a", "z"]


def test_in_a_set_only_the_stage_at_fault_is_given_up(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a"])

    def fate(kind: str, task: Task | None) -> str:
        return "crash" if task and "dark" in task.stages else ""

    executor = FatefulExecutor(fate)
    result = run_toys(["bright", "dark"], executor=executor, engine={"attempts": 2})
    assert [(each.stage, each.attempts) for each in result.failures] == [("dark", 2)]
    assert stored(tmp_path, "bright") == ["a"]


def test_workers_that_die_while_they_start_end_the_stage_with_a_sentence(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a"])
    executor = FatefulExecutor(lambda kind, task: "crash" if kind == "start" else "")
    result = run_toys(["rows"], executor=executor)
    assert result.exit_code == 1
    assert "workers of rows end while they start (3 in a row)" in result.broken["rows"]
    assert len(executor.calls) == 3


def test_a_set_whose_workers_die_at_start_is_tried_stage_by_stage(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    """Memory that does not suffice for all networks together may suffice for each."""
    probed(tmp_path, run_toys, ["a"])
    executor = FatefulExecutor(lambda kind, task: "")

    def fate(kind: str, task: Task | None) -> str:
        stages = [worker.job.stages.names for worker in executor._workers.values()]
        return "crash" if kind == "start" and any(len(names) > 1 for names in stages) else ""

    executor.fate = fate
    assert run_toys(["bright", "dark"], executor=executor).exit_code == 0
    assert stored(tmp_path, "bright") == stored(tmp_path, "dark") == ["a"]


def test_workers_that_die_while_they_write_end_the_run(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a"])
    executor = FatefulExecutor(lambda kind, task: "crash" if kind == "flush" else "")
    with pytest.raises(StoreError, match="ended while writing shards of rows"):
        run_toys(["rows"], executor=executor)
    assert run_toys(["rows"]).exit_code == 0


def test_a_wish_to_stop_lets_work_end_and_writes_it(tmp_path: Path, run_toys: toys.RunToys) -> None:
    probed(tmp_path, run_toys, ["a", "b", "c", "d"])
    stop = StopFlag()

    def fate(kind: str, task: Task | None) -> str:
        if kind == "run":
            stop.request()
        return ""

    executor = FatefulExecutor(fate)
    result = run_toys(["rows"], executor=executor, stop=stop)
    assert result.exit_code == 75
    assert stored(tmp_path) == sorted(executor.runs()) == ["a", "b"]


def test_what_hangs_after_a_wish_to_stop_is_killed(tmp_path: Path, run_toys: toys.RunToys) -> None:
    probed(tmp_path, run_toys, ["a", "b"])
    stop = StopFlag()

    def fate(kind: str, task: Task | None) -> str:
        if task and task.items[0].key.id == "a":
            # as if the wish had come half a minute ago
            stop.at = stop.at or time.monotonic() - 29.5
            return "hang"
        return ""

    result = run_toys(["rows"], executor=FatefulExecutor(fate), stop=stop)
    assert (result.exit_code, result.failures, stored(tmp_path)) == (75, [], ["b"])


def test_a_long_video_is_allowed_more_time_than_a_usual_one() -> None:
    limits = Limits(timeout_s=100)
    facts = VideoFacts(3600.0, 25, 90_000, 64, 64, 0, "h264", "yuv420p", 1, False, 0)
    long = Item(ItemKey("long", "0" * 64), facts=facts)
    short = Item(ItemKey("short", "0" * 64), facts=replace(facts, duration_s=3.0))
    assert limits.allowed_s(Task((short, short), ("clip",))) == 200
    assert limits.allowed_s(Task((long,), ("clip",))) == 600
