"""One query of an annotation file, its fields taken one by one with their types checked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NoReturn

from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import LARGEST_NUMBER, brief, key_names
from data.identity import check_id

__all__ = ["Fields"]

_MAX_QUERY = 10_000
"""Characters; the longest of the public datasets has a few hundred."""

_MAX_DURATION_S = 1e7

Pairs = tuple[tuple[float, float], ...]
Scores = tuple[tuple[float, ...], ...]

_KNOWN = frozenset(
    {
        "qid",
        "query",
        "duration",
        "vid",
        "relevant_windows",
        "relevant_clip_ids",
        "saliency_scores",
        "clip_spans",
    }
)
"""Fields of the normal form as JSON; all others go to `Annotation.extra`."""


class Fields(ABC):
    """A query as a JSON object in the shape of QVHighlights.

    Formats of another shape say in `row` what theirs means in this one, and in `called` how the
    fields are called in their files.

    Attributes:
        required: fields without which a query is refused.
        called: names of fields in the file where they differ, for messages.
    """

    required: ClassVar[tuple[str, ...]] = ("qid", "query", "vid")
    called: ClassVar[Mapping[str, str]] = {}

    @property
    @abstractmethod
    def where(self) -> str:
        """Its place for messages: "val.jsonl, line 3"."""

    @property
    @abstractmethod
    def row(self) -> dict[str, Any]:
        """The fields; UsageError if there is no such object."""

    def refuse(self, problem: str) -> NoReturn:
        """UsageError that names the place."""
        raise UsageError(f"{self.where}: {problem}")

    def demand(self, names: Iterable[str]) -> None:
        """UsageError if a field is missing."""
        missing = [name for name in names if self.row.get(name) is None]
        if missing:
            told = ", ".join(repr(self._name(name)) for name in missing)
            given = sorted(
                self._name(name) for name, value in self.row.items() if value is not None
            )
            self.refuse(f"lacks {told}; it has {key_names(given)}")

    def annotation(self) -> Annotation:
        """The query in normal form, all its fields checked."""
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
        query, name = self.row["query"], self._name("query")
        if not isinstance(query, str) or not query.strip():
            self.refuse(f"'{name}' must be a sentence, got {brief(query)}")
        if len(query) > _MAX_QUERY:
            self.refuse(f"'{name}' has {len(query):,} characters, at most {_MAX_QUERY:,} are read")
        return query

    def _video_id(self) -> str:
        video_id = self.row["vid"]
        if not isinstance(video_id, str):
            self.refuse(f"'{self._name('vid')}' must be a string, got {brief(video_id)}")
        try:
            return check_id(video_id)
        except UsageError as error:
            self.refuse(str(error))

    def _duration_s(self) -> float | None:
        value, name = self.row.get("duration"), self._name("duration")
        if value is None:
            return None
        duration_s = self.number(value, "duration")
        if not 0 < duration_s <= _MAX_DURATION_S:
            self.refuse(f"'{name}' must be above 0 seconds and below 116 days, got {brief(value)}")
        return duration_s

    def _windows(self) -> Pairs | None:
        value = self.row.get("relevant_windows")
        return None if value is None else self.pairs(value, "relevant_windows")

    def _clip_spans(self, clip_ids: tuple[int, ...] | None) -> Pairs | None:
        value = self.row.get("clip_spans")
        if value is None:
            return None
        spans = self.pairs(value, "clip_spans")
        if clip_ids is None or len(spans) != len(clip_ids):
            names = self._name("clip_spans"), self._name("relevant_clip_ids")
            self.refuse("'{}' must hold one [start, end] for each of '{}'".format(*names))
        return spans

    def _saliency(self) -> tuple[tuple[int, ...] | None, Scores | None]:
        ids, scores = self.row.get("relevant_clip_ids"), self.row.get("saliency_scores")
        if ids is None and scores is None:
            return None, None
        self.demand(["relevant_clip_ids", "saliency_scores"])
        ids = self.listed(ids, "relevant_clip_ids")
        if not all(type(each) is int and each >= 0 for each in ids) or len(set(ids)) < len(ids):
            name = self._name("relevant_clip_ids")
            self.refuse(f"'{name}' must be different whole numbers from 0")
        return tuple(ids), self._scores(scores, len(ids))

    def _scores(self, scores: Any, clips: int) -> Scores:
        rows = tuple(
            tuple(self.number(each, "saliency_scores") for each in self.listed(row, "scores"))
            for row in self.listed(scores, "saliency_scores")
        )
        widths = sorted(set(map(len, rows)))
        if len(rows) != clips or len(widths) > 1 or 0 in widths:
            self.refuse(
                f"'{self._name('saliency_scores')}' must hold the same number of scores for each "
                f"of the {clips} clips of '{self._name('relevant_clip_ids')}', "
                f"got {len(rows)} rows of {widths}"
            )
        return rows

    def pairs(self, value: Any, name: str) -> Pairs:
        """A list of `[start, end]`, finite numbers, in whatever order."""
        pairs = []
        for each in self.listed(value, name):
            if not isinstance(each, list) or len(each) != 2:
                self.refuse(f"'{self._name(name)}' holds {brief(each)}, not [start, end]")
            start, end = (self.number(edge, name) for edge in each)
            pairs.append((start, end))
        return tuple(pairs)

    def listed(self, value: Any, name: str) -> list[Any]:
        """`value` if it is a list."""
        if not isinstance(value, list):
            self.refuse(f"'{self._name(name)}' must be a list, got {brief(value)}")
        return value

    def number(self, value: Any, name: str) -> float:
        """A finite number below `LARGEST_NUMBER`."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"'{self._name(name)}' must hold numbers, got {brief(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) < LARGEST_NUMBER:  # NaN is not, either
            told = f"finite numbers below {LARGEST_NUMBER:g}, got {brief(value)}"
            self.refuse(f"'{self._name(name)}' must hold {told}")
        return number

    def _name(self, field: str) -> str:
        return self.called.get(field, field)
