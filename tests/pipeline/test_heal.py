"""One `pipeline run` mends what it finds damaged, and says so."""

from __future__ import annotations

import errno
from pathlib import Path

import h5py
import numpy as np
import pytest
import toys
from rich.console import Console

from data.errors import DamageError, StoreError
from data.identity import file_sha256
from data.store import ShardWriter, StageReader, Store
from pipeline.progress import Progress
from pipeline.run import Result


class Listener(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def rows_then_nothing_of_sums(tmp_path: Path, run_toys: toys.RunToys, ids: list[str]) -> Path:
    """The shard of `rows`; nothing of `sums`, which reads it."""
    toys.write_videos(tmp_path / "videos", ids)
    run_toys(["rows"])
    (shard,) = Store.open(tmp_path / "store").shards("rows")
    return Path(str(shard))


def flip(shard: Path, vector: np.ndarray) -> None:
    """Change one bit of a stored vector: the shard opens, the row is damaged."""
    content = bytearray(shard.read_bytes())
    content[content.index(vector.tobytes())] ^= 1
    shard.write_bytes(content)


def check(tmp_path: Path, result: Result, ids: list[str]) -> None:
    assert (result.exit_code, result.failures) == (0, [])
    store = Store.open(tmp_path / "store")
    for id_ in ids:
        np.testing.assert_array_equal(store.reader("rows").row(id_)["vector"], toys.expected(id_))
        total = toys.expected(id_).sum(dtype=np.float64)
        assert store.reader("sums").row(id_)["sum"].tolist() == [total]
    assert [each for each in store.verify() if each.level == "error"] == []


def test_a_damaged_row_that_a_stage_reads_is_made_again_in_the_same_run(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    ids = ["a", "b", "c"]
    shard = rows_then_nothing_of_sums(tmp_path, run_toys, ids)
    flip(shard, toys.expected("b"))
    listener = Listener()
    result = run_toys(["sums"], watcher=listener)
    check(tmp_path, result, ids)
    (sentence,) = result.healed
    assert sentence in listener.notes
    assert str(shard) in sentence
    assert "2 rows of it are kept, 1 rows of it are made again" in sentence
    assert not shard.exists()
    assert list((tmp_path / "store" / "set-aside").rglob("*.h5"))


def test_a_torn_shard_is_set_aside_before_work_begins(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    shard = rows_then_nothing_of_sums(tmp_path, run_toys, ["a", "b"])
    shard.write_bytes(shard.read_bytes()[:-100])
    result = run_toys(["sums"])
    check(tmp_path, result, ["a", "b"])
    assert len(result.healed) == 1


def test_a_disk_that_does_not_answer_is_no_damage_and_no_fault_of_an_input(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = rows_then_nothing_of_sums(tmp_path, run_toys, ["a"])

    def broken(self: StageReader, id: str, content: str | None = None) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(StageReader, "row", broken)
        result = run_toys(["sums"])
    assert (result.exit_code, result.failures, result.healed) == (75, [], [])
    assert "Input/output error" in result.unread
    assert shard.exists()
    check(tmp_path, run_toys(["sums"]), ["a"])


def test_a_stage_that_always_meets_damage_does_not_run_for_ever(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = rows_then_nothing_of_sums(tmp_path, run_toys, ["a"])
    reads: list[str] = []

    def damaged(self: StageReader, id: str, content: str | None = None) -> None:
        reads.append(id)
        raise DamageError(str(shard), "has damaged rows of 'a'")

    with monkeypatch.context() as disk:
        disk.setattr(StageReader, "row", damaged)
        result = run_toys(["sums"])
    assert (result.exit_code, len(reads), result.healed) == (75, 3, [])
    assert shard.exists(), "a whole shard is never set aside"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Change times of every file and folder: what was written, made or replaced."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in paths}


def test_a_run_with_nothing_to_do_writes_nothing(tmp_path: Path, run_toys: toys.RunToys) -> None:
    """So that it ends with 0 on a store that is read-only."""
    row = '{"qid": 1, "query": "a ball", "vid": "a", "duration": 8, "relevant_windows": [[0, 2]]}\n'
    (tmp_path / "train.jsonl").write_text(row)
    toys.write_videos(tmp_path / "videos", ["a", "refuse-1"])
    annotations = {"train": "train.jsonl"}
    assert run_toys(["sums", "lengths"], annotations=annotations).exit_code == 3
    before = tree(tmp_path / "store")
    assert run_toys(["sums", "lengths"], annotations=annotations).exit_code == 3
    assert tree(tmp_path / "store") == before


def test_a_write_that_fails_once_is_tried_again(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    flush, failed = ShardWriter.flush, []

    def once(self: ShardWriter) -> object:
        if not failed:
            failed.append(self)
            raise StoreError("the server did not answer")
        return flush(self)

    monkeypatch.setattr(ShardWriter, "flush", once)
    assert run_toys(["rows"]).exit_code == 0
    assert len(failed) == 1


def test_a_shard_of_another_version_stays_and_the_run_says_that_readers_refuse_it(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    shard = rows_then_nothing_of_sums(tmp_path, run_toys, ["a", "b"])
    copy = tmp_path / "copy.h5"
    copy.write_bytes(shard.read_bytes())
    with h5py.File(copy, "r+") as file:
        file.attrs["schema_version"] = 7
    newer = shard.with_name(f"shard-{file_sha256(copy)[:16]}.h5")
    copy.rename(newer)
    result = run_toys(["rows"])
    assert (result.exit_code, result.plan.missing) == (4, 0)
    assert "schema version 7" in result.plan.damage[0]
    assert newer.exists()
    newer.unlink()
    assert run_toys(["rows"]).exit_code == 0
