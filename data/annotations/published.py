"""What the datasets of the papers have in common: one clip length, and two kinds of files."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from data.annotations.formats import PostProcessing, Ratings, Sample
from data.annotations.jsonl import Line, read_lines
from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import check_plain_file

__all__ = ["Published", "Row", "first_bytes", "has_rows", "read_rows"]

_FIRST_VALUE = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*(\S)')
_NEXT_ROW = re.compile(rb'\n\{\s*"')

_NOT_TEXT = {
    b"\x1f\x8b": "packed by gzip; unpack them with gunzip",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "in UTF-16; save them as UTF-8",
    b"\xfe\xff": "in UTF-16; save them as UTF-8",
}
"""First bytes of files that are often at hand in place of the text itself."""

_BEGINNING = 1 << 20
"""Bytes by which the two forms of files are told apart; no row of a public dataset has as many."""


class Published:
    """A dataset with clips of one length, whose videos were not cut from others."""

    name: str
    clip_len_s: float | None
    post = PostProcessing()
    metrics: tuple[str, ...]
    ratings = Ratings()

    def clip_len_at(self, path: Path) -> float:
        """The clip length of the dataset, wherever the file lies."""
        del path
        assert self.clip_len_s is not None
        return self.clip_len_s

    def source_of(self, video_id: str) -> str:
        """The video itself."""
        return video_id

    def claims(self, sample: Sample) -> bool:
        """No file shows by itself that it is of this dataset."""
        del sample
        return False


@dataclass(frozen=True)
class Row(Line):
    """One line of a file of moments, as everybody's conversions have it."""

    required: ClassVar[tuple[str, ...]] = ("qid", "query", "duration", "vid", "relevant_windows")

    def annotation(self) -> Annotation:
        """See `Record.annotation`."""
        row = super().annotation()
        if row.windows == ():
            self.refuse("'relevant_windows' is empty; a query has at least one moment")
        return row


L = TypeVar("L", bound=Line)


def read_rows(path: Path, kind: type[L]) -> Iterator[L]:
    """The lines of a file.

    Args:
        path: the file.
        kind: how a line is read.

    Raises:
        UsageError: as `first_bytes`; no rows.
    """
    first_bytes(path)
    for line in read_lines(path):
        yield kind(line.path, line.line, line.text)


def has_rows(path: Path) -> bool:
    """Whether a file holds one query per line (JSONL); else it is taken for one object by video.

    In the latter all values are objects, which begin with a brace; the fields of rows rarely do,
    and where the first one does, another row follows.

    Raises:
        UsageError: as `first_bytes`.
    """
    start = first_bytes(path)
    found = _FIRST_VALUE.match(start)
    plain = found is not None and found[1] != b"{"
    return plain or _NEXT_ROW.search(start) is not None


def first_bytes(path: Path) -> bytes:
    """The beginning of a file without a byte order mark.

    Raises:
        UsageError: not a regular file, packed, or text in UTF-16.
    """
    check_plain_file(path, "the annotations")
    try:
        with path.open("rb") as file:
            start = file.read(_BEGINNING)
    except OSError as error:
        raise UsageError(f"cannot read the annotations '{path}': {error.strerror}") from None
    for mark, told in _NOT_TEXT.items():
        if start.startswith(mark):
            raise UsageError(f"the annotations {path} are {told}")
    return start.removeprefix(codecs.BOM_UTF8)
