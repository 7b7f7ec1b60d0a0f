"""HDF5 files with the features of all videos, as 2D-TAN, LGI and the ActivityNet challenge have.

`/{vid}` is an array (2D-TAN: TACoS C3D, Charades VGG; gzip), or a group that holds one:
`/{vid}/c3d_features` (`sub_activitynet_v1-3.c3d.hdf5`). Soft, external and virtual links, data
kept in other files and filters that need a plug-in are refused, not followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.errors import InputError, UsageError
from data.foreign import brief, check_plain_file, key_names
from data.interop.arrays import Header
from data.interop.sources import FORMATS, Part, Source, SourceOptions, ids_of

__all__ = ["H5File", "H5Part"]

_SUFFIXES = (".h5", ".hdf5", ".hdf")
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""Filters that h5py itself brings; a plug-in is code."""
_MOST_ENTRIES = 1_000_000
_BOMB_BYTES, _BOMB_RATIO = 16 << 20, 100


class H5File:
    """One open file; its parts share it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def root(self) -> Any:
        """The root group; UsageError if it is no HDF5 file."""
        check_plain_file(self.path, "the features")
        try:
            return h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise UsageError(f"{self.path} is no HDF5 file: {brief(str(error))}") from None

    def names(self) -> list[str]:
        """Names in the root that are no links to elsewhere."""
        group = self.root.id
        if group.get_num_objs() > _MOST_ENTRIES:
            raise UsageError(f"{self.path} has more than {_MOST_ENTRIES:,} entries")
        return sorted(name.decode(errors="backslashreplace") for name in group)

    def dataset(self, name: str, key: str | None) -> Any:
        """The low-level dataset of a video; InputError."""
        where = f"{self.path.name}:/{name}"
        member = self._member(self.root.id, name, where)
        if isinstance(member, h5py.h5g.GroupID):
            keys = [each.decode(errors="backslashreplace") for each in member]
            inner = keys[0] if key is None and len(keys) == 1 else key
            if inner is None or inner not in keys:
                raise InputError(
                    "no-array",
                    f"{where} holds {key_names(keys)}; say with --key which of them",
                )
            member = self._member(member, inner, f"{where}/{inner}")
        if not isinstance(member, h5py.h5d.DatasetID):
            raise InputError("no-array", f"{where} is no array")
        return _plain(member, where)

    def _member(self, group: Any, name: str, where: str) -> Any:
        raw = name.encode()
        try:
            if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                raise InputError("no-array", f"{where} is a link to elsewhere; not followed")
            return h5py.h5o.open(group, raw)
        except (KeyError, RuntimeError, OSError, ValueError) as error:
            raise InputError("unreadable", f"{where}: {brief(str(error))}") from None


@dataclass(frozen=True)
class H5Part:
    """The array of one video; see `Part`."""

    source: H5File
    member: str
    key: str | None

    @property
    def file(self) -> Path:
        """The HDF5 file."""
        return self.source.path

    @property
    def name(self) -> str:
        """File and place in it."""
        beside = f"/{self.key}" if self.key else ""
        return f"{self.file.name}:/{self.member}{beside}"

    def look(self) -> Header:
        """What it claims to be; InputError."""
        return _header(self.source.dataset(self.member, self.key), self.name)

    def read(self) -> NDArray[Any]:
        """Its numbers; InputError."""
        dataset = self.source.dataset(self.member, self.key)
        _header(dataset, self.name)
        try:
            return np.asarray(h5py.Dataset(dataset)[()])
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError("unreadable", f"{self.name}: {brief(str(error))}") from None


def _plain(dataset: Any, where: str) -> Any:
    creation = dataset.get_create_plist()
    filters = {creation.get_filter(index)[0] for index in range(creation.get_nfilters())}
    if creation.get_external_count() or creation.get_layout() == h5py.h5d.VIRTUAL:
        raise InputError("no-array", f"{where} keeps its numbers in another file; not followed")
    if filters - _FILTERS.keys():
        allowed = ", ".join(_FILTERS.values())
        raise InputError("unreadable", f"{where} is compressed by a plug-in; allowed: {allowed}")
    return dataset


def _header(dataset: Any, name: str) -> Header:
    if dataset.shape is None or not isinstance(dataset.dtype, np.dtype):
        raise InputError("shape", f"{name} holds no array of numbers")
    header = Header(tuple(map(int, dataset.shape)), dataset.dtype).checked(name)
    claimed = int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
    stored = dataset.get_storage_size()
    if claimed > max(_BOMB_BYTES, _BOMB_RATIO * stored):
        raise InputError("bomb", f"{name} claims {claimed:,} bytes in {stored:,}")
    return header


class H5Format:
    """One file of all videos."""

    name = "h5"

    def claims(self, path: Path) -> bool:
        """Whether it is such a file, or a folder with exactly one."""
        return _file_of(path) is not None

    def open(self, path: Path, options: SourceOptions) -> Source:
        """See `Format`."""
        found = _file_of(path) or path
        file = H5File(found)
        named: dict[str, Part] = {name: H5Part(file, name, options.key) for name in file.names()}
        if not named:
            raise UsageError(f"{found} holds no arrays")
        entries, left_out = ids_of(named, options)
        told = f"an HDF5 file of {len(named):,} videos (2D-TAN, LGI)"
        return Source(self.name, told, entries, left_out=left_out)


def _file_of(path: Path) -> Path | None:
    if path.is_dir():
        files = [each for each in path.iterdir() if each.suffix in _SUFFIXES and each.is_file()]
        return files[0] if len(files) == 1 else None
    return path if path.suffix in _SUFFIXES else None


FORMATS.register(H5Format.name)(H5Format())
