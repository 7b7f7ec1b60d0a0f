"""JSON of temporal sentence grounding, as ShufflingVideosForTSG writes and scores it.

    {"version": "V0", "external_data": {…}, "results": {"video id": [
        {"sentence": "…", "timestamp": [start_s, end_s], "score": 0.6,
         "gt_timestamp": [start_s, end_s], "video_duration": 47.6}, …]}}

(`grounding/test.py` of https://github.com/haojc/ShufflingVideosForTSG.) There are no query ids: an
entry answers the annotated query of its video with the same letters and digits in the same order,
because such tools change points, spaces and capitals. A sentence that a video has more than once is
told apart by `gt_timestamp`, and else by order. An entry that answers nothing is an error, and so
is a `gt_timestamp` that is not the annotated moment.

One window per entry is the format; files written here keep the others too, in `timestamps` and
`scores`, which the public evaluator does not look at.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.annotations.types import Annotation
from data.errors import UsageError, some
from data.foreign import brief, json_object, key_names, read_limited
from training.predictions.base import (
    DECIMALS,
    FORMATS,
    LARGEST_FILE,
    WHAT,
    WRITERS,
    Glance,
    Keeps,
    numbers,
    rounded,
)
from training.predictions.matching import in_order, letters
from training.predictions.types import Prediction

__all__ = ["GroundingJson"]

ROUNDING_S = 0.01
"""Times are float32 or have two decimals in such files."""

EXAMPLE = '{"sentence": "…", "timestamp": [0.0, 2.0], "score": 0.9, "gt_timestamp": [0.0, 2.5]}'

Windows = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class _Entry:
    """One answer of a file.

    Args:
        where: file, video and place of the entry.
        video_id, sentence, windows: what it says.
        truth: its own ground truth, if it has one.
    """

    where: str
    video_id: str
    sentence: str
    windows: Windows
    truth: tuple[float, float] | None

    @property
    def key(self) -> tuple[str, str]:
        return self.video_id, letters(self.sentence)


class GroundingJson:
    """See the module."""

    name = "tsg"
    keeps: Keeps = frozenset({"windows"})

    def recognises(self, seen: Glance) -> bool:
        """Whether the object has "results"."""
        return seen.has_key("results")

    def read(self, path: Path, annotations: Sequence[Annotation] | None) -> list[Prediction]:
        """See `PredictionFormat.read`."""
        if annotations is None:
            raise UsageError(
                f"{path} has no query ids (format 'tsg'): its entries are found by video and "
                "sentence; give --annotations FILE and --dataset NAME"
            )
        return _matched(path, list(_entries(path)), annotations)

    def lines(
        self, predictions: Sequence[Prediction], annotations: Sequence[Annotation] | None
    ) -> Iterator[str]:
        """See `PredictionWriter.lines`."""
        if annotations is None:
            raise UsageError(
                "the format 'tsg' holds the ground truth too; give --annotations FILE and "
                "--dataset NAME"
            )
        results: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for query, each in zip(annotations, in_order(annotations, predictions), strict=True):
            results[query.video_id].append(_row(query, rounded(each)))
        about = {"used": True, "details": "see the predictions that this was converted from"}
        yield json.dumps({"version": "V0", "results": results, "external_data": about})


def _row(query: Annotation, answer: Prediction) -> dict[str, Any]:
    if not query.windows or len(query.windows) > 1:
        raise UsageError(
            f"query {query.qid} has {len(query.windows or ())} true moments, and an entry of the "
            "format 'tsg' has one; write 'submission'"
        )
    if not answer.windows:
        raise UsageError(
            f"query {query.qid} has no predicted window, and an entry of the format 'tsg' has one"
        )
    start, end, score = answer.windows[0]
    row: dict[str, Any] = {"sentence": query.query, "timestamp": [start, end], "score": score}
    if len(answer.windows) > 1:
        row["timestamps"] = [[start, end] for start, end, _ in answer.windows]
        row["scores"] = [score for _, _, score in answer.windows]
    row["gt_timestamp"] = [round(edge, DECIMALS) for edge in query.windows[0]]
    if query.duration_s is not None:
        row["video_duration"] = query.duration_s
    return row


def _entries(path: Path) -> Iterator[_Entry]:
    value = json_object(read_limited(path, LARGEST_FILE, WHAT), str(path))
    results = value.get("results")
    if not isinstance(results, dict) or not results:
        raise UsageError(
            f"{path}: 'results' must be an object of videos, got {brief(results)}; expected "
            f'{{"results": {{"video id": [{EXAMPLE}, …]}}}}'
        )
    for video_id, rows in results.items():
        if not isinstance(rows, list):
            raise UsageError(f"{path}, video {brief(video_id)}: expected a list of {EXAMPLE}")
        for place, row in enumerate(rows, start=1):
            yield _entry(row, video_id, f"{path}, video {brief(video_id)}, entry {place}")


def _entry(row: Any, video_id: str, where: str) -> _Entry:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: expected {EXAMPLE}, got {brief(row)}")
    sentence = row.get("sentence")
    if not isinstance(sentence, str):
        raise UsageError(f"{where}: 'sentence' must be a string, got {brief(sentence)}")
    truth = row.get("gt_timestamp")
    return _Entry(
        where,
        video_id,
        sentence,
        _windows(row, where),
        None if truth is None else _pair(truth, f"{where}: 'gt_timestamp'"),
    )


def _windows(row: dict[str, Any], where: str) -> Windows:
    if "timestamps" in row:
        field = f"{where}: 'timestamps'"
        pairs = numbers(row["timestamps"], 2, field, "a list of [start_s, end_s]")
        field = f"{where}: 'scores'"
        scores = numbers(row.get("scores"), None, field, "a list of numbers, one per window")
        if len(pairs) != len(scores):
            raise UsageError(f"{field} has {len(scores)} numbers for {len(pairs)} windows")
        return tuple((start, end, score) for (start, end), score in zip(pairs, scores, strict=True))
    if "timestamp" not in row:
        raise UsageError(
            f"{where} has no 'timestamp'; its keys are {key_names(row)}; expected {EXAMPLE}"
        )
    start, end = _pair(row["timestamp"], f"{where}: 'timestamp'")
    # one window is ranked first whatever its score
    (score,) = numbers([row.get("score", 1.0)], None, f"{where}: 'score'", "a number")
    return ((start, end, score),)


def _pair(value: Any, field: str) -> tuple[float, float]:
    found = numbers(value, None, field, "[start_s, end_s]")
    if len(found) != 2:
        raise UsageError(f"{field} must be [start_s, end_s], got {brief(value)}")
    return found[0], found[1]


def _matched(
    path: Path, entries: Sequence[_Entry], annotations: Sequence[Annotation]
) -> list[Prediction]:
    places: dict[tuple[str, str], list[Annotation]] = defaultdict(list)
    for row in annotations:
        places[row.video_id, letters(row.query)].append(row)
    unknown: list[_Entry] = []
    differing: list[_Entry] = []
    found: list[Prediction] = []
    for entry in entries:
        left = places.get(entry.key, [])
        query = next((each for each in left if _agrees(entry, each)), None)
        if query is not None:
            left.remove(query)
            found.append(Prediction(query.qid, query.query, query.video_id, entry.windows))
        else:
            (differing if left else unknown).append(entry)
    faults = []
    if unknown:
        faults.append(
            f"{len(unknown)} answer no query of the annotations that is not answered already "
            f"({_first(unknown)})"
        )
    if differing:
        told = differing[0].truth
        faults.append(
            f"{len(differing)} have a 'gt_timestamp' that is not the annotated moment "
            f"({_first(differing)}: {list(told or ())})"
        )
    if faults:
        raise UsageError(
            f"{path} and the annotations do not match: of {len(entries)} entries, "
            + "; ".join(faults)
            + ". Give the annotations of the same split and version"
        )
    return found


def _agrees(entry: _Entry, query: Annotation) -> bool:
    """Whether the ground truth of an entry, if it has one, is that of a query, if it has one."""
    if entry.truth is None or query.windows is None:
        return True
    return any(
        abs(start - entry.truth[0]) <= ROUNDING_S and abs(end - entry.truth[1]) <= ROUNDING_S
        for start, end in query.windows
    )


def _first(entries: Sequence[_Entry]) -> str:
    places = [f"video '{each.video_id}': {brief(each.sentence)}" for each in entries]
    return f"first: {some(places, 1)}"


FORMATS.register(GroundingJson.name)(GroundingJson())
WRITERS.register(GroundingJson.name)(GroundingJson())
