"""Moment retrieval: average precision and recall at one, for all queries at once.

The definitions are those of moment_detr's `standalone_eval` (specs/peers_formats_metrics.md §3.6),
quirks included where `mode` is "official" (specs/evaluator_reference.md §4):

- 0/0 as IoU of two windows without extent, or of an inverted one, is NaN, and NaN passes every
  threshold: such a prediction is a true positive. strict: its IoU is 0.
- the first ten windows of the list are kept, then sorted by score. strict: sorted, then cut.
- R1 looks at the window that is listed first, and measures it with the hull of both windows as
  denominator. strict: at the window of the highest score, with the true IoU.
- a query without predicted windows is left out of the mean of AP, and R1 does not exist for it.
  strict: it counts as a miss in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.metrics.ragged import Ragged

__all__ = ["Mode", "average_precision", "cross_iou", "first_window_iou", "ranked"]

Mode = Literal["official", "strict"]

KEPT_WINDOWS = 10
"""How many windows per query are scored (`max_pred_windows` of the reference)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Predicted windows of Q queries, at most K each, best first.

    Args:
        spans: (Q, K, 2) seconds.
        mask: (Q, K) bool.
        first: (Q, 2) the window that R1 looks at; zeros where a query has none.
    """

    spans: Floats
    mask: NDArray[np.bool_]
    first: Floats

    def rows(self, keep: NDArray[np.bool_]) -> Ranked:
        """Only the queries that `keep` (Q,) marks."""
        return Ranked(self.spans[keep], self.mask[keep], self.first[keep])


def ranked(predicted: Ragged, mode: Mode) -> Ranked:
    """Cut and order the predicted windows, rows of `(start_s, end_s, score)`."""
    kept = KEPT_WINDOWS if mode == "official" else max(int(predicted.counts.max(initial=0)), 1)
    windows, mask = predicted.padded(kept), predicted.mask(kept)
    order = np.argsort(np.where(mask, -windows[..., 2], np.inf), axis=1, kind="stable")
    best = np.take_along_axis(windows, order[..., None], axis=1)[:, :KEPT_WINDOWS]
    mask = np.take_along_axis(mask, order, axis=1)[:, :KEPT_WINDOWS]
    first = windows[:, 0] if mode == "official" else best[:, 0]
    return Ranked(best[..., :2], mask, first[:, :2])


def cross_iou(predicted: Floats, truth: Floats, mode: Mode) -> Floats:
    """IoU of every predicted with every true window of the same query.

    Args:
        predicted: (Q, K, 2) seconds.
        truth: (Q, G, 2) seconds.
        mode: what 0/0 is: NaN in "official", 0 in "strict".

    Returns:
        (Q, K, G).
    """
    start, end = predicted[:, :, None, 0], predicted[:, :, None, 1]
    true_start, true_end = truth[:, None, :, 0], truth[:, None, :, 1]
    overlap = np.maximum(0.0, np.minimum(end, true_end) - np.maximum(start, true_start))
    union = (end - start) + (true_end - true_start) - overlap
    if mode == "official":
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(overlap / union)
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0))


def average_precision(
    predicted: Ranked, truth: Ragged, thresholds: Floats, mode: Mode
) -> tuple[Floats, NDArray[np.bool_]]:
    """Interpolated AP (VOC 2011) of each query at each IoU threshold.

    Args:
        predicted: of the same Q queries as `truth`.
        truth: at least one window `(start_s, end_s)` for each query.
        thresholds: (T,) IoU thresholds.
        mode: see the module.

    Returns:
        (Q, T) AP in [0, 1], and (Q,) whether the query counts in the mean.
    """
    result = np.zeros((len(truth.counts), len(thresholds)))
    # most queries have one or two true windows: groups of similar size keep the arrays small
    size = np.ceil(np.log2(np.maximum(truth.counts, 1)))
    for each in np.unique(size):
        group = size == each
        inside, windows = predicted.rows(group), truth.rows(group)
        correct = _match(_comparable_iou(inside, windows, mode), thresholds)
        result[group] = _interpolated(correct, windows.counts)
    counts = predicted.mask.any(axis=1) if mode == "official" else np.ones(len(result), bool)
    return result, np.asarray(counts)


def first_window_iou(predicted: Ranked, truth: Ragged, mode: Mode) -> Floats:
    """(Q,) IoU of the window that R1 looks at with the true window that it overlaps most."""
    first = predicted.first[:, None]
    iou = cross_iou(first, truth.padded(), mode)[:, 0]
    iou = np.where(truth.mask(), np.where(np.isnan(iou), np.inf, iou), -1.0)
    chosen = iou.argmax(axis=1)
    if mode == "strict":
        return np.where(predicted.mask.any(axis=1), iou.max(axis=1), 0.0)
    window = np.take_along_axis(truth.padded(), chosen[:, None, None], axis=1)[:, 0]
    return _hull_iou(predicted.first, window)


def _hull_iou(predicted: Floats, truth: Floats) -> Floats:
    overlap = np.minimum(predicted[:, 1], truth[:, 1]) - np.maximum(predicted[:, 0], truth[:, 0])
    hull = np.maximum(predicted[:, 1], truth[:, 1]) - np.minimum(predicted[:, 0], truth[:, 0])
    overlap = np.maximum(0.0, overlap)
    return np.asarray(np.divide(overlap, hull, out=np.zeros_like(hull), where=hull != 0))


def _comparable_iou(predicted: Ranked, truth: Ragged, mode: Mode) -> Floats:
    """(Q, K, G) IoU for matching: -1 at padding, infinity for NaN, true windows last to first.

    The reference sorts true windows by ascending IoU, NaN last, and reads the result backwards:
    NaN comes first, and among equals the last. Reversed windows let `argmax` do the same.
    """
    iou = cross_iou(predicted.spans, truth.padded(), mode)
    iou = np.where(np.isnan(iou), np.inf, iou)
    both = predicted.mask[:, :, None] & truth.mask()[:, None, :]
    return np.where(both, iou, -1.0)[:, :, ::-1]


def _match(iou: Floats, thresholds: Floats) -> NDArray[np.bool_]:
    """(T, Q, K) true positives: in order of rank, each takes its best free window at a threshold.

    Args:
        iou: (Q, K, G), -1 at padding.
        thresholds: (T,).
    """
    queries, ranks, windows = iou.shape
    correct = np.zeros((len(thresholds), queries, ranks), bool)
    free = np.ones((len(thresholds), queries, windows), bool)
    for rank in range(ranks):
        reaches = free & (iou[:, rank] >= thresholds[:, None, None])
        correct[:, :, rank] = reaches.any(axis=2)
        if windows > 1:
            best = np.where(reaches, iou[:, rank], -1.0).argmax(axis=2)
            free &= ~(reaches & (np.arange(windows) == best[..., None]))
        else:
            free &= ~reaches
    return correct


def _interpolated(correct: NDArray[np.bool_], positives: NDArray[np.int64]) -> Floats:
    """(Q, T) area under precision made non-increasing, over recall."""
    found = correct.cumsum(axis=2)
    precision = found / np.arange(1, correct.shape[2] + 1)
    best_after = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    recall = found / positives[:, None]
    gained = np.diff(recall, axis=2, prepend=0.0)
    return np.asarray((gained * best_after).sum(axis=2)).T
