"""What a worker does with one task."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import toys

from data.store import Row, Store
from data.video.types import VideoFacts
from pipeline.engine.types import UNKNOWN_CONTENT, Job, StageSetupError, Task
from pipeline.engine.work import Worker
from pipeline.program import Program
from pipeline.stage import Item, StageContext, StageSet

HEAVY = {"torch", "ray", "av", "decord", "transformers", "open_clip", "spacy"}
CONTEXT = StageContext(clip_len_s=toys.CLIP_LEN_S, decoder="toys:ToyDecoder", fallbacks=())


def test_a_worker_and_the_registry_of_stages_import_no_heavy_library() -> None:
    script = (
        "import sys, pipeline.engine.work, pipeline.stages, data.video\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.fixture
def workers(tmp_path: Path, toy_stages: None) -> Iterator[Any]:
    """`workers("rows", shard_bytes=...)` makes a worker that is set up."""
    made: list[Worker] = []
    store = Store.create(tmp_path / "store", dataset="toys", clip_len_s=toys.CLIP_LEN_S)

    def make(*names: str, shard_bytes: int = 1 << 30, commit_every_s: float = 1e6) -> Worker:
        program = Program.build(CONTEXT, {}, names)
        stages = tuple(stage for stage in program.stages if stage.name in names)
        recipes = {name: program.recipes[name] for name in names}
        upstream = {up: program.recipes[up].id for stage in stages for up in stage.upstream}
        job = Job(StageSet(stages), recipes, upstream, store.path, shard_bytes, commit_every_s)
        made.append(Worker(job))
        made[-1].setup()
        return made[-1]

    yield make
    for each in made:
        each.close()


def items(tmp_path: Path, *ids: str) -> list[Item]:
    facts = VideoFacts(toys.DURATION_S, 1.0, 8, 4, 4, 0, "toy", "rgb24", 0, False, 0)
    videos = toys.write_videos(tmp_path / "videos", ids)
    return [Item(toys.key_of(video), video, facts) for video in videos]


def test_rows_are_held_until_they_are_written(tmp_path: Path, workers: Any) -> None:
    worker = workers("rows")
    (item,) = items(tmp_path, "a")
    report = worker.run(Task((item,), ("rows",)))
    assert [(each.status, each.key) for each in report.outcomes] == [("done", item.key)]
    assert report.shards == ()
    (shard,) = worker.flush().shards
    assert shard.keys == (item.key,)
    assert worker.flush().shards == ()


def test_a_shard_is_written_when_it_is_large_enough(tmp_path: Path, workers: Any) -> None:
    worker = workers("rows", shard_bytes=1)
    for item in items(tmp_path, "a", "b"):
        (shard,) = worker.run(Task((item,), ("rows",))).shards
        assert shard.keys == (item.key,)


def test_a_shard_is_written_when_it_is_old_enough(tmp_path: Path, workers: Any) -> None:
    worker = workers("rows", commit_every_s=0.05)
    first, second = items(tmp_path, "a", "b")
    assert worker.run(Task((first,), ("rows",))).shards == ()
    time.sleep(0.06)
    (shard,) = worker.run(Task((second,), ("rows",))).shards
    assert len(shard.keys) == 2


def test_an_unknown_file_is_hashed_and_its_key_comes_back(tmp_path: Path, workers: Any) -> None:
    worker = workers("probe")
    (item,) = items(tmp_path, "a")
    key = type(item.key)("a", UNKNOWN_CONTENT)
    report = worker.run(Task((Item(key, item.video),), ("probe",)))
    assert [each.key for each in report.outcomes] == [item.key]
    assert [(each.path, each.sha256) for each in report.hashes] == [
        (item.video.path, item.key.content)
    ]


def test_a_row_for_another_key_is_an_error_of_the_stage(
    tmp_path: Path, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = items(tmp_path, "a", "b")

    def wrong(self: object, item: Item, inputs: object) -> Row:
        return Row(first.key, arrays={"vector": toys.expected("a")})

    monkeypatch.setattr(toys.ToyRows, "process", wrong)
    (outcome,) = workers("rows").run(Task((second,), ("rows",))).outcomes
    assert (outcome.status, outcome.reason) == ("error", "exception")
    assert "was asked for" in outcome.message


def test_a_row_of_a_wrong_shape_is_an_error_and_not_stored(
    tmp_path: Path, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = items(tmp_path, "a")

    def wrong(self: object, item: Item, inputs: object) -> Row:
        return Row(item.key, arrays={"vector": toys.expected("a", width=5)})

    monkeypatch.setattr(toys.ToyRows, "process", wrong)
    worker = workers("rows")
    (outcome,) = worker.run(Task((item,), ("rows",))).outcomes
    assert outcome.status == "error"
    assert worker.flush().shards == ()


def test_a_stage_must_give_one_result_per_window(
    tmp_path: Path, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(self: object, item: Item, windows: Sequence[object]) -> list[float]:
        return [0.0] * (len(windows) - 1)

    monkeypatch.setattr(toys.ToyBright, "encode", short)
    (item,) = items(tmp_path, "a")
    (outcome,) = workers("bright").run(Task((item,), ("bright",))).outcomes
    assert "gave 2 results for 3 windows" in outcome.message


def test_the_next_video_is_decoded_meanwhile(tmp_path: Path, workers: Any) -> None:
    worker = workers("bright")
    first, second = items(tmp_path, "a", "b")
    worker.run(Task((first,), ("bright",)), upcoming=Task((second,), ("bright",)))
    log = tmp_path / "videos" / "decodes.log"
    deadline = time.monotonic() + 30
    while "b bright" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.read_text().splitlines() == ["a bright", "b bright"]
    (outcome,) = worker.run(Task((second,), ("bright",))).outcomes
    assert outcome.status == "done"
    assert log.read_text().splitlines() == ["a bright", "b bright"]


def test_a_stage_that_cannot_be_set_up_is_named(workers: Any, monkeypatch: Any) -> None:
    def broken(self: object) -> None:
        raise ImportError("no module named open_clip")

    monkeypatch.setattr(toys.ToyDark, "setup", broken)
    with pytest.raises(StageSetupError, match="'dark' cannot run: ImportError: no module") as info:
        workers("bright", "dark")
    assert info.value.stage == "dark"
