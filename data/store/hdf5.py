"""Reads the layout of an HDF5 file that may come from a stranger, without reading its data.

libhdf5 is asked only for names, types, shapes and places. Data is then read from those places
with `pread`, or by ranges of an object (`data.store.remote_shard`), so no filter plugin, external
file, soft or virtual link is ever followed, and a declared size that the file does not have is
refused (specs/pipeline_and_shards.md §5.4).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.errors import DamageError, GoneError, StoreError

__all__ = ["DTYPES", "Extent", "Layout", "OpenFile", "gone", "layout_of", "read_layout"]

DTYPES = {
    np.dtype(name).newbyteorder("<").str
    for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "uint32")
}
"""Everything that a shard may hold; `newbyteorder` spells uint8 as `|u1`."""

_MAX_DEPTH = 3
_MAX_MEMBERS = 256
_MAX_ATTRIBUTE_BYTES = 1024


@dataclass(frozen=True)
class Extent:
    """Where one contiguous array lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Attributes of the root and all arrays by path, e.g. `items/crc32`."""

    attributes: Mapping[str, Any]
    extents: Mapping[str, Extent]


class OpenFile:
    """A file that is read at given places; forked processes may share it (no file position)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise gone(str(path)) from None
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror}") from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def layout(self) -> Layout:
        """What is in the file (`read_layout`)."""
        return read_layout(self.path)

    def tables(self, extents: Mapping[str, Extent]) -> dict[str, NDArray[Any]]:
        """Small arrays, whole."""
        return {name: self.read(extent) for name, extent in extents.items()}

    def read(self, extent: Extent, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start:stop` of an array.

        Raises:
            DamageError: the file ends before these rows do.
            StoreError: it cannot be read.
        """
        stop = extent.shape[0] if stop is None else stop
        out = np.empty((stop - start, *extent.shape[1:]), extent.dtype)
        if out.nbytes:
            self._fill(out.data.cast("B"), extent.offset + start * extent.row_bytes)
        return out

    def _fill(self, target: memoryview, offset: int) -> None:
        try:
            while target:
                count = os.preadv(self._descriptor, [target], offset)
                if count == 0:
                    raise DamageError(str(self.path), "ends too early: it was cut")
                target, offset = target[count:], offset + count
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}") from error


def read_layout(path: Path) -> Layout:
    """The layout of a file that holds nothing but plain contiguous arrays in groups.

    Raises:
        DamageError: not HDF5, cut short, or anything in it that is not plain.
        GoneError: there is no such file.
    """
    try:
        return layout_of(path, str(path), path.stat().st_size)
    except FileNotFoundError:
        raise gone(str(path)) from None
    except DamageError:
        # One that is taken away while libhdf5 opens it is no damage, though libhdf5 says so.
        if not path.exists():
            raise gone(str(path)) from None
        raise
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from error


def layout_of(source: Path | io.RawIOBase, name: str, size: int) -> Layout:
    """As `read_layout`, from a path or from anything that can seek and read.

    Args:
        source: the file.
        name: its place, for messages.
        size: its bytes.
    """
    try:
        with h5py.File(source, "r", locking=False) as file:
            return Layout(dict(_attributes(file)), dict(_walk(file.id, "", size, set())))
    except FileNotFoundError:
        raise
    except _UnplainError as error:
        raise DamageError(name, f"is no plain file of arrays: {error}") from None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DamageError(
            name, f"is not a readable HDF5 file (torn, damaged or foreign): {_short(error)}"
        ) from error


def gone(name: str) -> GoneError:
    """The error for a shard that is not there any more."""
    return GoneError(
        f"{name} is not there any more; if `pipeline compact`, `gc` or `repair` ran meanwhile, "
        "start again"
    )


class _UnplainError(Exception):
    """Something that a shard never holds."""


def _attributes(file: h5py.File) -> Iterator[tuple[str, Any]]:
    if len(file.attrs) > _MAX_MEMBERS:
        raise _UnplainError(f"has {len(file.attrs)} attributes, at most {_MAX_MEMBERS} are read")
    for name in file.attrs:
        attribute = file.attrs.get_id(name)
        kind, shape = attribute.dtype, attribute.shape
        if shape != () or kind.kind not in "iufS" or kind.itemsize > _MAX_ATTRIBUTE_BYTES:
            raise _UnplainError(f"attribute '{name}' is not a plain number or short string")
        value = file.attrs[name]
        yield name, value.decode() if isinstance(value, bytes) else value.item()


def _walk(group: Any, prefix: str, file_size: int, seen: set[int]) -> Iterator[tuple[str, Extent]]:
    if prefix.count("/") >= _MAX_DEPTH or group.get_num_objs() > _MAX_MEMBERS:
        raise _UnplainError(f"group '/{prefix}' is too deep or has too many members")
    for raw_name in group:
        path = prefix + raw_name.decode()
        if group.links.get_info(raw_name).type != h5py.h5l.TYPE_HARD:
            raise _UnplainError(f"'{path}' is a soft or external link; only plain arrays are read")
        member = h5py.h5o.open(group, raw_name)
        address = h5py.h5o.get_info(member).addr
        if address in seen:
            raise _UnplainError(f"'{path}' is a second link to something else in the file")
        seen.add(address)
        if isinstance(member, h5py.h5g.GroupID):
            yield from _walk(member, path + "/", file_size, seen)
        elif isinstance(member, h5py.h5d.DatasetID):
            yield path, _extent(member, path, file_size)
        else:
            raise _UnplainError(f"'{path}' is neither a group nor an array")


def _extent(dataset: Any, path: str, file_size: int) -> Extent:
    creation = dataset.get_create_plist()
    plain = (
        creation.get_layout() == h5py.h5d.CONTIGUOUS
        and creation.get_external_count() == 0
        and creation.get_nfilters() == 0
    )
    if not plain:
        raise _UnplainError(
            f"'{path}' is chunked, filtered, virtual or kept in another file; "
            "only contiguous arrays are read"
        )
    dtype = dataset.dtype
    if dtype.str not in DTYPES or dataset.shape is None or dataset.shape == ():
        raise _UnplainError(f"'{path}' has type {dtype}, which a store does not hold")
    extent = Extent(dataset.get_offset() or 0, tuple(map(int, dataset.shape)), np.dtype(dtype.str))
    if extent.size_bytes and (not extent.offset or extent.offset + extent.size_bytes > file_size):
        raise _UnplainError(
            f"'{path}' claims {extent.size_bytes} bytes that the file of {file_size} bytes lacks"
        )
    return extent


def _short(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= 200 else text[:200] + "…"
