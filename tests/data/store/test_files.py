from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from data.errors import StoreError
from data.store.files import (
    append_records,
    atomic_write,
    change_file,
    locked,
    read_json,
    read_records,
)


def _fails(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("before", [b"old content", None])
def test_a_write_that_fails_at_any_call_leaves_the_old_file_and_nothing_else(
    call: str, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if before is not None:
        atomic_write(path, before)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _fails(errno.ENOSPC))
        with pytest.raises(
            StoreError, match=r"cannot write .*file: No space left.*free some space"
        ):
            atomic_write(path, b"new content")
    assert [each.name for each in tmp_path.iterdir()] == (["file"] if before else [])
    assert before is None or path.read_bytes() == before


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:3])))
    atomic_write(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_line_that_a_killed_writer_left_half_written_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_records(path, [{"n": 1}])
    with path.open("ab") as file:
        file.write(b'{"n": 2')
    assert read_records(path, torn=True) == [{"n": 1}]
    append_records(path, [{"n": 3}, {"n": 4}])
    assert read_records(path, torn=True) == [{"n": 1}, {"n": 3}, {"n": 4}]
    with pytest.raises(StoreError, match=r"log.jsonl, line 2 is not a JSON object"):
        read_records(path)


def test_a_full_disk_is_named_when_a_record_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:4]))
    with pytest.raises(StoreError, match="No space left"):
        append_records(tmp_path / "log.jsonl", [{"n": 1}])


def _append_many(path: Path, writer: int) -> None:
    for number in range(100):
        append_records(path, [{"writer": writer, "number": number, "text": "x" * 500}])


def test_writers_in_parallel_lose_no_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = {(each["writer"], each["number"]) for each in read_records(path)}
    assert found == {(writer, number) for writer in range(3) for number in range(100)}


def _count_up(folder: Path) -> None:
    def one_more(text: bytes | None) -> bytes:
        assert text is not None
        return json.dumps({"count": json.loads(text)["count"] + 1}).encode()

    for _ in range(50):
        change_file(folder / "count.json", one_more)


def test_read_change_replace_of_two_jobs_loses_nothing(tmp_path: Path) -> None:
    atomic_write(tmp_path / "count.json", b'{"count": 0}')
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_count_up, args=(tmp_path,)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert read_json(tmp_path / "count.json") == {"count": 100}


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"a": ', b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"store.json is not a JSON object"):
        read_json(tmp_path / "store.json")


def test_a_lock_is_held_once_and_never_stands_in_the_way_of_a_read_only_folder(
    tmp_path: Path,
) -> None:
    with locked(tmp_path / ".lock") as mine, locked(tmp_path / ".lock", wait=False) as also_mine:
        assert (mine, also_mine) == (True, False)
    with locked(tmp_path / ".lock", wait=False) as mine:
        assert mine
    with locked(tmp_path / "missing" / ".lock") as mine:  # cannot be made
        assert mine
