from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.errors import StoreError
from data.identity import file_sha256
from data.store import Failure, FailureLog, FileHashes, ItemKey

KEY = ItemKey("v1", "a" * 64)
OTHER = ItemKey("v1", "a" * 64, 1, 2)


def remembered(hashes: FileHashes, file: Path) -> str:
    """The sha256 of a file, after it was hashed and remembered."""
    sha256 = file_sha256(file)
    hashes.remember(file, sha256, file.stat())
    return sha256


def test_the_last_failure_of_a_part_counts_until_it_is_forgotten(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "clip" / "failures.jsonl")
    assert log.read() == {}
    first = Failure("clip", KEY, "undecodable", "no frame can be decoded", 1)
    last = Failure("clip", KEY, "timeout", "took longer than 60 s", 3, "line 1\nline 2 — ü")
    other = Failure("clip", OTHER, "crashed", "the worker died", 3)
    for each in (first, other, last):
        log.record(each)
    assert log.read() == {("v1", "a" * 64, 0): last, ("v1", "a" * 64, 1): other}
    log.forget([KEY])
    assert log.read() == {("v1", "a" * 64, 1): other}
    log.record(first)
    assert log.read()["v1", "a" * 64, 0] == first


def test_overlong_messages_are_cut_in_the_middle_and_say_so(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "failures.jsonl")
    log.record(Failure("clip", KEY, "crashed", "m" * 10**6, 1, "start" + "x" * 10**7 + "end"))
    [found] = log.read().values()
    assert len(found.message) < 3_000
    assert "characters cut" in found.message
    assert found.log.startswith("start")
    assert found.log.endswith("end")
    assert log.path.stat().st_size < 15_000


def test_a_torn_failure_is_skipped_and_a_foreign_row_is_named(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "failures.jsonl")
    log.record(Failure("clip", KEY, "crashed", "died", 1))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(log.read()) == 1
    log.record(Failure("clip", OTHER, "crashed", "died", 1))
    assert len(log.read()) == 2
    log.path.write_bytes(b'{"key": {"path": "/etc"}}\n')
    with pytest.raises(StoreError, match=r"failures.jsonl has a row that is no failure"):
        log.read()


def test_the_hash_of_an_unchanged_file_is_remembered(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    cache = tmp_path / "cache" / "files.jsonl"
    assert FileHashes(cache).hash_of(video) is None
    sha256 = remembered(FileHashes(cache), video)
    assert FileHashes(cache).hash_of(video) == sha256


def test_the_hash_of_a_file_that_changed_is_forgotten(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    hashes = FileHashes(tmp_path / "files.jsonl")
    old = remembered(hashes, video)
    video.write_bytes(b"FRAMES")
    os.utime(video, ns=(1, 1))
    assert hashes.hash_of(video) is None
    assert remembered(hashes, video) != old
    assert FileHashes(tmp_path / "files.jsonl").hash_of(video) == file_sha256(video)


def test_a_file_that_is_gone_has_no_hash(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    hashes = FileHashes(tmp_path / "files.jsonl")
    remembered(hashes, video)
    video.unlink()
    assert hashes.hash_of(video) is None


def test_a_file_that_changed_while_it_was_hashed_is_not_remembered(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    before = video.stat()
    sha256 = file_sha256(video)
    video.write_bytes(b"frames and more")
    hashes = FileHashes(tmp_path / "files.jsonl")
    hashes.remember(video, sha256, before)
    assert hashes.hash_of(video) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]\n{}\n", b'{"path": 3}\n', b"\xff\xfe"])
def test_a_damaged_or_deleted_cache_is_harmless(damage: bytes, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    cache = tmp_path / "files.jsonl"
    remembered(FileHashes(cache), video)
    cache.write_bytes(damage)
    hashes = FileHashes(cache)
    assert hashes.hash_of(video) is None
    sha256 = remembered(hashes, video)
    assert FileHashes(cache).hash_of(video) == sha256
