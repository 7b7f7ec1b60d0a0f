"""Where imported arrays come from: a folder with one file per video, or one HDF5 file of all.

A format is a class in `FORMATS`: does it claim a path, and which arrays are there? `auto` asks all
of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError, UsageError, some
from data.foreign import brief
from data.identity import check_id
from data.interop.arrays import Header, NpyPart, NpzPart, as_rows
from data.registry import Registry

__all__ = [
    "AUTO",
    "FORMATS",
    "Entry",
    "Format",
    "Part",
    "Source",
    "SourceOptions",
    "TextEntry",
    "open_source",
]

AUTO = "auto"

TOKENS = ("last_hidden_state", "token")
"""Names of token states in npz files of texts; TVSum's are called `token`."""

POOLED = "pooler_output"


class Part(Protocol):
    """One array in a file, not read yet."""

    @property
    def file(self) -> Path:
        """The file."""
        ...

    @property
    def name(self) -> str:
        """File, and place in it, without the folder."""
        ...

    def look(self) -> Header:
        """What it claims to be; InputError."""
        ...

    def read(self) -> NDArray[Any]:
        """Its numbers; InputError."""
        ...


@dataclass(frozen=True)
class Entry:
    """The arrays of one video; several stand side by side.

    Args:
        id: the video.
        parts: the arrays, in the order of their columns.
    """

    id: str
    parts: tuple[Part, ...]

    @property
    def names(self) -> list[str]:
        """Files, and places in them."""
        return [part.name for part in self.parts]

    def look(self) -> Header:
        """(rows, columns) and type of `read`; InputError."""
        tables = [self._table(part) for part in self.parts]
        headers = [part.look() for part in self.parts]
        rows = {table[0] for table in tables}
        if len(rows) > 1:
            raise InputError("shape", f"{some(self.names)} have {some(_words(rows))} rows")
        dtype = np.result_type(*(header.dtype.newbyteorder("=") for header in headers))
        return Header((rows.pop(), sum(table[1] for table in tables)), dtype)

    def read(self) -> NDArray[Any]:
        """(rows, columns) in the byte order of this machine; InputError."""
        dtype = self.look().dtype
        tables = [as_rows(part.read()) for part in self.parts]
        joined = tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)
        return joined.astype(dtype, copy=False)

    def _table(self, part: Part) -> tuple[int, int]:
        try:
            return part.look().rows
        except InputError as error:
            if error.reason != "shape":
                raise
            raise InputError("shape", f"{part.name} {error}") from None


@dataclass(frozen=True)
class TextEntry:
    """The token states and the pooled vector of one query.

    Args:
        qid: what the file is called; "7" for `qid7.npz` and `7.npz`.
        tokens: (T, D).
        pooled: (P,); None where the file has none.
    """

    qid: str
    tokens: NpzPart
    pooled: NpzPart | None

    @property
    def file(self) -> Path:
        """The file."""
        return self.tokens.file


@dataclass(frozen=True)
class Source:
    """Everything that a path holds.

    Args:
        format: name of its format.
        told: what it is, for a person.
        entries: the arrays of each video, in id order; () for texts.
        texts: those of each query; () for features of videos.
        left_out: names that are no ids, or that other files stand for, with the reason.
    """

    format: str
    told: str
    entries: tuple[Entry, ...] = ()
    texts: tuple[TextEntry, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceOptions:
    """How names in the source are read.

    Args:
        key: name of the array in an npz file or in the group of a video; None: the usual one.
        strip_prefix: taken off ids that begin with it.
        suffixes: ends of the names that stand side by side (`_rgb`, `_opt`); () for none.
    """

    key: str | None = None
    strip_prefix: str = ""
    suffixes: tuple[str, ...] = ()


class Format(Protocol):
    """A kind of files."""

    name: str

    def claims(self, path: Path) -> bool:
        """Whether a path looks like one of this kind."""
        ...

    def open(self, path: Path, options: SourceOptions) -> Source:
        """What is there; UsageError if nothing of this kind is."""
        ...


FORMATS: Registry[Format] = Registry("format of features")
"""All formats by name."""


def open_source(path: Path, format: str = AUTO, options: SourceOptions | None = None) -> Source:
    """What a folder or file holds.

    Args:
        path: the folder or file.
        format: a name of `FORMATS`, or `auto`.
        options: how names are read.

    Raises:
        UsageError: no such path; nothing of this format is there, or of several.
    """
    if not path.exists():
        raise UsageError(f"there is nothing at {path}; name a folder of features or an HDF5 file")
    chosen = _claimant(path) if format == AUTO else FORMATS.get(format)
    return chosen.open(path, options or SourceOptions())


def _claimant(path: Path) -> Format:
    found = [FORMATS.get(name) for name in FORMATS if FORMATS.get(name).claims(path)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(FORMATS)
    if found:
        several = " and ".join(each.name for each in found)
        raise UsageError(f"{path} holds files of the formats {several}; say which with --format")
    raise UsageError(f"{path} holds {_content(path)}; known are: {names}{_deeper(path)}")


def _content(path: Path) -> str:
    if path.is_file():
        return f"no features: a file '{path.suffix or path.name}'"
    kinds = Counter(each.suffix or "without suffix" for each in path.iterdir() if each.is_file())
    told = some([f"{count} files {kind}" for kind, count in sorted(kinds.items())])
    return told or "no files"


def _deeper(path: Path) -> str:
    folders = sorted(each.name for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
    return f"; name one of its folders: {some(folders)}" if folders else ""


def ids_of(
    named: Mapping[str, Part], options: SourceOptions
) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """Parts by their names in the source, put together by video; and what was left out, and why.

    Raises:
        UsageError: two names mean the same video.
    """
    left_out: dict[str, str] = {}
    parts: dict[str, dict[str, tuple[str, Part]]] = {}
    for name, part in named.items():
        suffix = next((each for each in options.suffixes if name.endswith(each)), "")
        if options.suffixes and not suffix:
            left_out[name] = f"ends with none of {some(options.suffixes)}"
            continue
        id_ = name.removesuffix(suffix).removeprefix(options.strip_prefix)
        try:
            check_id(id_)
        except UsageError as error:
            left_out[name] = str(error)
            continue
        before = parts.setdefault(id_, {}).setdefault(suffix, (name, part))
        if before[0] != name:
            raise UsageError(f"{brief(before[0])} and {brief(name)} are both video '{id_}'")
    entries = []
    for id_, found in sorted(parts.items()):
        lacking = [suffix for suffix in options.suffixes if suffix not in found]
        if lacking:
            left_out[id_] = f"has no file {some([id_ + each for each in lacking])}"
            continue
        order = options.suffixes or ("",)
        entries.append(Entry(id_, tuple(found[suffix][1] for suffix in order)))
    return tuple(entries), left_out


def _words(numbers: set[int]) -> Sequence[str]:
    return [f"{number:,}" for number in sorted(numbers)]


def _files(path: Path, suffix: str) -> Iterator[Path]:
    """The visible files of a folder with a suffix, in name order."""
    if path.is_dir():
        for each in sorted(path.iterdir()):
            if each.suffix == suffix and not each.name.startswith(".") and not each.is_dir():
                yield each


class _Folder(ABC):
    """One file per video."""

    name: str
    suffix: str

    def claims(self, path: Path) -> bool:
        """Whether there is such a file."""
        return next(_files(path, self.suffix), None) is not None

    @abstractmethod
    def part(self, file: Path, options: SourceOptions) -> Part:
        """The array of a file."""

    @abstractmethod
    def told(self, count: int, options: SourceOptions) -> str:
        """What was recognised."""

    def open(self, path: Path, options: SourceOptions) -> Source:
        """See `Format`."""
        named = {file.stem: self.part(file, options) for file in _files(path, self.suffix)}
        if not named:
            raise UsageError(f"{path} holds {_content(path)}; expected *{self.suffix} files")
        entries, left_out = ids_of(named, options)
        return Source(self.name, self.told(len(named), options), entries, left_out=left_out)


class NpyFolder(_Folder):
    """`{vid}.npy`: VSLNet, UMT, PANNs, I3D of TVSum (`--suffix _rgb --suffix _opt`)."""

    name, suffix = "npy", ".npy"

    def part(self, file: Path, options: SourceOptions) -> Part:
        """The file is one array."""
        del options
        return NpyPart(file)

    def told(self, count: int, options: SourceOptions) -> str:
        """What was recognised."""
        beside = f", {' and '.join(options.suffixes)} side by side" if options.suffixes else ""
        return f"a folder of {count:,} npy files{beside} (VSLNet, UMT, PANNs)"


class NpzFolder(_Folder):
    """`{vid}.npz` with `features`: Moment-DETR, QD-DETR, CG-DETR, UniVTG, Lighthouse."""

    name, suffix, key = "npz", ".npz", "features"

    def claims(self, path: Path) -> bool:
        """Whether there is such a file that holds no text."""
        return super().claims(path) and not _holds_texts(path)

    def part(self, file: Path, options: SourceOptions) -> Part:
        """The array `features`."""
        return NpzPart(file, options.key or self.key)

    def told(self, count: int, options: SourceOptions) -> str:
        """What was recognised."""
        key = options.key or self.key
        return f"a folder of {count:,} npz files with '{key}' (Moment-DETR, QD-DETR, Lighthouse)"


class TextFolder:
    """`qid{qid}.npz` or `{qid}.npz` with token states: the text features of Moment-DETR's kin."""

    name = "text"

    def claims(self, path: Path) -> bool:
        """Whether the first npz file holds token states."""
        return _holds_texts(path)

    def open(self, path: Path, options: SourceOptions) -> Source:
        """See `Format`."""
        files = list(_files(path, ".npz"))
        if not files:
            raise UsageError(f"{path} holds {_content(path)}; expected qid*.npz files")
        keys = _keys_of(files[0])
        tokens = options.key or next((key for key in TOKENS if key in keys), TOKENS[0])
        pooled = POOLED if POOLED in keys else None
        texts = tuple(
            TextEntry(
                file.stem.removeprefix("qid"),
                NpzPart(file, tokens),
                NpzPart(file, pooled) if pooled else None,
            )
            for file in files
        )
        beside = f" and '{pooled}'" if pooled else ""
        told = f"a folder of {len(files):,} npz files of queries with '{tokens}'{beside}"
        return Source(self.name, told, texts=texts)


def _holds_texts(path: Path) -> bool:
    first = next(_files(path, ".npz"), None)
    return first is not None and any(key in TOKENS for key in _keys_of(first))


def _keys_of(file: Path) -> list[str]:
    """Names of the arrays of a file; none of one that is torn, for others may be whole."""
    try:
        return NpzPart(file, None).keys()
    except InputError:
        return []


for _format in (NpyFolder(), NpzFolder(), TextFolder()):
    FORMATS.register(_format.name)(_format)
