"""Rows that two files share: whoever trained on one of them knows the other.

A row is told under the strongest of four kinds: the very row; its video and words with other
moments; its video; a video cut from the same recording. Words are compared without case and
punctuation, because Charades-CD writes the sentences of Charades-STA without theirs.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.annotations.findings import KINDS, Finding, Kind, Sheet, Spot
from data.annotations.types import Annotation

__all__ = ["LEAKS", "Seen", "leaks"]

LEAKS = tuple(
    KINDS.register(kind.name)(kind)
    for kind in (
        Kind("leak-row", "error", "rows of the same video, words and moments"),
        Kind("leak-query", "error", "rows of the same video and words, with other moments or none"),
        Kind("leak-video", "error", "rows of the same video, with other words"),
        Kind("leak-source", "error", "rows of another cut of the same recording"),
    )
)
"""The kinds of leaks, strongest first."""

_NAMES = ("rows", "queries", "videos", "sources")
"""Fields of `Seen`, one for each of `LEAKS`."""

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Seen:
    """What is known to whoever has seen some rows.

    Rows and queries are kept as the first 16 hex of a sha256, so that a run can remember them
    without their sentences. Each maps to the first place where it was seen.

    Args:
        rows: of video, words and moments.
        queries: of video and words.
        videos: ids.
        sources: names of the recordings that the videos were cut from.
    """

    rows: Mapping[str, str] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    videos: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[tuple[str, Annotation]], source_of: Callable[[str], str]) -> Seen:
        """What one knows after some rows, each with its place.

        Args:
            rows: places and rows.
            source_of: the recording of a video, as `Dataset.source_of`.
        """
        seen: tuple[dict[str, str], ...] = tuple({} for _ in LEAKS)
        for where, row in rows:
            for known, key in zip(seen, _keys(row, source_of), strict=True):
                known.setdefault(key, where)
        return cls(*seen)

    def leak(self, row: Annotation, source_of: Callable[[str], str]) -> tuple[Kind, str] | None:
        """The strongest leak of a row and where it was seen; None if nothing of it was."""
        known = (getattr(self, name) for name in _NAMES)
        for kind, places, key in zip(LEAKS, known, _keys(row, source_of), strict=True):
            if key in places:
                return kind, places[key]
        return None

    def to_json(self) -> dict[str, Any]:
        """Sorted lists without places."""
        return {name: sorted(getattr(self, name)) for name in _NAMES}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> Seen:
        """What `to_json` gave; everything was seen at `where`. KeyError or TypeError for others."""
        return cls(*(dict.fromkeys(map(_text, content[name]), where) for name in _NAMES))


def leaks(sheet: Sheet, seen: Seen, against: str) -> list[Finding]:
    """The rows of a sheet that are shared with another file, strongest kind first.

    Args:
        sheet: whose rows are counted, each once.
        seen: the other file.
        against: its name.
    """
    spots: dict[str, list[Spot]] = defaultdict(list)
    for row in sheet.rows:
        found = seen.leak(row.annotation, sheet.dataset.source_of)
        if found:
            kind, where = found
            spots[kind.name].append(Spot.at(row, f"seen in {where}"))
    return [
        Finding(kind, sheet.name, tuple(spots[kind.name]), against)
        for kind in LEAKS
        if spots[kind.name]
    ]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a list of strings, found a {type(value).__name__}")
    return value


def _keys(row: Annotation, source_of: Callable[[str], str]) -> tuple[str, str, str, str]:
    words = " ".join(_words(row.query)) or row.query.strip()
    # To a hundredth of a second: files of the same rows differ in how they write numbers.
    windows = ((float(start), float(end)) for start, end in row.windows or ())
    moments = sorted(f"{start:.2f} {end:.2f}" for start, end in windows)
    query = f"{row.video_id}\n{words}"
    return (
        _short(f"{query}\n{moments}"),
        _short(query),
        row.video_id,
        source_of(row.video_id),
    )


def _words(query: str) -> list[str]:
    """Without case, punctuation, and how letters with accents are written (one sign or two)."""
    text = query.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        # signs that belong to the letter before them are no word characters to `re`
        text = "".join(each if unicodedata.category(each)[0] in "LMN" else " " for each in text)
        return text.split()
    return _WORD.findall(text)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
