"""The QVHighlights submission format: one JSON object per line and query.

    {"qid": 3, "query": "...", "vid": "...",
     "pred_relevant_windows": [[start_s, end_s, score], ...],
     "pred_saliency_scores": [one number per clip, ...]}

Windows are listed best first. Numbers are written with four decimals, as public files are; models
without saliency leave `pred_saliency_scores` out (specs/peers_formats_metrics.md §3.4).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.annotations.types import Annotation
from data.errors import UsageError, some
from data.foreign import brief, json_object, text_lines
from data.store.files import atomic_write
from training.task import Prediction

__all__ = ["in_order", "read_predictions", "rounded", "write_predictions"]

DECIMALS = 4


def read_predictions(path: Path) -> list[Prediction]:
    """All predictions of a submission file, in file order.

    Raises:
        UsageError: an unreadable file or a bad line, with its number and what was expected.
    """
    rows = [
        _parse(line, f"{path}, line {number}")
        for number, line in text_lines(path, "the predictions")
    ]
    if not rows:
        raise UsageError(f"{path} holds no predictions; expected one JSON object per line")
    return rows


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a submission file, replacing an old one at once."""
    atomic_write(path, "".join(json.dumps(_row(each)) + "\n" for each in predictions).encode())


def rounded(prediction: Prediction) -> Prediction:
    """The prediction as a reader of the written file sees it."""
    saliency = prediction.saliency
    return replace(
        prediction,
        windows=tuple(
            (round(start, DECIMALS), round(end, DECIMALS), round(score, DECIMALS))
            for start, end, score in prediction.windows
        ),
        saliency=None if saliency is None else tuple(round(each, DECIMALS) for each in saliency),
    )


def in_order(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction]
) -> list[Prediction]:
    """The predictions in the order of the annotations, exactly one for each query.

    Raises:
        UsageError: a query is missing, unknown, answered twice, or about another video. A part of
            the queries is never scored as if it were the whole.
    """
    by_qid = {each.qid: each for each in predictions}
    wanted = {each.qid: each for each in annotations}
    twice = [qid for qid, count in Counter(each.qid for each in predictions).items() if count > 1]
    faults = {
        "are missing from the predictions": [qid for qid in wanted if qid not in by_qid],
        "are in the predictions but not in the annotations": [q for q in by_qid if q not in wanted],
        "are answered more than once": twice,
        "are about another video than in the annotations": [
            qid
            for qid, each in by_qid.items()
            if qid in wanted and each.video_id and each.video_id != wanted[qid].video_id
        ],
    }
    found = [
        f"{len(qids)} {text} ({some([f'qid {qid}' for qid in qids], 3)})"
        for text, qids in faults.items()
        if qids
    ]
    if found:
        raise UsageError(
            f"predictions and annotations do not match: of {len(wanted)} queries, "
            + "; ".join(found)
            + ". Give the predictions and the annotations of the same split"
        )
    return [by_qid[each.qid] for each in annotations]


def _parse(line: bytes, where: str) -> Prediction:
    row = json_object(line, where)
    missing = [key for key in ("qid", "pred_relevant_windows") if key not in row]
    if missing:
        raise UsageError(f"{where} has no '{missing[0]}'; its keys are {', '.join(sorted(row))}")
    qid = row["qid"]
    if isinstance(qid, bool) or not isinstance(qid, int | str):
        raise UsageError(f"{where}: 'qid' must be a whole number or a string, got {brief(qid)}")
    scores = row.get("pred_saliency_scores")
    if scores == []:
        raise UsageError(
            f"{where}: 'pred_saliency_scores' is empty; leave it out if there are none"
        )
    windows = _numbers(row, "pred_relevant_windows", 2, where)
    return Prediction(
        qid=qid,
        query=str(row.get("query", "")),
        video_id=str(row.get("vid", "")),
        windows=tuple((start, end, score) for start, end, score in windows),
        saliency=None if scores is None else tuple(_numbers(row, "pred_saliency_scores", 1, where)),
    )


def _numbers(row: dict[str, Any], key: str, dimensions: int, where: str) -> list[Any]:
    expected = {1: "a list of finite numbers", 2: "a list of [start_s, end_s, score]"}[dimensions]
    try:
        array = np.asarray(row[key])
    except ValueError:
        raise UsageError(
            f"{where}: '{key}' must be {expected}, got rows of uneven length"
        ) from None
    if array.dtype.kind not in "iuf":
        raise UsageError(f"{where}: '{key}' must be {expected}, found something else")
    if array.size == 0:
        return []
    if array.ndim != dimensions or (dimensions == 2 and array.shape[1] != 3):
        raise UsageError(f"{where}: '{key}' must be {expected}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError(f"{where}: '{key}' must be {expected}, found NaN or infinity")
    values: list[Any] = array.astype(np.float64).tolist()
    return values


def _row(prediction: Prediction) -> dict[str, Any]:
    prediction = rounded(prediction)
    row: dict[str, Any] = {
        "qid": prediction.qid,
        "query": prediction.query,
        "vid": prediction.video_id,
        "pred_relevant_windows": prediction.windows,
    }
    if prediction.saliency is not None:
        row["pred_saliency_scores"] = prediction.saliency
    return row
