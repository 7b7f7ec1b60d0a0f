"""Moment retrieval: average precision and recall at one, for all queries at once.

The definitions are those of moment_detr's `standalone_eval` (specs/peers_formats_metrics.md §3.6),
quirks included where `mode` is "official" (specs/evaluator_reference.md §4):

- 0/0 as IoU of two windows without extent, or of an inverted one, is NaN, and NaN passes every
  threshold: such a prediction is a true positive. strict: its IoU is 0.
- the first ten windows of the list are kept, then sorted by score. strict: sorted, then cut.
- R1 and R5 look at the windows that are listed first, and measure the best pair with the hull of
  both windows as denominator. strict: at the windows of the highest scores, with the true IoU.
- a query without predicted windows is left out of the mean of AP, and R1 does not exist for it.
  strict: it counts as a miss in both.

R5 is UniVTG's: the best pair of one of five windows and any true one, where NaN is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.metrics.ragged import Ragged

__all__ = ["Mode", "Ranked", "average_precision", "listed_iou", "ranked"]

Mode = Literal["official", "strict"]

KEPT_WINDOWS = 10
"""How many windows per query are scored (`max_pred_windows` of the reference)."""

LISTED_WINDOWS = 5
"""How many windows per query recall may look at."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Predicted windows of Q queries.

    Args:
        spans: (Q, K, 2) seconds, best first.
        mask: (Q, K) bool.
        listed: (Q, 5, 2) the windows that recall looks at, in its order.
        listed_mask: (Q, 5) bool.
    """

    spans: Floats
    mask: NDArray[np.bool_]
    listed: Floats
    listed_mask: NDArray[np.bool_]

    def rows(self, keep: NDArray[np.bool_]) -> Ranked:
        """Only the queries that `keep` (Q,) marks."""
        return Ranked(self.spans[keep], self.mask[keep], self.listed[keep], self.listed_mask[keep])


def ranked(predicted: Ragged, mode: Mode) -> Ranked:
    """Cut and order the predicted windows, rows of `(start_s, end_s, score)`."""
    if mode == "strict":
        predicted = predicted.ordered(-predicted.flat[:, 2])
    windows, mask = predicted.padded(KEPT_WINDOWS), predicted.mask(KEPT_WINDOWS)
    order = np.argsort(np.where(mask, -windows[..., 2], np.inf), axis=1, kind="stable")
    best = np.take_along_axis(windows, order[..., None], axis=1)
    return Ranked(
        best[..., :2],
        np.take_along_axis(mask, order, axis=1),
        windows[:, :LISTED_WINDOWS, :2],
        mask[:, :LISTED_WINDOWS],
    )


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
    for group in _of_similar_size(truth):
        inside, windows = predicted.rows(group), truth.rows(group)
        correct = _match(_comparable_iou(inside, windows, mode), thresholds)
        result[group] = _interpolated(correct, windows.counts)
    counts = predicted.mask.any(axis=1) if mode == "official" else np.ones(len(result), bool)
    return result, np.asarray(counts)


def listed_iou(predicted: Ranked, truth: Ragged, first: int, mode: Mode) -> Floats:
    """IoU of the best pair of one of the first windows and a true one.

    Args:
        predicted: of the same Q queries as `truth`.
        truth: at least one window `(start_s, end_s)` for each query.
        first: how many windows are looked at: 1 for R1 and mIoU, 5 for R5.
        mode: see the module.

    Returns:
        (Q,) in [0, 1]; 0 where nothing is predicted.
    """
    result = np.zeros(len(truth.counts))
    for group in _of_similar_size(truth):
        result[group] = _best_pair(predicted.rows(group), truth.rows(group), first, mode)
    return result


def _of_similar_size(truth: Ragged) -> Iterator[NDArray[np.bool_]]:
    """(Q,) bool each: most queries have one or two true windows; in groups arrays stay small."""
    size = np.ceil(np.log2(np.maximum(truth.counts, 1)))
    for each in np.unique(size):
        yield size == each


def _best_pair(predicted: Ranked, truth: Ragged, first: int, mode: Mode) -> Floats:
    listed, windows = predicted.listed[:, :first], truth.padded()
    iou = cross_iou(listed, windows, mode)
    # numpy's argmax takes a NaN for the highest, as in R1; UniVTG's R5 writes 0 there
    iou = np.where(np.isnan(iou), np.inf if first == 1 else 0.0, iou)
    both = predicted.listed_mask[:, :first, None] & truth.mask()[:, None, :]
    flat = np.where(both, iou, -1.0).reshape(len(listed), -1)
    if mode == "strict":
        return np.asarray(np.maximum(flat.max(axis=1), 0.0))
    best = flat.argmax(axis=1)[:, None, None]
    return _hull_iou(
        np.take_along_axis(listed, best // windows.shape[1], axis=1)[:, 0],
        np.take_along_axis(windows, best % windows.shape[1], axis=1)[:, 0],
    )


def _hull_iou(predicted: Floats, truth: Floats) -> Floats:
    overlap = np.minimum(predicted[:, 1], truth[:, 1]) - np.maximum(predicted[:, 0], truth[:, 0])
    hull = np.maximum(predicted[:, 1], truth[:, 1]) - np.minimum(predicted[:, 0], truth[:, 0])
    overlap = np.maximum(0.0, overlap)
    return np.asarray(np.divide(overlap, hull, out=np.zeros_like(hull), where=hull != 0))


def _comparable_iou(predicted: Ranked, truth: Ragged, mode: Mode) -> Floats:
    """(Q, K, G) IoU for matching: -1 at padding, infinity for NaN, true windows last to first.

    The reference sorts true windows by ascending IoU, NaN last, and reads the result backwards:
    NaN comes first, and among equals the last. Reversed windows let `argmax` do the same. That
    is the reference where numpy sorts in order; with AVX2 or AVX-512 its `argsort` leaves equals
    in another order on each machine, and so does the reference with more than 16 true windows.
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
