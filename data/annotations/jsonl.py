"""Rows of JSON, one query per line, in the shape of QVHighlights.

    {"qid": 9769, "query": "…", "duration": 150, "vid": "…", "relevant_windows": [[72, 82]],
     "relevant_clip_ids": [36, 37], "saliency_scores": [[4, 3, 2], [4, 1, 3]], …}

Every dataset is kept in a store in this shape, with `clip_spans` (seconds of each of
`relevant_clip_ids`) where its clips are not a regular grid; other fields of a row go to
`Annotation.extra`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.annotations.fields import Fields
from data.annotations.types import Annotation
from data.errors import StoreError, UsageError
from data.foreign import LONGEST_LINE, check_plain_file, json_object
from data.identity import canonical_json

if TYPE_CHECKING:  # the store keeps annotations, so it imports this module
    from data.store.place import Place

__all__ = ["Line", "jsonl_bytes", "read_jsonl", "read_lines", "save_jsonl"]


def read_jsonl(path: Place) -> list[Annotation]:
    """Rows in normal form; UsageError naming file and line for a wrong one."""
    rows = []
    first: dict[tuple[type, int | str], int] = {}
    for line in read_lines(path):
        row = line.annotation()
        before = first.setdefault((type(row.qid), row.qid), line.line)
        if before != line.line:
            line.refuse(f"qid {row.qid!r} came before, in line {before}; every query needs its own")
        rows.append(row)
    return rows


def save_jsonl(rows: Iterable[Annotation], path: Place) -> None:
    """Write rows in normal form; the file is replaced at once."""
    from data.store.files import atomic_write

    atomic_write(path, jsonl_bytes(rows))


def jsonl_bytes(rows: Iterable[Annotation]) -> bytes:
    """Rows in normal form; `read_jsonl` gives equal rows back."""
    return b"".join(canonical_json(_to_json(row)).encode() + b"\n" for row in rows)


def _to_json(row: Annotation) -> dict[str, Any]:
    optional = {
        "duration": row.duration_s,
        "relevant_windows": row.windows,
        "relevant_clip_ids": row.clip_ids,
        "saliency_scores": row.saliency,
        "clip_spans": row.clip_spans_s,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    return row.extra | {"qid": row.qid, "query": row.query, "vid": row.video_id} | given


def read_lines(path: Place) -> Iterator[Line]:
    """The rows of a file, not looked at yet.

    Raises:
        UsageError: no such file, not a regular file, no rows.
    """
    from data.store.files import read_bytes

    if isinstance(path, Path) and path.exists():
        check_plain_file(path, "the annotations")  # reading a pipe never ends
    try:
        lines = read_bytes(path).split(b"\n")
    except FileNotFoundError:
        raise UsageError(
            f"cannot read the annotations {path}: No such file; name an existing file"
        ) from None
    except StoreError as error:
        raise UsageError(f"{error}; name an existing file") from None
    found = False
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = True
            yield Line(path, number, line)
    if not found:
        raise UsageError(f"the annotations {path} hold no rows")


@dataclass(frozen=True)
class Line(Fields):
    """One line of a file.

    Args:
        path: the file.
        line: its number, from 1.
        text: the JSON object as bytes, parsed when the first field is asked for.
    """

    path: Place
    line: int
    text: bytes

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path}, line {self.line}"

    @property
    def row(self) -> dict[str, Any]:
        """The fields as they stand in the line; see `Fields.row`."""
        return self.given

    @cached_property
    def given(self) -> dict[str, Any]:
        """The JSON object; UsageError if the line is none."""
        if len(self.text) > LONGEST_LINE:
            raise UsageError(
                f"{self.where} has more than the {LONGEST_LINE:,} bytes that a row may have"
            )
        return json_object(self.text, self.where)
