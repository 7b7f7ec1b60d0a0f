"""Local scratch: whole copies of remote shards, for readers that read here and there.

The folder is `STORYLINE_SCRATCH`, else `storyline-<uid>` in the folder for temporary files. It may
be deleted at any time. A shard's name carries its sha256, so a copy is never stale and may serve
several stores; one whose bytes have another hash is never given to a reader.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upath import UPath

from data.errors import DamageError, StoreError, UsageError
from data.store import remote
from data.store.hdf5 import gone
from data.store.place import Place, text_of

__all__ = ["local_copy", "refreshed_copy", "scratch_file", "scratch_folder"]

_BLOCK_BYTES = 16 << 20
_AT_ONCE = 4
"""Ranges that are fetched together; one connection alone rarely fills the line."""
_STALE_S = 24 * 3600.0
"""Age at which a file that a killed download left behind is removed."""


def scratch_folder() -> Path:
    """The folder, made if it is not there; nobody else may read or write the default one.

    Raises:
        UsageError: it cannot be used.
    """
    given = os.environ.get("STORYLINE_SCRATCH")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"storyline-{os.getuid()}"
    advice = "name a folder of your own with STORYLINE_SCRATCH"
    try:
        folder.mkdir(mode=0o700, parents=bool(given), exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UsageError(
            f"local scratch {folder} cannot be used: {error.strerror}; {advice}"
        ) from None
    # Whoever made the folder in /tmp first could otherwise change what is read from it.
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not given and not (private and found.st_mode & 0o077 == 0):
        raise UsageError(
            f"local scratch {folder} belongs to someone else or is open to others; {advice}"
        )
    return folder


def scratch_file(place: Place, name: str) -> Path:
    """A file of this machine that belongs to a remote store, such as a cache."""
    store = hashlib.sha256(text_of(place).encode()).hexdigest()[:16]
    return scratch_folder() / "stores" / store / name


def local_copy(shard: UPath) -> Path:
    """A whole copy of a remote shard, fetched if it is not there yet.

    Processes that want the same one at the same time wait for the first. It may be removed at
    any time when others are fetched (`STORYLINE_SCRATCH_GB`, default: half of what is free):
    open it at once; an open file stays readable.

    Raises:
        DamageError: its bytes do not have the sha256 of its name.
        GoneError: there is no such shard.
        StoreError: it cannot be read, or scratch is full.
    """
    copy = scratch_folder() / "shards" / shard.name
    if not _touched(copy):
        with _filling(shard, copy):
            sha256 = None if _touched(copy) else _fetch(shard, copy)
        if sha256 is not None and not _is_named_after(shard, sha256):
            raise DamageError(str(shard), "has bytes whose sha256 is not that of its name")
    return copy


def refreshed_copy(shard: UPath) -> str:
    """sha256 (64 hex) of a remote shard as it is there now; a whole one is kept as the copy.

    Raises:
        GoneError: there is no such shard.
        StoreError: it cannot be read, or scratch is full.
    """
    copy = scratch_folder() / "shards" / shard.name
    with _filling(shard, copy):
        return _fetch(shard, copy)


def _is_named_after(shard: UPath, sha256: str) -> bool:
    return bool(shard.stem == f"shard-{sha256[:16]}")


@contextmanager
def _filling(shard: UPath, copy: Path) -> Iterator[None]:
    """While one copy is fetched: others wait for it, afterwards there is room for it."""
    try:
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        with _alone(copy.with_name(f".lock-{shard.stem}")):
            yield
            _evict(copy.parent, keep=copy)
    except FileNotFoundError:
        raise gone(str(shard)) from None
    except OSError as error:
        raise StoreError(
            f"cannot copy {shard} to local scratch {copy.parent}: {error.strerror or error}; free "
            "some space, or name another folder with STORYLINE_SCRATCH"
        ) from error


def _touched(copy: Path) -> bool:
    """Whether it is there; notes that it was used now."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetch(shard: UPath, copy: Path) -> str:
    """Fetch a shard and give its sha256; it is there afterwards only if that is its name."""
    size = remote.size_of(shard)
    if size is None:
        raise FileNotFoundError(str(shard))
    temporary = copy.with_name(f".tmp-{secrets.token_hex(8)}")
    sha256 = hashlib.sha256()
    try:
        with temporary.open("xb") as file:
            for start in range(0, size, _BLOCK_BYTES * _AT_ONCE):
                for block in _blocks(shard, start, min(start + _BLOCK_BYTES * _AT_ONCE, size)):
                    sha256.update(block)
                    file.write(block)
        if _is_named_after(shard, sha256.hexdigest()):
            temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)
    return sha256.hexdigest()


def _blocks(shard: UPath, start: int, stop: int) -> Iterator[bytes]:
    """Bytes `start:stop`, by several requests at the same time."""
    cuts = [(at, min(at + _BLOCK_BYTES, stop)) for at in range(start, stop, _BLOCK_BYTES)]
    for block in remote.fetch_many([shard] * len(cuts), cuts):
        if block is None:
            raise FileNotFoundError(str(shard))
        yield block


def _evict(folder: Path, keep: Path) -> None:
    """Remove the copies that were not used for longest, and what killed downloads left."""
    now = time.time()
    copies: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found = path.stat()
            if not path.name.startswith("."):
                copies.append((found.st_mtime, found.st_size, path))
            elif now - found.st_mtime > _STALE_S:
                path.unlink()
    used = sum(size for _, size, _ in copies)
    limit = _limit_bytes(folder, used)
    for _, size, path in sorted(copies):
        if used > limit and path != keep:
            path.unlink(missing_ok=True)
            used -= size


def _limit_bytes(folder: Path, used: int) -> float:
    given = os.environ.get("STORYLINE_SCRATCH_GB")
    if given is None:
        return (shutil.disk_usage(folder).free + used) / 2
    try:
        limit = float(given) * 1e9
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UsageError(f"STORYLINE_SCRATCH_GB must be a number of gigabytes, got {given!r}")
    return limit
