"""Arrays of strangers' files: looked at before they are read, never unpickled, with limits.

Every fault is an `InputError` whose reason is one of `REASONS`.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.foreign import brief, key_names, kind_of_file

__all__ = ["FLOATS", "MOST_BYTES", "REASONS", "Header", "NpyPart", "NpzPart", "as_rows", "rows_of"]

MOST_BYTES = 1 << 30
"""Of one array; ten hours of video in clips of 1 s with 4096 columns of float32 have 0.6 GB."""

REASONS = {
    "unreadable": "the file is torn, of another format, or cannot be opened",
    "no-array": "the file holds no array of the wanted name",
    "pickled": "the array holds Python objects, which are never unpickled",
    "type": "the numbers are not floating point",
    "shape": "the array is no table of rows of features",
    "width": "rows are wider or narrower than those of most files",
    "too-large": "the array claims more than is read",
    "bomb": "the file is small and claims to hold very much",
    "not-finite": "the array holds NaN or infinite values",
    "length": "there are too many or too few rows for the length of the video",
    "no-annotation": "no annotation says which sentence the file belongs to",
}
"""Why a file is not imported."""

FLOATS = ("float16", "float32", "float64")

_BOMB_BYTES, _BOMB_RATIO = 16 << 20, 100
"""Features of float32 are compressed to no less than a fifth; zeros to a thousandth."""


@dataclass(frozen=True)
class Header:
    """What an array claims to be.

    Args:
        shape: as in the file.
        dtype: as in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def rows(self) -> tuple[int, int]:
        """(rows, columns) of the table that `as_rows` makes of it; InputError if it is none."""
        return rows_of(self.shape)

    def checked(self, where: str) -> Header:
        """Itself, or InputError: not floats, or more than is read."""
        if self.dtype.hasobject:
            raise InputError("pickled", f"{where} holds Python objects; save it as float32")
        if self.dtype.newbyteorder("=").name not in FLOATS:
            raise InputError(
                "type", f"{where} has type {self.dtype}; features are {', '.join(FLOATS)}"
            )
        size = prod(self.shape) * self.dtype.itemsize
        if size > MOST_BYTES:
            raise InputError(
                "too-large", f"{where} claims {size:,} bytes; at most {MOST_BYTES:,} are read"
            )
        return self


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of an array of this shape, as `as_rows` makes them.

    Raises:
        InputError: `shape`: it is no table of rows.
    """
    table = _table_shape(shape)
    if table is None or table[0] < 1 or table[1] < 1:
        raise InputError(
            "shape",
            f"has shape {shape}; expected (rows, columns), (1, rows, columns), or "
            "(rows, columns, T, 1, 1) as I3D scripts save it, with at least one row",
        )
    return table


def as_rows(array: NDArray[Any]) -> NDArray[Any]:
    """(N, D) of the same type.

    Taken are (N, D); (1, N, D); (N, D, 1, ...); and (N, D, T, 1, 1), the map before the mean over
    time that VSLNet's I3D script saves (`prepare/extract_charades.py`): its mean over T.

    Raises:
        InputError: `shape`.
    """
    rows, columns = rows_of(array.shape)
    if array.ndim == 5 and array.shape[2] > 1:
        mean: NDArray[Any] = array.mean(axis=(2, 3, 4), dtype=np.float32).astype(array.dtype)
        return mean
    return array.reshape(rows, columns)


def _table_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    if len(shape) == 5 and shape[3:] == (1, 1):
        return shape[0], shape[1]
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return (shape[0], shape[1]) if len(shape) == 2 else None


@dataclass(frozen=True)
class NpyPart:
    """The array of a `.npy` file."""

    file: Path

    @property
    def name(self) -> str:
        """For messages and facts."""
        return self.file.name

    def look(self) -> Header:
        """Its header, without the numbers; InputError."""
        with _opened(self.file) as file:
            header, offset = _header(file, self.name)
            claimed = prod(header.shape) * header.dtype.itemsize
            there = self.file.stat().st_size - offset
            if claimed > there:
                raise InputError(
                    "unreadable", f"{self.name} claims {claimed:,} bytes and has {there:,}: cut"
                )
        return header

    def read(self) -> NDArray[Any]:
        """All numbers, as in the file; InputError."""
        self.look()
        with _opened(self.file) as file:
            return _array(file, self.name)


@dataclass(frozen=True)
class NpzPart:
    """One array of a `.npz` file.

    Args:
        file: the file.
        key: name of the array; None takes the only one.
    """

    file: Path
    key: str | None

    @property
    def name(self) -> str:
        """For messages and facts."""
        return self.file.name if self.key is None else f"{self.file.name}:{self.key}"

    def keys(self) -> list[str]:
        """Names of the arrays in the file; InputError."""
        with _opened(self.file) as file, _unzipped(file, self.file.name) as archive:
            return _keys(archive)

    def look(self) -> Header:
        """Its header, without the numbers; InputError."""
        with _opened(self.file) as file, _unzipped(file, self.name) as archive:
            return self._header(archive)

    def read(self) -> NDArray[Any]:
        """All numbers, as in the file; InputError."""
        with _opened(self.file) as file, _unzipped(file, self.name) as archive:
            self._header(archive)
            with archive.open(self._member(archive)) as member:
                return _array(member, self.name)

    def _member(self, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
        keys = _keys(archive)
        key = keys[0] if self.key is None and len(keys) == 1 else self.key
        if key not in keys:
            wanted = "several arrays, and no --key says which" if key is None else f"no '{key}'"
            raise InputError("no-array", f"{self.file.name} has {wanted}; in it: {key_names(keys)}")
        return archive.getinfo(f"{key}.npy")

    def _header(self, archive: zipfile.ZipFile) -> Header:
        info = self._member(archive)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or (
            info.flag_bits & 1
        ):
            raise InputError("unreadable", f"{self.name} is encrypted, or compressed as no npz is")
        if info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
            raise InputError(
                "bomb",
                f"{self.name} claims {info.file_size:,} bytes in {info.compress_size:,}; "
                "features are never compressed like this",
            )
        with archive.open(info) as member:
            header, offset = _header(member, self.name)
        claimed = prod(header.shape) * header.dtype.itemsize
        if claimed + offset != info.file_size:
            raise InputError(
                "unreadable",
                f"{self.name} claims {claimed:,} bytes and has {info.file_size - offset:,}",
            )
        return header


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    kind = kind_of_file(path)
    if kind != "file":
        raise InputError("unreadable", f"{path.name} {kind}")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError("unreadable", f"{path.name}: {error.strerror or error}") from error


@contextmanager
def _unzipped(file: IO[bytes], name: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            "unreadable", f"{name} is no whole npz file: {brief(str(error))}"
        ) from None


def _keys(archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    return sorted(name.removesuffix(".npy") for name in names if name.endswith(".npy"))


def _header(file: IO[bytes], name: str) -> tuple[Header, int]:
    """The header of a .npy stream, and how many bytes it has."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise InputError("unreadable", f"{name} is of version {version} of the npy format")
        with _python_2_headers():
            shape, _, dtype = readers[version](file)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError("unreadable", f"{name} is no npy array: {brief(str(error))}") from None
    if any(side < 0 for side in shape):
        raise InputError("shape", f"{name} claims the shape {brief(shape)}")
    return Header(tuple(map(int, shape)), dtype).checked(name), file.tell()


def _array(file: IO[bytes], name: str) -> NDArray[Any]:
    """The numbers of a .npy stream whose header was checked."""
    try:
        with _python_2_headers():
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError("unreadable", f"{name} is torn: {brief(str(error))}") from None
    return array


@contextmanager
def _python_2_headers() -> Iterator[None]:
    """Files that Python 2 wrote have shapes like (75L, 2304L), of which numpy warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
