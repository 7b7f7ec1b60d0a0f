"""Attempts, deadlines and lost rows, with workers that die and hang where a test says so."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import toys

from data.errors import InputError, StoreError
from data.store import Failure, FailureLog, Row, Store
from data.store.types import ItemKey
from data.video.types import VideoFacts
from pipeline.engine.inline import InlineExecutor
from pipeline.engine.limits import Limits
from pipeline.engine.stop import StopFlag
from pipeline.engine.types import Crashed, Event, Failed, Finished, Task
from pipeline.handout import HandOut
from pipeline.stage import Item

Fate = Callable[[str, Task | None], str]
"""What happens to a call ("start", "run", "flush"): "" it works; "crash", "killed", ... is what its
worker dies of; "crash after" is after the work; "hang"; "full" is a store that refuses.
"""


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
        if fate == "full":
            self._calls.popleft()
            return [Failed(worker, StoreError("no space left on device"))]
        if fate in ("", "crash after"):
            events = super().wait(timeout_s)
            if fate == "":
                return events
            assert all(isinstance(event, Finished) for event in events)
        self._calls = type(self._calls)(call for call in self._calls if call[0] != worker)
        self._workers.pop(worker).close()
        return [Crashed(worker, "the test killed it", fate.removesuffix(" after"))]

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
    result = run_toys(["rows"], executor=executor, engine={"attempts": {"crash": 2}})
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
    result = run_toys(["rows"], executor=executor, engine={"attempts": {"crash": 3}})
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
    run_toys(["rows"], executor=executor, engine={"attempts": {"crash": 5}})
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
        ["rows"],
        executor=FatefulExecutor(fate),
        engine={"attempts": {"crash": 2}, "timeout_s": 0.3},
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
    result = run_toys(["bright", "dark"], executor=executor, engine={"attempts": {"crash": 2}})
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
    assert limits.allowed_s(Task((short,), ("clip",))) == 100
    assert limits.allowed_s(Task((long,), ("clip",))) == 600
    third = replace(long, key=ItemKey("long", "0" * 64, 1, 3))
    assert limits.allowed_s(Task((third,), ("captions",))) == 200


def test_many_short_inputs_that_go_together_are_no_excuse_for_an_engine_that_hangs() -> None:
    limits = Limits(timeout_s=100)
    facts = VideoFacts(1.0, 25, 25, 64, 64, 0, "h264", "yuv420p", 1, False, 0)
    shorts = tuple(Item(ItemKey(f"v{n}", "0" * 64), facts=facts) for n in range(64))
    assert limits.allowed_s(Task(shorts, ("captions",))) == 100
    sentences = tuple(Item(ItemKey(f"q{n}", "0" * 64), text="a dog") for n in range(256))
    assert limits.allowed_s(Task(sentences, ("queries",))) == 100
    long = replace(facts, duration_s=900.0)
    two = tuple(Item(ItemKey(f"l{n}", "0" * 64), facts=long) for n in range(2))
    assert limits.allowed_s(Task(two, ("captions",))) == 300


def impatient(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Runs of this test have other limits than those of a config."""
    monkeypatch.setattr("pipeline.run.Limits", partial(Limits, **limits))


def test_workers_that_are_killed_while_they_start_are_started_again(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage ends after three workers that die by their own making, not after five kills."""
    impatient(monkeypatch, rest_s=0.001)
    probed(tmp_path, run_toys, ["a"])
    deaths = iter(["killed", "node-lost", "killed", "killed", "killed"])
    executor = FatefulExecutor(lambda kind, task: next(deaths, "") if kind == "start" else "")
    assert run_toys(["rows"], executor=executor).exit_code == 0
    assert [kind for kind, _ in executor.calls].count("start") == 6
    endless = FatefulExecutor(lambda kind, task: "killed" if kind == "start" else "", workers=1)
    result = run_toys(["rows"], executor=endless, stages={"rows": {"scale": 2.0}})
    assert "(10 in a row)" in result.broken["rows"]


def test_an_input_whose_machine_is_lost_is_tried_more_often_than_one_that_crashes(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, rest_s=0.001)
    probed(tmp_path, run_toys, ["a", "b"])
    deaths = iter(["node-lost"] * 8)

    def fate(kind: str, task: Task | None) -> str:
        return next(deaths, "") if task and task.items[0].key.id == "b" else ""

    result = run_toys(["rows"], executor=FatefulExecutor(fate))
    assert (result.exit_code, result.failures, stored(tmp_path)) == (0, [], ["a", "b"])


def test_what_ran_out_of_memory_is_worked_on_while_nothing_else_is(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, rest_s=0.001)
    ids = ["big-1", "big-2", "c", "d"]
    probed(tmp_path, run_toys, ids)
    working: Counter[str] = Counter()

    class Small(FatefulExecutor):
        """A machine on which one big input has room, and not beside another."""

        def submit(self, worker: int, task: Task, upcoming: Task | None) -> None:
            working[task.items[0].key.id] = 1
            super().submit(worker, task, upcoming)

        def wait(self, timeout_s: float) -> list[Event]:
            events = super().wait(timeout_s)
            if events and self.calls[-1][0] == "run":
                working.pop(self.calls[-1][1][0])
            return events

    def fate(kind: str, task: Task | None) -> str:
        big = task is not None and task.items[0].key.id.startswith("big")
        return "out-of-memory" if big and len(working) > 1 else ""

    executor = Small(fate)
    result = run_toys(["rows"], executor=executor)
    assert (result.exit_code, stored(tmp_path)) == (0, ids)
    assert executor.runs()["big-1"] == 2


def test_a_full_store_ends_the_run_and_the_other_workers_write_what_they_hold(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    probed(tmp_path, run_toys, ["a", "b", "c", "d"])
    executor = FatefulExecutor(once("flush", fate="full"))
    with pytest.raises(StoreError, match="no space left"):
        run_toys(["rows"], executor=executor)
    assert len(stored(tmp_path)) == 2
    assert run_toys(["rows"]).exit_code == 0
    assert stored(tmp_path) == ["a", "b", "c", "d"]


def test_a_quarantine_that_cannot_be_written_ends_the_run_and_loses_no_row(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(tmp_path, run_toys, ["a", "b", "refuse-1"])

    def full(self: FailureLog, failure: Failure) -> None:
        raise StoreError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(FailureLog, "record", full)
        with pytest.raises(StoreError, match="no space left"):
            run_toys(["rows"])
    assert stored(tmp_path) == ["a", "b"]
    assert run_toys(["rows"]).exit_code == 3


def test_workers_are_added_when_the_cluster_grows(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, recheck_s=0.0)
    probed(tmp_path, run_toys, ["a", "b", "c", "d", "e"])
    executor = FatefulExecutor(lambda kind, task: "", workers=1)

    def fate(kind: str, task: Task | None) -> str:
        executor.workers = 3
        return ""

    executor.fate = fate
    assert run_toys(["rows"], executor=executor).exit_code == 0
    assert [kind for kind, _ in executor.calls].count("start") == 3


def test_a_worker_that_waits_for_a_machine_that_is_gone_is_not_waited_for(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, recheck_s=0.0, rest_s=0.001)
    probed(tmp_path, run_toys, ["a", "b", "c", "d"])
    executor = FatefulExecutor(lambda kind, task: "", workers=2)

    def fate(kind: str, task: Task | None) -> str:
        if kind == "start" and executor.workers == 1 and len(executor._workers) > 1:
            return "hang"
        if task and task.items[0].key.id == "b" and executor.workers == 2:
            executor.workers = 1
            return "node-lost"
        return ""

    executor.fate = fate
    assert run_toys(["rows"], executor=executor).exit_code == 0
    assert stored(tmp_path) == ["a", "b", "c", "d"]


def test_time_in_which_the_driver_stood_still_is_charged_to_no_input(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended job (SIGSTOP, a laptop's lid) wakes up and finds all workers overdue."""
    monkeypatch.setattr("pipeline.engine.scheduler._PAUSE_S", 0.5)
    probed(tmp_path, run_toys, ["a", "b"])
    turns = Counter[str]()

    def fate(kind: str, task: Task | None) -> str:
        if task is None or task.items[0].key.id != "a":
            return ""
        turns["a"] += 1
        if turns["a"] % 3 == 1:
            time.sleep(1.0)  # twice as long as the input may take
            return "hang"
        return "" if turns["a"] % 3 == 0 else "hang"

    engine = {"timeout_s": 0.5, "attempts": {"timeout": 1}}
    result = run_toys(["rows"], executor=FatefulExecutor(fate), engine=engine)
    assert (result.exit_code, stored(tmp_path)) == (0, ["a", "b"])


def test_a_worker_that_waits_for_a_place_is_waited_for(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    """Another job fills the cluster: that is no fault of the stage."""
    probed(tmp_path, run_toys, ["a"])
    free_at = time.monotonic() + 1.0

    class Crowded(FatefulExecutor):
        def is_placed(self, worker: int) -> bool:
            return time.monotonic() > free_at

    def fate(kind: str, task: Task | None) -> str:
        return "hang" if kind == "start" and time.monotonic() < free_at else ""

    executor = Crowded(fate, workers=1)
    result = run_toys(["rows"], executor=executor, engine={"setup_timeout_s": 0.1})
    assert (result.exit_code, stored(tmp_path)) == (0, ["a"])


def test_a_file_that_one_machine_lacks_is_no_fault_of_the_input(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One machine without the videos would put everything into quarantine at once."""
    toys.write_videos(tmp_path / "videos", ["a", "b", "gone"])

    def lacks(self: toys.ToyProbe, item: Item, inputs: object) -> Row:
        raise InputError("missing", f"{item.key.id} does not exist")

    with monkeypatch.context() as machine:
        machine.setattr(toys.ToyProbe, "process", lacks)
        result = run_toys(["probe"])
    assert (result.exit_code, result.failures) == (75, [])
    assert f"gone does not exist (on {socket.gethostname()}): this machine" in result.unread
    result = run_toys(["probe"])
    assert (result.exit_code, stored(tmp_path, "probe")) == (0, ["a", "b", "gone"])


def test_what_is_held_is_written_when_the_next_input_cannot_be_told(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(tmp_path, run_toys, ["a", "b", "c"])

    def only(self: HandOut, tasks: Iterable[Task]) -> Iterator[Task]:
        yield next(iter(tasks))
        raise StoreError("the disk does not answer")

    with monkeypatch.context() as disk:
        disk.setattr(HandOut, "only", only)
        with pytest.raises(StoreError, match="does not answer"):
            run_toys(["rows"])
    assert stored(tmp_path) == ["a"]
