"""Object stores and network file systems: the few calls of fsspec that the store makes.

Every call is tried again after errors that may pass, and answers from what is there now: no
listing is remembered. An object store (s3, gs, az) shows an object at once with all its bytes;
where a file grows under its name instead (sftp, smb, webdav, hdfs) it is uploaded under another
name and moved.
"""

from __future__ import annotations

import base64
import hashlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import fsspec
from upath import UPath

from data.errors import StoreError, StorylineError

__all__ = [
    "Entry",
    "change",
    "fetch",
    "fetch_many",
    "listed",
    "move",
    "put",
    "remove",
    "size_of",
]

T = TypeVar("T")

_WAITS_S = (0.2, 1.0, 4.0)
"""Between the attempts of one call; s3fs and gcsfs retry on their own before that."""
_SETTLE_S = 0.5
"""Longer than another job takes from reading a small file to replacing it."""
_CHANGES = 20
"""How often a small file is read, changed and replaced before giving up."""
_ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_MISTAKES = (StorylineError, TypeError, AttributeError, NameError, AssertionError)
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
"""Of botocore and google.auth, which may not be installed."""
_JITTER = random.SystemRandom()  # the seeded generators belong to training
_IN_PROCESS = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One thing in a folder.

    Args:
        name: without the folder.
        size: bytes; 0 for a folder.
        mtime: when it was last written, seconds since 1970; None if the file system does not say.
        is_folder: whether it is a folder.
    """

    name: str
    size: int
    mtime: float | None
    is_folder: bool


@dataclass(frozen=True)
class _Traits:
    """What a kind of file system promises.

    Args:
        whole: a file appears at once with all its bytes, so it needs no temporary name.
        compare: replacing a file can be bound to its being what was read (`If-Match`).
        shared: other processes see it.
    """

    whole: bool = False
    compare: bool = False
    shared: bool = True


_OBJECTS = _Traits(whole=True)
_TRAITS = {
    "s3": _Traits(whole=True, compare=True),
    "s3a": _Traits(whole=True, compare=True),
    "gs": _OBJECTS,
    "gcs": _OBJECTS,
    "az": _OBJECTS,
    "abfs": _OBJECTS,
    "abfss": _OBJECTS,
    "memory": _Traits(whole=True, shared=False),
}


def _traits(place: UPath) -> _Traits:
    return _TRAITS.get(place.protocol, _Traits())


def _system(place: UPath) -> Any:
    # Not `place.fs`: an instance from before a fork may not be used after it. fsspec keeps one
    # instance per process and options.
    try:
        return fsspec.filesystem(place.protocol, **place.storage_options)
    except Exception as error:  # sftp connects here; wrong settings of the environment end here
        raise StoreError(
            f"cannot reach {place}: {_told(error)}; see that the service is well and what the "
            "environment and ~/.config/fsspec say of it is right"
        ) from error


def _patiently(doing: str, place: UPath, work: Callable[[], T]) -> T:
    """`work`, tried again after errors that may pass.

    Raises:
        FileNotFoundError, FileExistsError: an answer, not a failure.
        StoreError: no permission, or it still fails; names place, cause and next step.
    """
    last: Exception | None = None
    for wait_s in (*_WAITS_S, 0.0):
        try:
            return work()
        except (*_ANSWERS, *_MISTAKES):
            raise
        except Exception as error:  # what packages behind fsspec raise has no common base
            if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
                raise StoreError(
                    f"cannot {doing} {place}: {_told(error)}; see that the credentials in the "
                    "environment are those of a user who may do that"
                ) from error
            last = error
            time.sleep(wait_s * _JITTER.uniform(0.5, 1.0))
    raise StoreError(
        f"cannot {doing} {place}: {_told(last)} ({len(_WAITS_S) + 1} attempts); see that the "
        "service can be reached and is well, then run the command again"
    ) from last


def _told(error: Exception | None) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:300]}"


def put(place: UPath, data: bytes) -> None:
    """Write a file that appears with all its bytes, or not at all.

    Object stores: one put (s3fs and gcsfs send large ones in parts, which become visible
    together). The bytes come from memory, so no scratch file is needed on the way. Elsewhere:
    upload under a temporary name, compare the size, move to the name. Where even moving is not
    at once (smb and webdav servers differ), a shard torn by that is found by the sha256 in its
    name, and a torn store.json is no JSON.

    What arrived is compared by size, and by MD5 where the service tells it (gs); s3 has compared
    a CRC32 by then, which botocore sends along.

    Raises:
        StoreError: the service refused, or still fails after several attempts.
    """
    target = place if _traits(place).whole else place.parent / _temporary()
    try:
        _patiently("write", place, lambda: _upload(target, data))
        if target is not place:
            _patiently("write", place, lambda: _rename(target, place))
    except FileNotFoundError as error:
        raise StoreError(_no_bucket(place, error)) from error
    except BaseException:
        if target is not place:
            _discard(target)
        raise


def _temporary() -> str:
    return f".tmp-{secrets.token_hex(8)}"


def _upload(place: UPath, data: bytes, **condition: Any) -> None:
    system = _system(place)
    if not _traits(place).whole:
        system.makedirs(place.parent.path, exist_ok=True)
    system.pipe_file(place.path, data, **condition)
    arrived = system.info(place.path)
    if arrived["size"] != len(data):
        raise OSError(f"only {arrived['size']} of {len(data)} bytes arrived")
    md5 = arrived.get("md5Hash")
    if md5 is not None and base64.b64decode(md5) != hashlib.md5(data).digest():  # no secret
        raise OSError("other bytes arrived than were sent")


def _rename(source: UPath, target: UPath) -> None:
    system = _system(source)
    try:
        system.mv(source.path, target.path)
    except FileExistsError:
        # A server that does not replace. Whoever reads in between tries again.
        system.rm_file(target.path)
        system.mv(source.path, target.path)


def _discard(place: UPath) -> None:
    try:
        _system(place).rm_file(place.path)
    except Exception:  # a temporary name; the error that led here is the one to tell
        return


def fetch(place: UPath, start: int | None = None, stop: int | None = None) -> bytes:
    """Bytes `start:stop` of a file, fewer at its end.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it cannot be read.
    """
    if start is not None and start == stop:
        return b""
    data: bytes = _patiently(
        "read", place, lambda: _system(place).cat_file(place.path, start=start, end=stop)
    )
    return data


def fetch_many(
    places: Sequence[UPath], ranges: Sequence[tuple[int, int]] | None = None
) -> list[bytes | None]:
    """Several files of one file system, or one range of each, at the same time.

    Args:
        places: the files; one may be there several times.
        ranges: start and stop for each of them; None is the whole file.

    Returns:
        The bytes of each; None for a file that is not there.

    Raises:
        StoreError: one of them cannot be read.
    """
    if not places:
        return []
    starts, stops = zip(*ranges, strict=True) if ranges else (None, None)
    paths = [place.path for place in places]
    # One `cat` for whole files would lose a name that is there twice.
    found = _system(places[0]).cat_ranges(
        paths,
        list(starts) if starts else [None] * len(paths),
        list(stops) if stops else [None] * len(paths),
        on_error="return",
    )
    return [
        data if isinstance(data, bytes) else _again(data, place, *(ranges[at] if ranges else ()))
        for at, (place, data) in enumerate(zip(places, found, strict=True))
    ]


def _again(error: Exception, place: UPath, *cut: int) -> bytes | None:
    if isinstance(error, FileNotFoundError):
        return None
    try:
        return fetch(place, *cut)
    except FileNotFoundError:
        return None


def size_of(place: UPath) -> int | None:
    """Bytes of a file; None if there is no such file."""
    found = _about(place)
    return None if found is None else int(found["size"])


def _about(place: UPath) -> dict[str, Any] | None:
    system = _system(place)
    try:
        found: dict[str, Any] = _patiently("read", place, lambda: system.info(place.path))
    except FileNotFoundError:
        return None
    return found if found["type"] == "file" else None


def listed(place: UPath) -> list[Entry]:
    """What is in a folder now, in name order, by one call; [] if there is no such folder."""
    system = _system(place)
    system.invalidate_cache(place.path)
    try:
        rows = _patiently("list", place, lambda: system.ls(place.path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    here = place.path.strip("/")
    # Some tools leave an empty object that stands for the folder itself.
    entries = [_entry(row) for row in rows if row["name"].strip("/") != here]
    return sorted((each for each in entries if each.name), key=lambda each: each.name)


def _entry(row: dict[str, Any]) -> Entry:
    is_folder = row["type"] == "directory"
    name = row["name"].rstrip("/").rpartition("/")[2]
    return Entry(name, 0 if is_folder else int(row["size"] or 0), _mtime(row), is_folder)


_MTIME_KEYS = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")
"""How s3, az, sftp and smb, webdav, gs, and memory name it."""


def _mtime(row: dict[str, Any]) -> float | None:
    value = next((row[key] for key in _MTIME_KEYS if row.get(key) is not None), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def remove(place: UPath) -> None:
    """Remove a file, or a folder with all that is in it; no error if there is none."""
    system = _system(place)
    is_file = _about(place) is not None
    call = system.rm_file if is_file else lambda path: system.rm(path, recursive=True)
    try:
        _patiently("remove", place, lambda: call(place.path))
    except FileNotFoundError:
        return
    finally:
        system.invalidate_cache(place.parent.path)


def move(source: UPath, target: UPath) -> None:
    """Rename a file within one file system; object stores copy it and then remove the old one.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: refused; the old file is still there.
    """
    if not _traits(source).whole:
        system = _system(source)
        _patiently("write", target, lambda: system.makedirs(target.parent.path, exist_ok=True))
        _patiently("move", source, lambda: _rename(source, target))
        return
    _patiently("copy", source, lambda: _copy(source, target))
    remove(source)


def _copy(source: UPath, target: UPath) -> None:
    system = _system(source)
    size = system.info(source.path)["size"]
    system.cp_file(source.path, target.path)
    if system.info(target.path)["size"] != size:
        raise OSError("the copy is not whole")


def change(place: UPath, new_content: Callable[[bytes | None], bytes]) -> None:
    """Read, change and replace a small file so that changes of other jobs survive.

    There are no locks. On s3 the replacement is bound to the file being the one that was read
    (`If-Match`), so nothing is lost. Elsewhere it is read again after a while, and the change is
    made once more if another job's replacement has taken it away.

    Args:
        place: the file.
        new_content: from its bytes (None: there is none) to those it should have. It is called
            again until it changes nothing.

    Raises:
        StoreError: it cannot be written, or other jobs never pause.
    """
    with _IN_PROCESS:
        for _ in range(_CHANGES):
            about = _about(place)
            old = None if about is None else fetch(place)
            new = new_content(old)
            if new == old:
                return
            if _replaced(place, new, about) and not _must_settle(place):
                return
            time.sleep(_SETTLE_S * _JITTER.uniform(0.5, 1.0) if _traits(place).shared else 0)
    raise StoreError(
        f"cannot write {place}: other jobs replaced it {_CHANGES} times meanwhile; run the "
        "command again when fewer jobs begin at once"
    )


def _must_settle(place: UPath) -> bool:
    traits = _traits(place)
    return traits.shared and not traits.compare


def _replaced(place: UPath, data: bytes, about: dict[str, Any] | None) -> bool:
    """Write, if the file still is what it was; False if it is not."""
    if not _traits(place).compare:
        put(place, data)
        return True
    condition = {"mode": "create"} if about is None else {"IfMatch": about["ETag"]}

    def write() -> bool:
        try:
            _upload(place, data, **condition)
        except OSError as error:
            if not _is_conflict(error):
                raise
            return False
        return True

    try:
        return _patiently("write", place, write)
    except FileNotFoundError as error:
        if about is not None:
            return False  # it was removed meanwhile
        raise StoreError(_no_bucket(place, error)) from error


def _is_conflict(error: OSError) -> bool:
    """Whether a service refused because the file is not what it was."""
    told = getattr(error.__cause__, "response", None) or {}
    code = told.get("Error", {}).get("Code")
    return isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412")


def _no_bucket(place: UPath, error: Exception) -> str:
    return f"cannot write {place}: {_told(error)}; make the bucket or container first"
