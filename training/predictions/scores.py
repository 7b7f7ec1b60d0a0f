"""Scores per clip and nothing else, for highlight detection: one JSON object.

    {"query id": [one number per clip, …], …}

JSON has no keys that are numbers, so ids that are numbers become strings in it; with annotations
they become again what they were. In TVSum and YouTube Highlights a query's id is its video's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import brief, json_object, read_limited
from training.predictions.base import (
    FORMATS,
    LARGEST_FILE,
    WHAT,
    WRITERS,
    Glance,
    Keeps,
    numbers,
    rounded,
)
from training.predictions.submission import SALIENCY, WINDOWS
from training.predictions.types import Prediction

__all__ = ["EXPECTED", "Scores"]

OTHERS = ("qid", "vid", "results", WINDOWS, SALIENCY)
"""Keys that show another format."""

_BEGINNING = re.compile(r'\s*\{\s*"[^"]+"\s*:\s*\[\s*-?[0-9.]')
"""Of an object that is written over several lines."""

EXPECTED = "a list of finite numbers, one per clip"


class Scores:
    """See the module."""

    name = "scores"
    keeps: Keeps = frozenset({"saliency"})

    def recognises(self, seen: Glance) -> bool:
        """Whether the values are lists of numbers, and the keys no fields of another format."""
        if any(seen.has_key(name) for name in OTHERS):
            return False
        if seen.row is None:
            return _BEGINNING.match(seen.head) is not None
        lists = [each for each in seen.row.values() if isinstance(each, list)]
        numeric = all(isinstance(each, int | float) for each in next(iter(lists), ()))
        return bool(lists) and len(lists) == len(seen.row) and numeric

    def read(self, path: Path, annotations: Sequence[Annotation] | None) -> list[Prediction]:
        """See `PredictionFormat.read`; without annotations, ids are strings."""
        rows = json_object(read_limited(path, LARGEST_FILE, WHAT), str(path))
        if not rows:
            raise UsageError(f'{path} holds no predictions; expected {{"qid": [scores], …}}')
        if annotations is None:
            return [_answer(None, key, value, path) for key, value in rows.items()]
        queries = _by_text(annotations)
        # answers to no query are refused soon (`in_order`), whatever they hold
        return [
            _answer(query, key, value, path) if query else Prediction(key, "", "", (), None)
            for key, value in rows.items()
            for query in [queries.get(key)]
        ]

    def lines(
        self, predictions: Sequence[Prediction], annotations: Sequence[Annotation] | None
    ) -> Iterator[str]:
        """See `PredictionWriter.lines`."""
        del annotations
        ids = {str(each.qid) for each in predictions}
        if len(ids) < len(predictions):
            raise UsageError(
                "the format 'scores' writes ids as strings, and two of these would be equal; write "
                "'submission'"
            )
        rows = {str(each.qid): rounded(each).saliency for each in predictions}
        yield json.dumps(rows)


def _answer(query: Annotation | None, key: str, value: object, path: Path) -> Prediction:
    where = f"{path}, entry {brief(key)}"
    scores = tuple(numbers(value, None, where, EXPECTED))
    if not scores:
        raise UsageError(f"{where} is empty; expected {EXPECTED}")
    if query is None:
        return Prediction(key, "", "", (), scores)
    return Prediction(query.qid, query.query, query.video_id, (), scores)


def _by_text(annotations: Sequence[Annotation]) -> Mapping[str, Annotation]:
    found = {str(each.qid): each for each in annotations}
    if len(found) < len(annotations):
        raise UsageError(
            "the annotations have ids that differ only in type (1 and '1'), and the format "
            "'scores' cannot tell them apart; give the predictions as 'submission'"
        )
    return found


FORMATS.register(Scores.name)(Scores())
WRITERS.register(Scores.name)(Scores())
