"""What a check of annotations looks at (`Sheet`) and what comes of it (`Finding`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data.annotations.formats import Dataset
from data.annotations.types import Annotation
from data.registry import Registry

__all__ = ["KINDS", "Check", "Fault", "Finding", "Kind", "Level", "Sheet", "SheetRow", "Spot"]

Level = Literal["error", "warning"]
"""error: a score or a training on these rows is wrong. warning: it is not, but one should know."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Args:
        name: what it is called in tables and JSON.
        level: how bad it is.
        what: what each of its rows or windows is, for tables: "moments of length zero".
    """

    name: str
    level: Level
    what: str


KINDS: Registry[Kind] = Registry("kind of fault")
"""All kinds of faults by name."""


@dataclass(frozen=True)
class SheetRow:
    """A query and its place for messages: "val.jsonl, line 3"."""

    where: str
    annotation: Annotation


@dataclass(frozen=True)
class Spot:
    """One fault.

    Args:
        where: its place: "val.jsonl, line 3".
        detail: what is wrong there, with the values.
        qid, video_id: of the row; None where it could not be read.
    """

    where: str
    detail: str
    qid: int | str | None = None
    video_id: str | None = None

    @classmethod
    def at(cls, row: SheetRow, detail: str) -> Spot:
        """A fault of a row that could be read."""
        return cls(row.where, detail, row.annotation.qid, row.annotation.video_id)


@dataclass(frozen=True)
class Sheet:
    """The rows of one annotation file, or of one split of a store.

    Args:
        name: of the file or split.
        dataset: whose format and conventions it has.
        clip_len_s: clip length of the grid in seconds.
        rows: those whose form is right.
        wrong: the others.
        lengths_s: measured length in seconds of each video, where a store knows it.
    """

    name: str
    dataset: Dataset
    clip_len_s: float
    rows: Sequence[SheetRow]
    wrong: Sequence[Spot] = ()
    lengths_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What a check yields: a fault of the kind `kind` in `row`."""

    kind: Kind
    row: SheetRow
    detail: str


Check = Callable[[Sheet], Iterator[Fault]]
"""Looks for one kind of fault, or for a few that exclude each other."""


@dataclass(frozen=True)
class Finding:
    """All faults of one kind in one file.

    Args:
        kind: which.
        file: name of the sheet.
        spots: the faults, in file order, at least one.
        against: the other file, for rows that are shared between two.
    """

    kind: Kind
    file: str
    spots: tuple[Spot, ...]
    against: str | None = None

    @property
    def videos(self) -> int:
        """On how many videos."""
        return len({each.video_id for each in self.spots} - {None})

    @property
    def message(self) -> str:
        """One sentence without its full stop."""
        shared = f", shared with {self.against}" if self.against else ""
        videos = f", on {self.videos:,} video{'s' * (self.videos != 1)}" if self.videos else ""
        return f"{len(self.spots):,} × {self.kind.what}{shared}{videos}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with every spot."""
        return {
            "check": self.kind.name,
            "level": self.kind.level,
            "file": self.file,
            "against": self.against,
            "message": self.message,
            "count": len(self.spots),
            "videos": self.videos,
            "rows": [
                {"where": s.where, "qid": s.qid, "video_id": s.video_id, "detail": s.detail}
                for s in self.spots
            ],
        }
