"""Rows of JSON, one query per line, in the shape of QVHighlights.

    {"qid": 9769, "query": "…", "duration": 150, "vid": "…", "relevant_windows": [[72, 82]],
     "relevant_clip_ids": [36, 37], "saliency_scores": [[4, 3, 2], [4, 1, 3]], …}

Every dataset is kept in a store in this shape; other fields of a row go to `Annotation.extra`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data.annotations.types import Annotation
from data.errors import StoreError, UsageError
from data.foreign import LONGEST_LINE, brief, check_plain_file, json_object
from data.identity import canonical_json, check_id

if TYPE_CHECKING:  # the store keeps annotations, so it imports this module
    from data.store.place import Place

__all__ = ["Fields", "jsonl_bytes", "read_fields", "read_jsonl", "save_jsonl"]

_MAX_QUERY = 10_000
"""Characters; the longest of the public datasets has a few hundred."""

_MAX_DURATION_S = 1e7

Pairs = tuple[tuple[float, float], ...]

_KNOWN = {
    "qid",
    "query",
    "duration",
    "vid",
    "relevant_windows",
    "relevant_clip_ids",
    "saliency_scores",
    "clip_spans",
}


def read_jsonl(path: Place) -> list[Annotation]:
    """Rows in normal form; UsageError naming file and line for a wrong one."""
    rows = []
    first: dict[tuple[type, int | str], int] = {}
    for fields in read_fields(path):
        row = fields.annotation()
        before = first.setdefault((type(row.qid), row.qid), fields.line)
        if before != fields.line:
            fields.refuse(
                f"qid {row.qid!r} came before, in line {before}; every query needs its own"
            )
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


def read_fields(path: Place) -> Iterator[Fields]:
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
            f"cannot read the annotations {path}: No such file; name an existing JSONL file"
        ) from None
    except StoreError as error:
        raise UsageError(f"{error}; name an existing JSONL file") from None
    found = False
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = True
            yield Fields(path, number, line)
    if not found:
        raise UsageError(f"the annotations {path} hold no rows")


@dataclass(frozen=True)
class Fields:
    """One row of a file, from which fields are taken with their types checked.

    Args:
        path: the file.
        line: number of the line, from 1.
        text: the JSON object as bytes, parsed when the first field is asked for.
        required: fields without which a row is refused.
    """

    path: Place
    line: int
    text: bytes
    required: tuple[str, ...] = ("qid", "query", "vid")

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path}, line {self.line}"

    @cached_property
    def row(self) -> dict[str, Any]:
        """The JSON object; UsageError if the line is none."""
        if len(self.text) > LONGEST_LINE:
            raise UsageError(
                f"{self.where} has more than the {LONGEST_LINE:,} bytes that a row may have"
            )
        return json_object(self.text, self.where)

    def refuse(self, problem: str) -> NoReturn:
        """UsageError that names file and line."""
        raise UsageError(f"{self.where}: {problem}")

    def demand(self, names: Iterable[str]) -> None:
        """UsageError if a field is missing."""
        missing = [name for name in names if self.row.get(name) is None]
        if missing:
            self.refuse(f"lacks {', '.join(map(repr, missing))}; it has {sorted(self.row)}")

    def annotation(self) -> Annotation:
        """The row in normal form, all its fields checked."""
        self.demand(self.required)
        clip_ids, saliency = self._saliency()
        return Annotation(
            qid=self.qid(),
            query=self._query(),
            video_id=self._video_id(),
            duration_s=self._duration_s(),
            windows=self._windows(),
            clip_ids=clip_ids,
            saliency=saliency,
            clip_spans_s=self._clip_spans(clip_ids),
            extra={name: value for name, value in self.row.items() if name not in _KNOWN},
        )

    def qid(self) -> int | str:
        """The id of the query."""
        self.demand(["qid"])
        qid = self.row["qid"]
        if isinstance(qid, bool) or not isinstance(qid, int | str) or qid == "":
            self.refuse(f"'qid' must be a whole number or a string, got {brief(qid)}")
        return qid

    def _query(self) -> str:
        query = self.row["query"]
        if not isinstance(query, str) or not query.strip():
            self.refuse(f"'query' must be a sentence, got {brief(query)}")
        if len(query) > _MAX_QUERY:
            self.refuse(f"'query' has {len(query):,} characters, at most {_MAX_QUERY:,} are read")
        return query

    def _video_id(self) -> str:
        video_id = self.row["vid"]
        if not isinstance(video_id, str):
            self.refuse(f"'vid' must be a string, got {video_id!r}")
        try:
            return check_id(video_id)
        except UsageError as error:
            self.refuse(str(error))

    def _duration_s(self) -> float | None:
        value = self.row.get("duration")
        if value is None:
            return None
        duration_s = self._number(value, "duration")
        if not 0 < duration_s <= _MAX_DURATION_S:
            self.refuse(f"'duration' must be above 0 seconds and below 116 days, got {value}")
        return duration_s

    def _windows(self) -> Pairs | None:
        value = self.row.get("relevant_windows")
        return None if value is None else self._pairs(value, "relevant_windows")

    def _clip_spans(
        self, clip_ids: tuple[int, ...] | None
    ) -> tuple[tuple[float, float], ...] | None:
        value = self.row.get("clip_spans")
        if value is None:
            return None
        spans = self._pairs(value, "clip_spans")
        if clip_ids is None or len(spans) != len(clip_ids):
            self.refuse("'clip_spans' must hold one [start, end] for each of 'relevant_clip_ids'")
        return spans

    def _pairs(self, value: Any, name: str) -> Pairs:
        pairs = []
        for each in self._list(value, name):
            if not isinstance(each, list) or len(each) != 2:
                self.refuse(f"'{name}' holds {brief(each)}, not [start, end]")
            start, end = (self._number(edge, name) for edge in each)
            pairs.append((start, end))
        return tuple(pairs)

    def _saliency(
        self,
    ) -> tuple[tuple[int, ...] | None, tuple[tuple[float, ...], ...] | None]:
        ids, scores = self.row.get("relevant_clip_ids"), self.row.get("saliency_scores")
        if ids is None and scores is None:
            return None, None
        self.demand(["relevant_clip_ids", "saliency_scores"])
        ids = self._list(ids, "relevant_clip_ids")
        scores = self._list(scores, "saliency_scores")
        if not all(type(each) is int and each >= 0 for each in ids) or len(set(ids)) < len(ids):
            self.refuse("'relevant_clip_ids' must be different whole numbers from 0")
        rows = tuple(
            tuple(self._number(each, "saliency_scores") for each in self._list(row, "scores"))
            for row in scores
        )
        widths = sorted(set(map(len, rows)))
        if len(rows) != len(ids) or len(widths) > 1 or 0 in widths:
            self.refuse(
                f"'saliency_scores' must hold the same number of scores for each of the {len(ids)} "
                f"clips of 'relevant_clip_ids', got {len(rows)} rows of {widths}"
            )
        return tuple(ids), rows

    def _list(self, value: Any, name: str) -> list[Any]:
        if not isinstance(value, list):
            self.refuse(f"'{name}' must be a list, got {brief(value)}")
        return value

    def _number(self, value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"'{name}' must hold numbers, got {brief(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.refuse(f"'{name}' must hold finite numbers, got {brief(value)}")
        return number
