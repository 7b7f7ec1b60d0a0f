"""The QVHighlights metrics one query at a time: what the fast evaluator is measured against.

Written for the comparison, in the manner of moment_detr's `standalone_eval`: Python loops over
queries, annotators and thresholds, and a precision-recall curve for each of them (there by
scikit-learn, here by the same steps in numpy). It computes the official mode and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from training.task import Prediction

__all__ = ["plain_qvhighlights"]

THRESHOLDS = [round(0.5 + 0.05 * i, 2) for i in range(10)]
RANGES = {"full": (0, 10**9), "long": (30, 150), "middle": (10, 30), "short": (0, 10)}
Array = NDArray[np.float64]


def plain_qvhighlights(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], clip_len_s: float = 2.0
) -> dict[str, dict[str, float]]:
    """`{"full/MR-mAP": {"0.5": ...}, "HL-min-Fair": {"HL-mAP": ...}, ...}` in percent."""
    scores: dict[str, dict[str, float]] = {}
    for name, bounds in RANGES.items():
        precisions, overlaps = [], []
        for annotation, prediction in zip(annotations, predictions, strict=True):
            windows = [w for w in annotation.windows or () if bounds[0] < w[1] - w[0] <= bounds[1]]
            if name == "full":
                windows = list(annotation.windows or ())
            if windows:
                precisions.append(detection_ap(prediction.windows[:10], windows))
                overlaps.append(first_overlap(prediction.windows[0], windows))
        if precisions:
            means = np.mean(precisions, axis=0)
            scores[f"{name}/MR-mAP"] = {
                **{str(t): percent(m) for t, m in zip(THRESHOLDS, means, strict=True)},
                "average": percent(means.mean()),
            }
            scores[f"{name}/MR-R1"] = {
                str(t): percent(np.mean([each >= t for each in overlaps])) for t in THRESHOLDS
            }
    for name, lowest in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        aps, hits = [], []
        for annotation, prediction in zip(annotations, predictions, strict=True):
            positive = positives(annotation, lowest, clip_len_s)
            given = list(prediction.saliency or ())
            clips = len(positive)
            filled = np.asarray(given[:clips] + [0.0] * (clips - len(given)))
            aps += [ranking_ap(positive[:, a], filled) for a in range(positive.shape[1])]
            top = int(np.argmax(given))
            hits.append(float(positive[top].any()) if top < clips else 0.0)
        scores[f"HL-min-{name}"] = {
            "HL-mAP": percent(np.mean(aps)),
            "HL-Hit1": percent(np.mean(hits)),
        }
    return scores


def detection_ap(
    predicted: Sequence[tuple[float, float, float]], truth: Sequence[tuple[float, float]]
) -> Array:
    """AP of one query at each threshold."""
    ordered = sorted(predicted, key=lambda window: -window[2])
    correct = np.zeros((len(THRESHOLDS), len(ordered)))
    taken = np.zeros((len(THRESHOLDS), len(truth)), bool)
    for rank, window in enumerate(ordered):
        ious = np.asarray([overlap(window, each) for each in truth])
        best_first = ious.argsort(kind="stable")[::-1]
        for t, threshold in enumerate(THRESHOLDS):
            for index in best_first:
                if ious[index] < threshold:
                    break
                if not taken[t, index]:
                    taken[t, index] = True
                    correct[t, rank] = 1
                    break
    found = correct.cumsum(axis=1)
    precision = found / np.arange(1, len(ordered) + 1)
    return np.asarray(
        [interpolated(p, r) for p, r in zip(precision, found / len(truth), strict=True)]
    )


def interpolated(precision: Array, recall: Array) -> float:
    """Area under the interpolated precision-recall curve, VOC 2011."""
    p = np.concatenate([[0.0], precision, [0.0]])
    r = np.concatenate([[0.0], recall, [1.0]])
    for i in range(len(p) - 1)[::-1]:
        p[i] = max(p[i], p[i + 1])
    steps = np.where(r[1:] != r[:-1])[0] + 1
    return float(np.sum((r[steps] - r[steps - 1]) * p[steps]))


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """IoU; 0/0 is NaN."""
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    union = (one[1] - one[0]) + (other[1] - other[0]) - shared
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.float64(shared) / np.float64(union))


def first_overlap(first: Sequence[float], truth: Sequence[tuple[float, float]]) -> float:
    """Overlap of the first window with its best true one, over the hull of both."""
    best = truth[int(np.argmax([overlap(first, each) for each in truth]))]
    shared = max(0.0, min(first[1], best[1]) - max(first[0], best[0]))
    hull = max(first[1], best[1]) - min(first[0], best[0])
    return shared / hull if hull else 0.0


def positives(annotation: Annotation, lowest: int, clip_len_s: float) -> NDArray[np.bool_]:
    """(clips, annotators) whether a clip was rated at least so high."""
    saliency = annotation.saliency or ()
    ratings = np.zeros((int((annotation.duration_s or 0) / clip_len_s), len(saliency[0])))
    ratings[list(annotation.clip_ids or ())] = saliency
    return np.asarray(ratings >= lowest)


def ranking_ap(positive: NDArray[np.bool_], scores: Array) -> float:
    """AP of one ranking: mean of the running maximum of precision where recall changes."""
    if positive.all() or not positive.any():
        return float(positive.all())
    order = np.argsort(scores, kind="mergesort")[::-1]
    ranked, hits = scores[order], positive[order]
    ends = np.concatenate([np.where(np.diff(ranked))[0], [len(ranked) - 1]])
    found = np.cumsum(hits)[ends]
    precision = np.concatenate([(found / (ends + 1))[::-1], [1.0]])
    recall = np.concatenate([(found / found[-1])[::-1], [0.0]]).astype(np.float32)
    for i in range(1, len(precision)):
        precision[i] = max(precision[i - 1], precision[i])
    return float(np.mean(precision[np.where(np.diff(recall))]))


def percent(share: float | np.floating) -> float:
    """Two decimals, formatted as the reference does."""
    return float(f"{100 * share:.2f}")
