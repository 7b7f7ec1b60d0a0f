"""The QVHighlights submission format: one JSON object per line and query.

    {"qid": 3, "query": "...", "vid": "...",
     "pred_relevant_windows": [[start_s, end_s, score], ...],
     "pred_saliency_scores": [one number per clip, ...]}

Windows are listed best first. Numbers are written with four decimals, as public files are; models
without saliency leave `pred_saliency_scores` out, highlight detectors `pred_relevant_windows`
(specs/peers_formats_metrics.md §3.4). It is what moment_detr, QD-DETR, CG-DETR, EaTR, TR-DETR,
TaskWeave, UVCOM, BAM-DETR, BM-DETR, LLMEPET, MESM, UniVTG and Lighthouse write, and R2-Tuning,
without `query`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import brief, key_names
from training.predictions.base import FORMATS, WRITERS, Glance, Keeps, json_rows, numbers, rounded
from training.predictions.types import Prediction

__all__ = ["SALIENCY", "WINDOWS", "Submission", "Unscored", "text_field"]

WINDOWS, SALIENCY = "pred_relevant_windows", "pred_saliency_scores"

EXAMPLE = f'{{"qid": 3, "query": "…", "vid": "…", "{WINDOWS}": [[0.0, 2.0, 0.9], …], …}}'


class Submission:
    """See the module."""

    name = "submission"
    keeps: Keeps = frozenset({"windows", "saliency"})

    _columns = 3
    _window = "[start_s, end_s, score]"

    def recognises(self, seen: Glance) -> bool:
        """Whether the first row has a field of predictions under its name here."""
        return seen.has_key(WINDOWS) or seen.has_key(SALIENCY)

    def read(self, path: Path, annotations: Sequence[Annotation] | None) -> list[Prediction]:
        """See `PredictionFormat.read`; a file has windows in all rows or in none, and saliency."""
        del annotations  # the rows carry their ids
        found: list[Prediction] = []
        first: dict[tuple[type, int | str], str] = {}
        form: set[str] | None = None
        for where, row in json_rows(path, EXAMPLE):
            _check_keys(row, where)
            each = self._prediction(row, where)
            form = form or _form(row)
            _check_form(row, form, where)
            before = first.setdefault((type(each.qid), each.qid), where)
            if before != where:
                raise UsageError(
                    f"{where}: qid {each.qid!r} came before, in {before.rpartition(', ')[2]}; "
                    "every query is answered once"
                )
            found.append(each)
        return found

    def lines(
        self, predictions: Sequence[Prediction], annotations: Sequence[Annotation] | None
    ) -> Iterator[str]:
        """See `PredictionWriter.lines`; without any window in the file, the field is left out."""
        del annotations
        moments = any(each.windows or each.saliency is None for each in predictions)
        for each in predictions:
            kept = rounded(each)
            row: dict[str, Any] = {"qid": each.qid, "query": each.query, "vid": each.video_id}
            if moments:
                row[WINDOWS] = kept.windows
            if kept.saliency is not None:
                row[SALIENCY] = kept.saliency
            try:
                yield json.dumps(row, allow_nan=False)
            except ValueError:
                raise UsageError(
                    f"query {each.qid!r}: the predicted numbers are not finite, did the training "
                    "diverge? nothing was written"
                ) from None

    def _prediction(self, row: dict[str, Any], where: str) -> Prediction:
        qid = row["qid"]
        if isinstance(qid, bool) or not isinstance(qid, int | str):
            raise UsageError(f"{where}: 'qid' must be a whole number or a string, got {brief(qid)}")
        scores = row.get(SALIENCY)
        if scores == []:
            raise UsageError(
                f"{where}: '{SALIENCY}' is empty; leave it out of all rows, or give one score per "
                "clip"
            )
        expected = "a list of finite numbers"
        return Prediction(
            qid=qid,
            query=text_field(row, "query", where),
            video_id=text_field(row, "vid", where),
            windows=self._windows(row, where),
            saliency=None
            if scores is None
            else tuple(numbers(scores, None, f"{where}: '{SALIENCY}'", expected)),
        )

    def _windows(self, row: dict[str, Any], where: str) -> tuple[tuple[float, float, float], ...]:
        value = row.get(WINDOWS)
        if value is None:
            return ()
        field = f"{where}: '{WINDOWS}'"
        _check_width(value, self._columns, field)
        found = numbers(value, self._columns, field, f"a list of {self._window}")
        return tuple(self._scored(each, place, len(found)) for place, each in enumerate(found))

    def _scored(self, window: list[float], place: int, of: int) -> tuple[float, float, float]:
        del place, of
        start, end, score = window
        return start, end, score


class Unscored(Submission):
    """Rows as of a submission whose windows have no scores: `[start_s, end_s]`, best first.

    They get falling scores, so that every metric ranks them as listed.
    """

    name = "unscored"

    _columns = 2
    _window = "[start_s, end_s]"

    def recognises(self, seen: Glance) -> bool:
        """Never: that the order is a ranking, only the user knows."""
        del seen
        return False

    def _scored(self, window: list[float], place: int, of: int) -> tuple[float, float, float]:
        start, end = window
        return start, end, (of - place) / of


def text_field(row: dict[str, Any], name: str, where: str) -> str:
    """A text that may be missing; UsageError if it is something else."""
    value = row.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{where}: '{name}' must be a string, got {brief(value)}")
    return value


def _form(row: dict[str, Any]) -> set[str]:
    return {name for name in (WINDOWS, SALIENCY) if row.get(name) is not None}


def _check_keys(row: dict[str, Any], where: str) -> None:
    missing = [] if "qid" in row else ["qid"]
    missing += [] if _form(row) else [WINDOWS]
    if missing:
        raise UsageError(
            f"{where} has no '{missing[0]}'; its keys are {key_names(row)}; expected {EXAMPLE}"
        )


def _check_form(row: dict[str, Any], form: set[str], where: str) -> None:
    if _form(row) != form:
        odd = sorted(_form(row) ^ form)[0]
        told = "has no" if odd in form else "has"
        raise UsageError(
            f"{where} {told} '{odd}', other than the rows before; give it for all queries or for "
            "none"
        )


def _check_width(value: Any, columns: int, field: str) -> None:
    """A helpful word where the windows have the width of the other format."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        return
    width = len(value[0])
    if (width, columns) == (2, 3):
        raise UsageError(
            f"{field} must be a list of [start_s, end_s, score], got {brief(value[0])} without a "
            "score; if the windows are listed best first, name the format `unscored`"
        )
    if (width, columns) == (3, 2):
        raise UsageError(
            f"{field} must be a list of [start_s, end_s] in the format `unscored`, got "
            f"{brief(value[0])}; with scores it is the format `submission`"
        )


FORMATS.register(Submission.name)(Submission())
WRITERS.register(Submission.name)(Submission())
FORMATS.register(Unscored.name)(Unscored())
