"""Recall and mIoU of temporal sentence grounding, equal to the evaluator of ShufflingVideosForTSG.

Hao et al., "Can Shuffling Video Benefit Temporal Bias Problem", ECCV 2022, `grounding/IoU_eval.py`
of https://github.com/haojc/ShufflingVideosForTSG: the results on Charades-CD and ActivityNet-CD.
R1@0.5, R1@0.7 and mIoU are also what the tables of Charades-CG and ActivityNet-CG print (Li et al.,
CVPR 2022), whose repository has no evaluator. Quirks in mode "official":

- IoU is `intersection / (union + 1e-4)`: a perfect answer for a moment of 1 s has 0.9999.
  strict: the true IoU, 0 where the union is empty.
- a hit has an IoU above the threshold, not equal to it. strict: at least the threshold.
- the window that is listed first is looked at. strict: the one with the highest score.
- there is one prediction and one true moment per query; without, or with more true moments, this
  stops. strict: no prediction is a miss, and of several true moments the best counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics.base import METRICS, Columns, Key, Measured
from training.metrics.comparable import check_finite, check_have_moments
from training.metrics.moments import Mode
from training.metrics.ragged import Ragged
from training.predictions import Prediction

__all__ = ["THRESHOLDS", "best_windows", "plain_iou", "true_moments", "tsg"]

THRESHOLDS = ("0.1", "0.3", "0.5", "0.7", "0.9")

EPSILON_S = 1e-4
"""What the reference adds to the union."""

Floats = NDArray[np.float64]


@METRICS.register("tsg")
def tsg(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    clip_len_s: float,
    mode: Mode = "official",
) -> Measured:
    """`{"R1@0.1": …, "R1@0.9": …, "mIoU": …}` in percent; see `Metric` for the arguments.

    Raises:
        UsageError: a query without a true moment; in "official" also one with several, or without
            a predicted window.
    """
    del clip_len_s  # windows are in seconds
    truth, found = true_moments(annotations, mode), best_windows(predictions, 1, mode)
    epsilon = EPSILON_S if mode == "official" else 0.0
    iou = plain_iou(found.padded(1), truth.padded(), epsilon)
    best = np.where(found.mask(1)[:, :, None] & truth.mask()[:, None], iou, 0.0).max(axis=(1, 2))
    limits = np.asarray([float(name) for name in THRESHOLDS])
    hits = best[:, None] > limits if mode == "official" else best[:, None] >= limits
    keys: tuple[Key, ...] = (*((f"R1@{name}",) for name in THRESHOLDS), ("mIoU",))
    columns = Columns(keys, np.column_stack([hits, best]), np.ones(len(best), np.bool_))
    brief = {key[0]: key for key in keys}
    return Measured(annotations, (columns,), (), brief, "mIoU")


def true_moments(annotations: Sequence[Annotation], mode: Mode) -> Ragged:
    """The true windows of all queries, `(start_s, end_s)`; UsageError as `tsg` says."""
    check_have_moments(annotations)
    several = [each.qid for each in annotations if len(each.windows or ()) > 1]
    if several and mode == "official":
        raise UsageError(
            f"{len(several)} queries have several true moments (first: {several[0]}), and this "
            "evaluator knows one; mode strict takes the best of them, and the metric `mr_hd` "
            "scores them all"
        )
    return Ragged.of([each.windows or () for each in annotations], (2,))


def best_windows(predictions: Sequence[Prediction], most: int, mode: Mode) -> Ragged:
    """The first windows of all predictions, `(start_s, end_s)`; UsageError as `tsg` says.

    official: as listed. strict: by score, equal scores as listed.
    """
    silent = [each.qid for each in predictions if not each.windows]
    if silent and mode == "official":
        raise UsageError(
            f"{len(silent)} queries have no predicted window (first: {silent[0]}); the official "
            "evaluator has no such case; mode strict counts them as misses"
        )
    windows = Ragged.of([each.windows for each in predictions], (3,))
    check_finite(windows, predictions, "windows")
    if mode == "strict":
        windows = windows.ordered(-windows.flat[:, 2])
    cut = windows.where(windows.place < most)
    return Ragged(cut.flat[:, :2], cut.counts)


def plain_iou(predicted: Floats, truth: Floats, epsilon_s: float) -> Floats:
    """(Q, K, G) IoU of (Q, K, 2) with (Q, G, 2) windows in seconds, 0 where they share nothing."""
    start, end = predicted[:, :, None, 0], predicted[:, :, None, 1]
    true_start, true_end = truth[:, None, :, 0], truth[:, None, :, 1]
    overlap = np.maximum(np.minimum(end, true_end) - np.maximum(start, true_start), 0.0)
    union = (end - start) + (true_end - true_start) - overlap + epsilon_s
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0))
