"""The QVHighlights metrics one query at a time: what the fast evaluator is measured against.

Written from the definitions for the comparison, in the manner of the public evaluators: rows as
JSON gives them, Python loops over queries, and for every query, annotator and rating a
precision-recall curve of scikit-learn. It computes what moment_detr's evaluator computes, in one
process, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

__all__ = ["plain_highlights", "plain_moments"]

THRESHOLDS = [round(0.5 + 0.05 * i, 2) for i in range(10)]
RANGES = {"full": None, "long": (30, 150), "middle": (10, 30), "short": (0, 10)}
RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}

Array = NDArray[np.float64]
Row = Mapping[str, Any]
Scores = dict[tuple[str, ...], float]


def plain_moments(truth: Sequence[Row], predicted: Sequence[Row]) -> Scores:
    """`{("full", "MR-mAP", "0.5"): ...}` in percent; rows of both sides answer each other."""
    scores: Scores = {}
    for name, bounds in RANGES.items():
        precisions, overlaps = [], []
        for row, answer in zip(truth, predicted, strict=True):
            wanted = np.asarray([w for w in row["relevant_windows"] if inside(w, bounds)], float)
            if len(wanted):
                precisions.append(detection_ap(answer["pred_relevant_windows"][:10], wanted))
                overlaps.append(first_overlap(answer["pred_relevant_windows"][0], wanted))
        if precisions:
            means = np.mean(precisions, axis=0)
            scores[name, "MR-mAP", "average"] = percent(means.mean())
            for threshold, value in zip(THRESHOLDS, means, strict=True):
                reached = np.mean([each >= threshold for each in overlaps])
                scores[name, "MR-mAP", str(threshold)] = percent(value)
                scores[name, "MR-R1", str(threshold)] = percent(reached)
    return scores


def plain_highlights(
    truth: Sequence[Row], predicted: Sequence[Row], clip_len_s: float = 2.0
) -> Scores:
    """`{("HL-min-Fair", "HL-mAP"): ...}` in percent."""
    scores: Scores = {}
    ratings = [rating_grid(row, clip_len_s) for row in truth]
    for name, lowest in RATINGS.items():
        precisions, hits = [], []
        for rated, answer in zip(ratings, predicted, strict=True):
            labels, given = rated >= lowest, np.asarray(answer["pred_saliency_scores"])
            filled = np.zeros(len(labels))
            filled[: len(given)] = given[: len(labels)]
            precisions.append([ranking_ap(column, filled) for column in labels.T])
            top = given.argmax()
            hits.append(top < len(labels) and labels[top].any())
        scores[f"HL-min-{name}", "HL-mAP"] = percent(np.mean(precisions))
        scores[f"HL-min-{name}", "HL-Hit1"] = percent(np.mean(hits))
    return scores


def inside(window: Sequence[float], bounds: tuple[float, float] | None) -> bool:
    """Whether the length is in (low, high]; without bounds always."""
    return bounds is None or bounds[0] < window[1] - window[0] <= bounds[1]


def detection_ap(predicted: Sequence[Sequence[float]], truth: Array) -> Array:
    """Interpolated AP of one query at each IoU threshold."""
    ordered = np.asarray(sorted(predicted, key=lambda window: -window[2]))
    correct = np.zeros((len(THRESHOLDS), len(ordered)))
    taken = np.zeros((len(THRESHOLDS), len(truth)), bool)
    for rank, window in enumerate(ordered):
        ious = overlaps_of(window, truth)
        best_first = ious.argsort(kind="stable")[::-1]
        for t, threshold in enumerate(THRESHOLDS):
            for index in best_first:
                if ious[index] < threshold:
                    break
                if not taken[t, index]:
                    taken[t, index] = correct[t, rank] = True
                    break
    found = correct.cumsum(axis=1)
    precision = found / np.arange(1, len(ordered) + 1)
    recall = found / len(truth)
    return np.asarray([interpolated(p, r) for p, r in zip(precision, recall, strict=True)])


def interpolated(precision: Array, recall: Array) -> float:
    """Area under the interpolated precision-recall curve, VOC 2011."""
    p = np.concatenate([[0.0], precision, [0.0]])
    r = np.concatenate([[0.0], recall, [1.0]])
    for i in reversed(range(len(p) - 1)):
        p[i] = max(p[i], p[i + 1])
    steps = np.flatnonzero(r[1:] != r[:-1]) + 1
    return float(np.sum((r[steps] - r[steps - 1]) * p[steps]))


def overlaps_of(window: Array, truth: Array) -> Array:
    """IoU with each true window; 0/0 is NaN."""
    shared = np.minimum(window[1], truth[:, 1]) - np.maximum(window[0], truth[:, 0])
    shared = np.clip(shared, 0, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(shared / (window[1] - window[0] + truth[:, 1] - truth[:, 0] - shared))


def first_overlap(first: Sequence[float], truth: Array) -> float:
    """Overlap of the first window with its best true one, over the hull of both."""
    start, end = truth[overlaps_of(np.asarray(first), truth).argmax()]
    hull = max(first[1], end) - min(first[0], start)
    return float(max(0.0, min(first[1], end) - max(first[0], start)) / hull) if hull else 0.0


def rating_grid(row: Row, clip_len_s: float) -> Array:
    """(clips, annotators) ratings, 0 where nobody rated."""
    ratings = np.zeros((int(row["duration"] / clip_len_s), len(row["saliency_scores"][0])))
    ratings[row["relevant_clip_ids"]] = row["saliency_scores"]
    return ratings


def ranking_ap(positive: NDArray[np.bool_], scores: Array) -> float:
    """Mean of the running maximum of precision where recall changes, from low to high scores."""
    if positive.all() or not positive.any():
        return float(positive.all())
    precision, recall, _ = precision_recall_curve(positive, scores)
    for i in range(1, len(precision)):
        precision[i] = max(precision[i - 1], precision[i])
    return float(precision[:-1][np.diff(recall.astype(np.float32)) != 0].mean())


def percent(share: float | np.floating) -> float:
    """Two decimals, formatted as the public evaluators do."""
    return float(f"{100 * share:.2f}")
