"""Shards of object stores: opened by one or two ranges, read from a whole copy in local scratch.

Whoever plans or surveys wants the item tables of every shard and no row: the headers and tables
lie at the front of a shard, and ranges fetch them. Whoever trains reads rows here and there, tens
of thousands of requests: the first row fetches the whole shard (`data.store.scratch`).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from data.errors import DamageError, GoneError, StoreError
from data.store import remote
from data.store.hdf5 import Extent, Layout, OpenFile, gone, layout_of
from data.store.place import Place
from data.store.scratch import local_copy

__all__ = ["RemoteFile", "ShardFile", "open_ahead", "open_file"]

HEAD_BYTES = 256 << 10
"""Fetched first: headers (6 KB) and the tables of about a thousand items."""
_GAP_BYTES = 64 << 10
"""Ranges that are nearer to each other are fetched as one."""


class RemoteFile:
    """A shard of an object store, as `OpenFile` is one of this machine.

    Args:
        path: its place.
        size: its bytes; None asks for them.
        head: its first `HEAD_BYTES`; None fetches them when the layout is wanted.
    """

    def __init__(self, path: UPath, size: int | None = None, head: bytes | None = None) -> None:
        self.path = path
        self._size = size
        self._spans = _Spans(path, {0: head} if head is not None else {})
        self._copy: OpenFile | None = None
        self._lock = threading.Lock()

    def layout(self) -> Layout:
        """What is in the file; as `hdf5.read_layout`."""
        size = remote.size_of(self.path) if self._size is None else self._size
        if size is None:
            raise gone(str(self.path))
        window = _Window(self._spans, size)
        try:
            return layout_of(window, str(self.path), size)
        except DamageError:
            # libhdf5 says of a request that failed only that it could not read.
            if window.failure is not None:
                raise window.failure from None
            raise

    def tables(self, extents: Mapping[str, Extent]) -> dict[str, NDArray[Any]]:
        """Small arrays, whole: what the first range did not bring is fetched at once."""
        wanted = [(each.offset, each.offset + each.size_bytes) for each in extents.values()]
        try:
            self._spans.fetch(wanted)
            tables = {name: self._table(extent) for name, extent in extents.items()}
        except FileNotFoundError:
            raise gone(str(self.path)) from None
        self._spans = _Spans(self.path, {})
        return tables

    def read(self, extent: Extent, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start:stop` of an array, from the copy in local scratch."""
        with self._lock:
            self._copy = self._copy or _opened(self.path)
        return self._copy.read(extent, start, stop)

    def _table(self, extent: Extent) -> NDArray[Any]:
        blob = self._spans.get(extent.offset, extent.offset + extent.size_bytes)
        if len(blob) != extent.size_bytes:
            raise DamageError(str(self.path), "ends too early: it was cut")
        return np.frombuffer(blob, extent.dtype).reshape(extent.shape).copy()


ShardFile: TypeAlias = OpenFile | RemoteFile


def open_file(path: Place) -> ShardFile:
    """A shard, open for reading.

    Raises:
        GoneError: there is no such file.
        StoreError: it cannot be read.
    """
    return OpenFile(path) if isinstance(path, Path) else RemoteFile(path)


def open_ahead(shards: Mapping[Place, int]) -> dict[Place, ShardFile]:
    """Remote ones among some shards (place to size), their heads fetched at the same time."""
    away = {path: size for path, size in shards.items() if not isinstance(path, Path)}
    ranges = [(0, min(size, HEAD_BYTES)) for size in away.values()]
    heads = remote.fetch_many(list(away), ranges)
    return {
        path: RemoteFile(path, size, head)
        for (path, size), head in zip(away.items(), heads, strict=True)
        if head is not None
    }


def _opened(path: UPath) -> OpenFile:
    problem: GoneError | None = None
    for _ in range(3):
        copy = local_copy(path)
        try:
            return OpenFile(copy)
        except GoneError as error:
            problem = error  # another process needed the room between the two lines
    raise StoreError(
        f"local scratch is too small for {path}: others need the room at once ({problem}); raise "
        "STORYLINE_SCRATCH_GB"
    )


@dataclass
class _Spans:
    """Parts of a remote file that are in memory, by where they begin."""

    path: UPath
    parts: dict[int, bytes] = field(default_factory=dict)

    def get(self, start: int, stop: int, ahead: int = 0) -> bytes:
        """Bytes from memory, else fetched, up to `ahead` if that is further."""
        if start == stop:
            return b""
        held = self._held(start, stop)
        if held is None:
            self.fetch([(start, max(stop, ahead))])
            held = self._held(start, stop)
        return held or b""

    def fetch(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Bring what is missing; near ranges as one, all at the same time."""
        missing = [cut for cut in wanted if cut[0] < cut[1] and self._held(*cut) is None]
        ranges = _joined(missing)
        found = remote.fetch_many([self.path] * len(ranges), ranges)
        for (start, _), part in zip(ranges, found, strict=True):
            if part is None:
                raise FileNotFoundError(str(self.path))
            self.parts[start] = part

    def _held(self, start: int, stop: int) -> bytes | None:
        for begin, part in self.parts.items():
            if begin <= start and stop <= begin + len(part):
                return part[start - begin : stop - begin]
        return None


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] <= _GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


class _Window(io.RawIOBase):
    """The spans as a file that libhdf5 can seek and read in."""

    def __init__(self, spans: _Spans, size: int) -> None:
        self._spans = spans
        self._size = size
        self._position = 0
        self.failure: Exception | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        start = self._position
        stop = min(start + len(target), self._size)
        if start >= stop:
            return 0
        try:
            part = self._spans.get(start, stop, ahead=min(start + HEAD_BYTES, self._size))
        except FileNotFoundError:
            self.failure = gone(str(self._spans.path))
            raise
        except Exception as error:
            self.failure = error
            raise
        target[: len(part)] = part
        self._position = start + len(part)
        return len(part)
