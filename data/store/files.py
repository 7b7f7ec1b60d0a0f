"""Every byte that the store writes goes through this file: whole files appear at once or not at
all, records are added as whole lines.

All of it works for a folder of this machine and for what fsspec reaches (`data.store.remote`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from data.errors import StoreError
from data.foreign import strict_json
from data.identity import canonical_json, file_sha256
from data.store import remote
from data.store.place import Place
from data.store.remote import Entry
from data.store.scratch import refreshed_copy

__all__ = [
    "Entry",
    "append_records",
    "atomic_write",
    "change_file",
    "list_folder",
    "locked",
    "make_folder",
    "move",
    "parse_json",
    "parse_records",
    "read_bytes",
    "read_json",
    "read_records",
    "records_bytes",
    "remove",
    "sha256_of",
    "size_of",
]


LOCK = ".lock"
"""Empty file of a folder of this machine that is locked while a small file beside it changes."""


def atomic_write(path: Place, data: bytes) -> None:
    """Write a file that is there with all its bytes, or not there: also after a crash.

    Locally: temporary name in the same folder, fsync, rename, fsync of the folder. Remotely:
    `data.store.remote.put`.

    Raises:
        StoreError: the file system refused (full, read-only); the old file is untouched.
    """
    if not isinstance(path, Path):
        remote.put(path, data)
        return
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


def change_file(path: Place, new_content: Callable[[bytes | None], bytes]) -> None:
    """Read, change and replace a small file so that what other jobs change stays.

    Args:
        path: the file.
        new_content: from its bytes (None: there is none) to those it should have; equal ones are
            not written. Remotely it may be called several times.

    Raises:
        StoreError: the file system refused.
    """
    if not isinstance(path, Path):
        remote.change(path, new_content)
        return
    try:
        make_folder(path.parent)
    except OSError as error:
        raise StoreError(_refused(path, error)) from error
    with locked(path.parent / LOCK):
        try:
            old = read_bytes(path)
        except FileNotFoundError:
            old = None
        new = new_content(old)
        if new != old:
            atomic_write(path, new)


def make_folder(path: Path) -> None:
    """Create a local folder and its parents so that they survive a power loss.

    Object stores have no folders, and elsewhere `atomic_write` makes them.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def list_folder(path: Place) -> list[Entry]:
    """What is in a folder now, in name order, asked for by one call; [] if there is no folder.

    Raises:
        StoreError: it cannot be read.
    """
    if not isinstance(path, Path):
        return remote.listed(path)
    try:
        with os.scandir(path) as found:
            entries = [_entry(each) for each in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"cannot list {path}: {error.strerror}") from error
    return sorted((each for each in entries if each is not None), key=lambda each: each.name)


def _entry(found: os.DirEntry[str]) -> Entry | None:
    try:
        stat, is_folder = found.stat(), found.is_dir()
    except FileNotFoundError:
        return None  # removed since, or a link to nothing
    if not (is_folder or S_ISREG(stat.st_mode)):
        return None  # reading a pipe or a device never ends
    return Entry(found.name, 0 if is_folder else stat.st_size, stat.st_mtime, is_folder)


def size_of(path: Place) -> int | None:
    """Bytes of a file; None if there is no such file.

    Raises:
        StoreError: the file system does not say.
    """
    if not isinstance(path, Path):
        return remote.size_of(path)
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def remove(path: Place) -> None:
    """Remove a file, or a folder with all that is in it; no error if there is none.

    Raises:
        StoreError: the file system refused.
    """
    if not isinstance(path, Path):
        remote.remove(path)
        return
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileNotFoundError:
        return  # another job removed it, or its folder, first
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {error.strerror or error}") from error


def move(source: Place, target: Place) -> None:
    """Rename a file within a store, replacing what is there; its new folder is made.

    Locally at once. Object stores copy it, compare the size, and remove the old one, so for a
    moment both are there, never none.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the file system refused; the old file is still there.
    """
    if not isinstance(source, Path) or not isinstance(target, Path):
        if isinstance(source, Path) or isinstance(target, Path):
            raise StoreError(f"cannot move {source} to {target}: they are on different systems")
        remote.move(source, target)
        return
    try:
        make_folder(target.parent)
        os.replace(source, target)  # noqa: PTH105 (as in `atomic_write`)
        _sync_folder(target.parent)
        _sync_folder(source.parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(_refused(target, error)) from error


def sha256_of(path: Place) -> str:
    """sha256 (64 hex) of a file as it is in the store now, never of an older copy in scratch.

    A remote shard that is whole is kept in scratch, so its rows are not fetched a second time.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it cannot be read; GoneError if it is a remote shard that is not there.
    """
    try:
        if isinstance(path, Path):
            return file_sha256(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if path.name.startswith("shard-"):
        return refreshed_copy(path)
    return hashlib.sha256(remote.fetch(path)).hexdigest()


def append_records(
    path: Place, records: Iterable[Mapping[str, Any]], *, durable: bool = True
) -> None:
    """Add lines of JSON; writers need no lock.

    Locally by a single O_APPEND write. A line that a killed writer left half written is closed
    first, so it costs only itself. Object stores cannot append: there each call writes one small
    object `<name>.d/<sequence>-<random>.jsonl`, and so it goes on where a store was copied from
    one. Two writers who take the same sequence number both stay.

    Args:
        path: the file, made if it is not there.
        records: one line each.
        durable: False leaves it to the system when they reach the disk (caches).

    Raises:
        StoreError: the file system refused.
    """
    lines = records_bytes(records)
    pieces = _pieces(path)
    if pieces or not isinstance(path, Path):
        following = int(pieces[-1].partition("-")[0]) + 1 if pieces else 1
        name = f"{following:012d}-{secrets.token_hex(4)}.jsonl"
        atomic_write(_pieces_folder(path) / name, lines)
        return
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


def _pieces_folder(path: Place) -> Place:
    return path.parent / f"{path.name}.d"


def _pieces(path: Place) -> list[str]:
    """Names of the small objects that hold records of a file, in the order of writing."""
    names = [each.name for each in list_folder(_pieces_folder(path)) if not each.is_folder]
    return [name for name in names if name.endswith(".jsonl") and name[:12].isdigit()]


def records_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Lines of canonical JSON: equal records give equal bytes."""
    return b"".join(canonical_json(record).encode() + b"\n" for record in records)


def read_records(path: Place, *, torn: bool = False) -> list[dict[str, Any]]:
    """The JSON objects of a file, one per line, and of what was added beside it; [] if none.

    Args:
        path: the file.
        torn: skip lines that are not whole (files that are appended to by writers that may be
            killed); otherwise such a line is an error.

    Raises:
        StoreError: unreadable, or a line that is not a JSON object.
    """
    folder = _pieces_folder(path)
    records = []
    for each, content in _read_all([path, *(folder / name for name in _pieces(path))]):
        records += parse_records(content, each, torn=torn)
    return records


def _read_all(paths: list[Place]) -> Iterator[tuple[Place, bytes]]:
    """Each file that is there, with its bytes; remote ones are fetched at the same time."""
    away = [path for path in paths if not isinstance(path, Path)]
    for place, content in zip(away, remote.fetch_many(away), strict=True):
        if content is not None:
            yield place, content
    for path in paths:
        if isinstance(path, Path):
            with suppress(FileNotFoundError):
                yield path, read_bytes(path)


def parse_records(content: bytes, path: Place, *, torn: bool = False) -> list[dict[str, Any]]:
    """The records in the bytes of a file, as `read_records`."""
    records = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        record = _object(line)
        if record is not None:
            records.append(record)
        elif line.strip() and not torn:
            raise StoreError(
                f"{path}, line {number} is not a JSON object; the file was damaged or edited"
            )
    return records


def read_bytes(path: Place) -> bytes:
    """A small file.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it cannot be read.
    """
    if not isinstance(path, Path):
        return remote.fetch(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def read_json(path: Place) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: unreadable, or not a JSON object.
    """
    return parse_json(read_bytes(path), path)


def parse_json(content: bytes, path: Place) -> dict[str, Any]:
    """The JSON object in the bytes of a file, as `read_json`."""
    value = _object(content)
    if value is None:
        raise StoreError(f"{path} is not a JSON object; the file was damaged or edited")
    return value


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold off other jobs, on other hosts too; the kernel gives the lock of the dead back.

    A file that is open for writing, not a folder: NFS tells other hosts of locks on files only.
    Where there are no locks, or the file cannot be written, there is none.

    Args:
        path: the file, made if it is not there.
        wait: whether to wait for another job that holds it.

    Yields:
        False if another job holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield True
        return
    try:
        yield _flock(descriptor, wait)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = strict_json(text)
    except ValueError:
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
