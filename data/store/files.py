"""Every byte that the store writes goes through this file: whole files appear at once or not at
all, records are added as whole lines.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.errors import StoreError
from data.identity import canonical_json

__all__ = [
    "append_records",
    "atomic_write",
    "exclusive",
    "make_folder",
    "read_json",
    "read_records",
    "records_bytes",
]


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file that is there with all its bytes, or not there: also after a crash.

    Temporary name in the same folder, fsync, rename, fsync of the folder.

    Raises:
        StoreError: the file system refused (full, read-only); the old file is untouched.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        make_folder(path.parent)
        _write_synced(temporary, data)
        os.replace(temporary, path)  # noqa: PTH105 (tests break it at this call)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(_refused(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create a folder and its parents so that they survive a power loss."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def append_records(
    path: Path, records: Iterable[Mapping[str, Any]], *, durable: bool = True
) -> None:
    """Add lines of JSON with a single O_APPEND write: writers need no lock.

    A line that a killed writer left half written is closed first, so it costs only itself.

    Args:
        path: the file, made if it is not there.
        records: one line each.
        durable: False leaves it to the system when they reach the disk (caches).

    Raises:
        StoreError: the file system refused.
    """
    lines = records_bytes(records)
    try:
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            lines = b"\n" + lines if torn else lines
            if os.write(descriptor, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(_refused(path, error)) from error


def records_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Lines of canonical JSON: equal records give equal bytes."""
    return b"".join(canonical_json(record).encode() + b"\n" for record in records)


def read_records(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The JSON objects of a file, one per line; [] if there is no file.

    Args:
        path: the file.
        torn: skip lines that are not whole (files that are appended to by writers that may be
            killed); otherwise such a line is an error.

    Raises:
        StoreError: unreadable, or a line that is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        record = _object(line)
        if record is not None:
            records.append(record)
        elif line.strip() and not torn:
            raise StoreError(
                f"{path}, line {number} is not a JSON object; the file was damaged or edited"
            )
    return records


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: unreadable, or not a JSON object.
    """
    try:
        value = _object(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if value is None:
        raise StoreError(f"{path} is not a JSON object; the file was damaged or edited")
    return value


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold off other jobs for the moment of one read-change-replace of a small file.

    An advisory lock on the folder itself, given back by the kernel if the process dies. Where
    the file system has no locks, the last writer wins.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> str:
    todo = {
        errno.ENOSPC: "free some space and run the command again",
        errno.EDQUOT: "raise the quota and run the command again",
        errno.EROFS: "the file system is read-only; use a store that can be written",
        errno.EACCES: "no permission; use a store that this user can write",
    }.get(error.errno or 0, "see that the disk is well and run the command again")
    return f"cannot write {path}: {error.strerror or error}; nothing was changed: {todo}"
