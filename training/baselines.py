"""The blind baseline: what can be scored without looking at any video or reading any query.

Ten windows, chosen on the training split in units of the video's grid, answer every query; the
saliency of a clip is the mean training label at its relative position. A model that does not beat
this has learned where moments tend to be, not what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.batch import QueryTruth
from training.predictions import Prediction
from training.task import QueryInfo

__all__ = ["BlindBaseline"]

Floats = NDArray[np.float64]

BINS = 32
"""Resolution, in parts of a video, of candidate windows and of the saliency prior."""

ENOUGH_IOU = 0.5
"""A window covers a moment from this IoU on: what R1@0.5 asks for."""


@dataclass(frozen=True)
class BlindBaseline:
    """Windows and saliency by position alone.

    Args:
        windows: (W, 3) of (start, end, score), start and end in [0, 1] of the grid, best first,
            none where no training query has a moment; the score is the share of training moments
            that this window covers first.
        saliency: (BINS,) mean training label by relative position.
    """

    windows: Floats
    saliency: Floats

    @classmethod
    def fit(cls, truths: Sequence[QueryTruth], count: int = 10) -> BlindBaseline:
        """Choose the windows that cover most training moments, each where the others do not.

        Args:
            truths: ground truth of the training queries.
            count: number of windows.
        """
        saliency = _mean_by_position([each.saliency for each in truths])
        if not any(len(each.spans) for each in truths):
            return cls(np.zeros((0, 3)), saliency)
        centre, width = np.concatenate([each.spans for each in truths]).astype(np.float64).T
        moments = np.stack([centre - width / 2, centre + width / 2], axis=1)
        edges = np.arange(BINS + 1) / BINS
        start, end = np.triu_indices(BINS + 1, k=1)
        candidates = np.stack([edges[start], edges[end]], axis=1)
        iou = _iou(candidates, moments)
        iou[iou < ENOUGH_IOU] = 0.0

        left, rows = np.ones(len(moments), bool), []
        for _ in range(count):
            gains = (iou[:, left] > 0).sum(axis=1)
            # among windows that cover equally many, the closest one; where nothing is left to
            # cover, the window that alone covers best
            best = int(np.lexsort((iou.sum(axis=1), iou[:, left].sum(axis=1), gains))[-1])
            rows.append([*candidates[best], gains[best] / len(moments)])
            left &= iou[best] == 0
            iou[best] = 0.0
        return cls(np.asarray(rows), saliency)

    def predict(self, query: QueryInfo) -> Prediction:
        """The same windows for every query, in seconds of its video."""
        grid_s = query.grid.n * query.grid.clip_len_s
        scaled = self.windows * [grid_s, grid_s, 1.0]
        position = (np.arange(query.grid.n) + 0.5) / query.grid.n
        saliency = np.interp(position, _centres(BINS), self.saliency)
        return Prediction(
            query.qid,
            query.query,
            query.video_id,
            tuple((start, end, score) for start, end, score in scaled.tolist()),
            query.saliency(saliency.tolist()),
        )


def _iou(first: Floats, second: Floats) -> Floats:
    start = np.maximum(first[:, None, 0], second[None, :, 0])
    end = np.minimum(first[:, None, 1], second[None, :, 1])
    overlap = np.maximum(end - start, 0.0)
    lengths = (first[:, 1] - first[:, 0])[:, None] + (second[:, 1] - second[:, 0])[None]
    return np.asarray(overlap / (lengths - overlap))


def _mean_by_position(labels: Sequence[NDArray[np.float32]]) -> Floats:
    rows = [np.interp(_centres(BINS), _centres(len(each)), each) for each in labels]
    return np.asarray(np.mean(rows, axis=0))


def _centres(count: int) -> Floats:
    return (np.arange(count) + 0.5) / count
