"""Inputs that change, and stores that others write to, while a run works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from drivers import start, write_config
from rich.console import Console

from data.errors import StoreError, UsageError
from data.store import FileHashes, ItemKey, Row, Store
from pipeline.corpus import Corpus
from pipeline.engine.types import Task
from pipeline.handout import HandOut
from pipeline.progress import Progress
from pipeline.stage import Item
from pipeline.survey import Ledger
from pipeline.view import share_of


def replace_file(path: Path, text: str) -> None:
    """Another file of the same size and modification time, as `cp -p` and `rsync -t` make it."""
    stat = path.stat()
    other = path.with_name("other")
    other.write_text(text)
    assert other.stat().st_size == stat.st_size
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


def test_a_replaced_file_of_the_same_size_and_time_is_another_file(tmp_path: Path) -> None:
    (video,) = toys.write_videos(tmp_path, ["a"])
    hashes = FileHashes(tmp_path / "files.jsonl")
    hashes.remember(video.path, "0" * 64, video.path.stat())
    assert FileHashes(hashes.path).hash_of(video.path) == "0" * 64
    replace_file(video.path, "TOY VIDEO A")
    assert hashes.hash_of(video.path) is None


class Meddler(Progress):
    """Replaces a file when the work on a stage begins."""

    def __init__(self, stage: str, path: Path) -> None:
        super().__init__(Console(quiet=True))
        self.stage, self.path = stage, path
        self.notes: list[str] = []

    def begin(self, stage: str, total: int, before: int) -> None:
        super().begin(stage, total, before)
        if stage == self.stage:
            self.stage = ""
            replace_file(self.path, self.path.read_text().upper())

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_file_that_is_replaced_between_two_stages_is_a_new_input_of_the_same_run(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    first, _ = toys.write_videos(tmp_path / "videos", ["a", "b"])
    old = toys.key_of(first)
    meddler = Meddler("rows", first.path)
    result = run_toys(["rows"], watcher=meddler)
    assert (result.exit_code, result.failures) == (0, [])
    keys = Store.open(tmp_path / "store").reader("rows").keys()
    assert toys.key_of(first) in keys
    assert old not in keys
    assert any("was replaced since this run began" in note for note in meddler.notes)


def test_rows_of_a_file_that_is_replaced_while_it_is_read_are_not_stored(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (video,) = toys.write_videos(tmp_path / "videos", ["a"])
    old = toys.key_of(video)
    process, seen = toys.ToyProbe.process, []

    def meddle(self: toys.ToyProbe, item: Item, inputs: Any) -> Row:
        row = process(self, item, inputs)
        if not seen:
            replace_file(video.path, video.path.read_text().upper())
        seen.append(item.key)
        return row

    monkeypatch.setattr(toys.ToyProbe, "process", meddle)
    assert run_toys(["probe"]).exit_code == 0
    assert seen == [old, toys.key_of(video)]
    assert Store.open(tmp_path / "store").reader("probe").keys() == {toys.key_of(video)}


def test_what_another_job_has_stored_meanwhile_is_not_handed_out(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    videos = toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    run_toys(["rows"], limit=1)
    store = Store.open(tmp_path / "store")
    recipe = store.recipe("rows")
    watcher = Progress(Console(quiet=True))
    watcher.begin("rows", 3, 0)
    reader_of = Ledger(store).reader
    due = HandOut({"rows": recipe}, reader_of, lambda path: None, watcher, 0.0, look_share=1e9)
    tasks = [Task((Item(toys.key_of(video)),), ("rows",)) for video in videos]
    handed = due.only(iter(tasks))
    assert next(handed) == tasks[1]  # `a` is there
    with store.writer(recipe) as writer:
        writer.add(Row(toys.key_of(videos[2]), arrays={"vector": toys.expected("c")}))
    assert list(handed) == []  # and now `c`, too
    assert watcher.stages["rows"].done == 2


def test_a_store_that_does_not_answer_for_a_moment_stops_nobody(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = toys.write_videos(tmp_path / "videos", ["a", "b"])
    run_toys(["rows"])
    store = Store.open(tmp_path / "store")
    watcher = Progress(Console(quiet=True))
    watcher.begin("rows", 2, 0)
    recipes = {"rows": store.recipe("rows")}
    reader_of = Ledger(store).reader
    due = HandOut(recipes, reader_of, lambda path: None, watcher, 0.0, look_share=1e9)
    tasks = [Task((Item(toys.key_of(video)),), ("rows",)) for video in videos]

    def broken(*arguments: Any, **options: Any) -> None:
        raise StoreError("the disk does not answer")

    handed = due.only(iter(tasks))
    with monkeypatch.context() as disk:
        disk.setattr(Store, "reader", broken)
        assert next(handed) == tasks[0]
    assert list(handed) == []


def finished(driver: subprocess.Popen[str]) -> None:
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, out + err


def test_two_jobs_on_one_store_lose_nothing_and_show_nothing_twice(tmp_path: Path) -> None:
    ids = [f"v{number:02}" for number in range(12)]
    toys.write_videos(tmp_path / "videos", ids)
    write_config(tmp_path, stages={"rows": {"sleep_s": 0.02}, "sums": {}})
    jobs = [start(tmp_path), start(tmp_path)]
    for job in jobs:
        finished(job)
    store = Store.open(tmp_path / "store")
    for stage in ("probe", "rows", "sums"):
        assert store.reader(stage).ids() == ids
    for id_ in ids:
        np.testing.assert_array_equal(store.reader("rows").row(id_)["vector"], toys.expected(id_))
    assert [each for each in store.verify() if each.level == "error"] == []


def test_shares_are_disjoint_and_make_up_the_whole() -> None:
    items = tuple(Item(ItemKey(f"v{number}", "0" * 64)) for number in range(50))
    shares = [share_of(Corpus((), items), f"{number}/3").queries for number in (1, 2, 3)]
    assert all(shares)
    assert sorted(item.key.id for share in shares for item in share) == sorted(
        item.key.id for item in items
    )


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3"])
def test_an_impossible_share_is_refused(share: str) -> None:
    with pytest.raises(UsageError, match=r"allowed are 1/N to N/N"):
        share_of(Corpus(), share)


def test_a_recipe_becomes_current_when_the_last_share_is_there(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", [f"v{number}" for number in range(6)])
    run_toys(["rows"])
    other = {"rows": {"scale": 2.0}}
    before = Store.open(tmp_path / "store").current["rows"]
    run_toys(["rows"], stages=other, share="1/2")
    assert Store.open(tmp_path / "store").current["rows"] == before
    result = run_toys(["rows"], stages=other, share="2/2")
    assert result.exit_code == 0
    assert Store.open(tmp_path / "store").current["rows"] != before
