"""Stages whose rows are dear: shared batches, each row on disk at once, nothing done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import toys
from talking import Hearing, batches, said, talks, times_made, whole

from data.errors import EngineDiedError, UsageError
from data.store import Store
from data.video.types import FrameRequest, VideoFacts, View, Window
from pipeline.engine.inline import InlineExecutor
from pipeline.engine.types import Crashed, Event, Finished, Job, StageSetupError, Task
from pipeline.engine.work import Worker
from pipeline.program import Program
from pipeline.stage import Item, StageContext, StageSet


def test_batches_span_videos_and_parts(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    log = tmp_path / "log"
    assert run_toys(["talks"], stages=talks(log, part=5)).exit_code == 0
    assert said(tmp_path / "store") == whole("a", "b", "c")
    # Parts of 5 and 3 of each video: the 5 are a batch of four and a rest, the 3 go alone.
    assert sorted(map(len, batches(log))) == [1, 1, 1, 3, 3, 3, 4, 4, 4]
    log.unlink()
    other = run_toys(["talks"], stages=talks(log, part=8, batch=12), store="other")
    assert other.exit_code == 0
    assert said(tmp_path / "other") == whole("a", "b", "c")


def test_short_videos_do_not_mean_small_batches(tmp_path: Path, run_toys: toys.RunToys) -> None:
    ids = [f"v{number}" for number in range(6)]
    toys.write_videos(tmp_path / "videos", ids)
    log = tmp_path / "log"
    assert run_toys(["talks"], stages=talks(log, part=8, batch=24)).exit_code == 0
    assert [len(batch) for batch in batches(log)] == [24, 24]
    assert said(tmp_path / "store") == whole(*ids)


def test_an_input_that_raises_in_a_shared_batch_is_charged_alone(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "raise-1"])
    log = tmp_path / "log"
    result = run_toys(["talks"], stages=talks(log, part=8, batch=24))
    assert [(each.key.id, each.reason, each.attempts) for each in result.failures] == [
        ("raise-1", "exception", 2)
    ]
    assert said(tmp_path / "store") == whole("a", "b")
    # together, then one by one, then the guilty one once more
    assert [len(batch) for batch in batches(log)] == [24, 8, 8, 8, 8]


def test_an_engine_that_dies_costs_its_batch_and_only_the_guilty_input_is_charged(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "c", "dies-1"])
    log = tmp_path / "log"
    result = run_toys(["talks"], stages=talks(log, part=8, batch=16))
    assert [(each.key.id, each.reason, each.attempts) for each in result.failures] == [
        ("dies-1", "engine-died", 3)
    ]
    assert "the engine died of dies-1" in result.failures[0].message
    assert said(tmp_path / "store") == whole("a", "b", "c")
    made = times_made(log)
    assert made["a@0"] == made["b@0"] == 1  # a batch before it
    assert made["c@0"] == 2  # with the guilty one, then alone


def test_engines_that_never_do_anything_end_the_stage_and_fill_no_quarantine(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", [f"dies-{number}" for number in range(15)])
    result = run_toys(["talks"], stages=talks(tmp_path / "log", part=8, batch=8))
    assert "died 11 times in a row" in result.broken["talks"]
    assert (result.exit_code, len(result.failures)) == (1, 0)


def test_a_gpu_that_no_call_can_use_any_more_is_an_engine_that_died(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    setups: list[str] = []
    monkeypatch.setattr(toys.ToyTalks, "setup", lambda self: setups.append("setup"))
    plain = toys.ToyTalks.encode_shared

    def sick(self: toys.ToyTalks, windows: Sequence[tuple[Item, Window]]) -> Sequence[str]:
        if len(setups) == 1:
            # as torch.AcceleratorError, a RuntimeError, says it
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore words")
        return plain(self, windows)

    monkeypatch.setattr(toys.ToyTalks, "encode_shared", sick)
    result = run_toys(["talks"], stages=talks(tmp_path / "log", part=8, batch=16))
    assert (result.exit_code, result.failures, len(setups)) == (0, [], 2)
    assert said(tmp_path / "store") == whole("a", "b")


def test_memory_that_does_not_suffice_for_a_batch_is_no_dead_engine(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    plain = toys.ToyTalks.encode_shared

    def small(self: toys.ToyTalks, windows: Sequence[tuple[Item, Window]]) -> Sequence[str]:
        if len(windows) > 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, windows)

    monkeypatch.setattr(toys.ToyTalks, "encode_shared", small)
    result = run_toys(["talks"], stages=talks(tmp_path / "log", part=8, batch=16))
    assert (result.exit_code, said(tmp_path / "store")) == (0, whole("a", "b"))


# --- on disk at once


def test_a_row_is_on_disk_before_the_next_batch_is_begun(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    run_toys(["probe"])
    plain = toys.ToyTalks.encode_shared
    seen: list[tuple[int, int]] = []
    made = 0

    def looking(self: toys.ToyTalks, windows: Sequence[tuple[Item, Window]]) -> Sequence[str]:
        nonlocal made
        recipe = Store.open(tmp_path / "store").recipes("talks")[0]
        reader = Store.open(tmp_path / "store").reader("talks", recipe)
        seen.append((made, 2 * len(reader.keys())))
        made += len(windows)
        return plain(self, windows)

    monkeypatch.setattr(toys.ToyTalks, "encode_shared", looking)
    engine = {"executor": "inline", "commit_every_s": 600}
    assert run_toys(["talks"], stages=talks(tmp_path / "log"), engine=engine).exit_code == 0
    assert len(seen) == 4
    assert all(stored == before for before, stored in seen)


class Dying(InlineExecutor):
    """Its first worker dies after it has done and written its first task."""

    def __init__(self) -> None:
        super().__init__()
        self.died = False

    def wait(self, timeout_s: float) -> list[Event]:
        events = super().wait(timeout_s)
        for event in events:
            if isinstance(event, Finished) and event.report.outcomes and not self.died:
                self.died = True
                self.kill(event.worker)
                return [Crashed(event.worker, "the test killed it", "killed")]
        return events


def test_what_a_dead_worker_had_written_is_not_made_again(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    run_toys(["probe"])
    log, executor = tmp_path / "log", Dying()
    result = run_toys(["talks"], stages=talks(log), executor=executor)
    assert (executor.died, result.exit_code, result.failures) == (True, 0, [])
    assert said(tmp_path / "store") == whole("a", "b")
    assert set(times_made(log).values()) == {1}


def test_of_a_task_with_several_batches_only_what_is_not_on_disk_is_made_again(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`amount` is told before anything is decoded and may be wrong."""
    toys.write_videos(tmp_path / "videos", ["a", "b", "c", "dies-1"])
    run_toys(["probe"])
    monkeypatch.setattr(toys.ToyTalks, "amount", lambda self, facts, part: 1)
    monkeypatch.setattr(toys.ToyTalks, "_times", lambda self, item: [0.0, 1.0])
    monkeypatch.setattr(
        toys.ToyTalks,
        "request",
        lambda self, item: FrameRequest(self.name, toys.np.array([[0.0], [1.0]]), View(4)),
    )
    monkeypatch.setattr(toys.ToyTalks, "parts", toys.FrameStage.parts)
    log = tmp_path / "log"
    result = run_toys(["talks"], stages=talks(log, batch=4))
    assert [each.key.id for each in result.failures] == ["dies-1"]
    assert batches(log)[:2] == [
        ["a@0", "a@1", "b@0", "b@1"],
        ["c@0", "c@1", "dies-1@0", "dies-1@1"],
    ]
    made = times_made(log)
    assert (made["a@0"], made["b@1"], made["c@0"]) == (1, 1, 2)


def test_a_later_engine_death_leaves_earlier_rows_of_the_call_written(
    tmp_path: Path, talker: Callable[..., Worker]
) -> None:
    worker = talker(batch=2, part=8)
    task = Task(items(tmp_path, "a", "dies-1"), ("talks",))
    with pytest.raises(EngineDiedError):
        worker.run(task)
    (recipe,) = Store.open(tmp_path / "store").recipes("talks")
    keys = Store.open(tmp_path / "store").reader("talks", recipe).keys()
    assert {key.id for key in keys} == {"a"}


# --- counts, decoding


def test_facts_of_rows_are_summed_for_whoever_watches(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "bb", "raise-1"])
    watcher = Hearing()
    run_toys(["talks"], stages=talks(tmp_path / "log"), watcher=watcher)
    # "a@0" has 3 characters, "bb@0" has 4; eight of each
    assert watcher.stages["talks"].counts == {"captions": 16, "tokens": 8 * 3 + 8 * 4}


@pytest.fixture
def talker(tmp_path: Path, toy_stages: None) -> Iterator[Callable[..., Worker]]:
    """`talker(batch=...)` makes a worker of `talks` that is set up."""
    made: list[Worker] = []

    def make(**options: Any) -> Worker:
        store = Store.create(tmp_path / "store", dataset="toys", clip_len_s=toys.CLIP_LEN_S)
        context = StageContext(toys.CLIP_LEN_S, "toys:ToyDecoder", ())
        given = {"talks": toys.ToyTalks.Options(**options)}
        program = Program.build(context, given, ["talks"])
        stages = tuple(stage for stage in program.stages if stage.name == "talks")
        recipes = {"talks": program.recipes["talks"]}
        made.append(Worker(Job(StageSet(stages), recipes, {}, store.path, 1 << 30, 1e6)))
        made[-1].setup()
        return made[-1]

    yield make
    for each in made:
        each.close()


def items(tmp_path: Path, *ids: str) -> tuple[Item, ...]:
    facts = VideoFacts(toys.DURATION_S, 1.0, 8, 4, 4, 0, "toy", "rgb24", 0, False, 0)
    videos = toys.write_videos(tmp_path / "videos", ids)
    return tuple(Item(toys.key_of(video), video, facts) for video in videos)


def decoded(tmp_path: Path) -> list[str]:
    log = tmp_path / "videos" / "decodes.log"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_what_the_next_batch_is_made_of_is_decoded_meanwhile(
    tmp_path: Path, talker: Callable[..., Worker]
) -> None:
    worker = talker(batch=16, part=8)
    a, b, c, d, e = items(tmp_path, "a", "b", "c", "d", "e")
    report = worker.run(Task((a, b), ("talks",)), upcoming=Task((c, d, e), ("talks",)))
    assert [each.status for each in report.outcomes] == ["done", "done"]
    assert [shard.keys for shard in report.shards] == [(a.key, b.key)]
    deadline = time.monotonic() + 30
    while len(decoded(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(decoded(tmp_path)) == ["a", "b", "c", "d", "e"]
    worker.run(Task((c, d, e), ("talks",)))
    assert sorted(decoded(tmp_path)) == ["a", "b", "c", "d", "e"], "nothing is decoded twice"


def test_nothing_is_decoded_for_a_request_without_units(
    tmp_path: Path, talker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = toys.np.zeros((0, 1))
    ask = FrameRequest("x", nothing, View(4))
    monkeypatch.setattr(toys.ToyTalks, "request", lambda self, item: ask)
    monkeypatch.setattr(toys.ToyTalks, "_times", lambda self, item: nothing[:, 0])
    worker = talker()
    report = worker.run(Task(items(tmp_path, "a"), ("talks",)))
    assert [each.status for each in report.outcomes] == ["done"]
    assert decoded(tmp_path) == []


def test_a_video_that_cannot_be_decoded_leaves_a_shared_batch_to_the_others(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "undecodable-1"])
    result = run_toys(["talks"], stages=talks(tmp_path / "log", part=8, batch=24))
    assert [(each.key.id, each.reason) for each in result.failures] == [
        ("undecodable-1", "undecodable")
    ]
    assert said(tmp_path / "store") == whole("a", "b")


def test_a_stage_that_shares_batches_has_each_decode_for_itself(toy_stages: None) -> None:
    context = StageContext(toys.CLIP_LEN_S)
    options: Mapping[str, Any] = {}
    program = Program.build(context, options, ["bright", "dark", "talks"])
    names = [each.names for each in program.sets]
    assert ("bright", "dark") in names
    assert ("talks",) in names


@pytest.mark.parametrize("broken", [EngineDiedError, UsageError])
def test_where_nothing_can_be_made_any_more_the_rest_of_a_batch_is_not_tried_and_no_row_is_lost(
    tmp_path: Path,
    talker: Callable[..., Worker],
    monkeypatch: pytest.MonkeyPatch,
    broken: type[Exception],
) -> None:
    plain = toys.ToyTalks.encode_shared
    asked: list[set[str]] = []

    def failing(self: toys.ToyTalks, windows: Sequence[tuple[Item, Window]]) -> Sequence[str]:
        asked.append({item.key.id for item, _ in windows})
        if len(asked[-1]) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if asked[-1] == {"b"}:
            raise broken("the key is not valid any more")
        return plain(self, windows)

    worker = talker(batch=24, part=8)
    monkeypatch.setattr(toys.ToyTalks, "encode_shared", failing)
    with pytest.raises((EngineDiedError, StageSetupError), match="not valid any more"):
        worker.run(Task(items(tmp_path, "a", "b", "c"), ("talks",)))
    assert asked == [{"a", "b", "c"}, {"a"}, {"b"}]
    (recipe,) = Store.open(tmp_path / "store").recipes("talks")
    keys = Store.open(tmp_path / "store").reader("talks", recipe).keys()
    assert {key.id for key in keys} == {"a"}
