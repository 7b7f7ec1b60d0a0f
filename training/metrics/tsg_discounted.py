"""Discounted recall dR@n,IoU@m: recall that falls with the distance of the predicted edges.

Yuan et al., "A Closer Look at Temporal Sentence Grounding in Videos: Dataset and Metric"
(https://arxiv.org/abs/2101.09028), the paper of Charades-CD and ActivityNet-CD:

    dR@n,IoU@m = 1/N · Σ_i r(n, m, q_i) · α_i^s · α_i^e,   α_i^* = 1 - |p_i^* - g_i^*|

where r is 1 if one of the first n windows has an IoU above m, and p, g are the predicted and true
start (s) and end (e), divided by the length of the video. The repository of the paper
(yytzsy/grounding_changing_distribution) has the splits and no evaluator, so there are no published
digits to equal: this is the formula. It does not say which of n > 1 windows p is; here the one with
the highest IoU, the first among equals. mode "strict":

- α is never below 0: two edges further away than the video is long would multiply to a large
  positive number.
- a hit has at least the threshold; windows are ranked by score; and the rest as in `tsg`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics.base import METRICS, Columns, Key, Measured
from training.metrics.moments import Mode
from training.metrics.ragged import Ragged
from training.metrics.tsg import THRESHOLDS, best_windows, plain_iou, true_moments
from training.predictions import Prediction

__all__ = ["tsg_discounted"]

Floats = NDArray[np.float64]

LISTS = (1, 5)
"""How many windows are looked at: n of dR@n."""


@METRICS.register("tsg_discounted")
def tsg_discounted(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    clip_len_s: float,
    mode: Mode = "official",
) -> Measured:
    """`dR1@0.1` to `dR5@0.9`, plain `R1@…`, `R5@…` and mIoU in percent; see `Metric`.

    R5 of predictions with one window each equals R1.

    Raises:
        UsageError: as `tsg`; also a query without a duration.
    """
    del clip_len_s  # windows are in seconds
    truth = true_moments(annotations, mode)
    found = best_windows(predictions, max(LISTS), mode)
    duration_s = _durations(annotations)
    keys: list[Key] = []
    values: list[Floats] = []
    for most in LISTS:
        iou, discount = _best(found, truth, most, duration_s, mode)
        for name in THRESHOLDS:
            hit = iou > float(name) if mode == "official" else iou >= float(name)
            keys += [(f"dR{most}@{name}",), (f"R{most}@{name}",)]
            values += [hit * discount, hit.astype(np.float64)]
        if most == 1:
            keys.append(("mIoU",))
            values.append(iou)
    columns = Columns(tuple(keys), np.column_stack(values), np.ones(len(annotations), np.bool_))
    shown = ("dR1@0.3", "dR1@0.5", "dR1@0.7", "R1@0.3", "R1@0.5", "R1@0.7", "mIoU")
    return Measured(annotations, (columns,), (), {name: (name,) for name in shown}, "dR1@0.5")


def _best(
    found: Ragged, truth: Ragged, most: int, duration_s: Floats, mode: Mode
) -> tuple[Floats, Floats]:
    """(Q,) IoU of the best pair among the first `most` windows, and (Q,) its α^s · α^e."""
    windows, moments = found.padded(most), truth.padded()
    both = found.mask(most)[:, :, None] & truth.mask()[:, None]
    iou = np.where(both, plain_iou(windows, moments, 0.0), -1.0).reshape(len(windows), -1)
    best, rows = iou.argmax(axis=1), np.arange(len(iou))
    window, moment = np.divmod(best, moments.shape[1])
    distance_s = np.abs(windows[rows, window] - moments[rows, moment])
    near = 1 - distance_s / duration_s[:, None]
    discount = (np.maximum(near, 0.0) if mode == "strict" else near).prod(axis=1)
    return np.maximum(iou[rows, best], 0.0), np.asarray(discount)


def _durations(annotations: Sequence[Annotation]) -> Floats:
    without = [each.qid for each in annotations if not each.duration_s]
    if without:
        raise UsageError(
            f"{len(without)} queries have no duration (first: {without[0]}); the discount divides "
            "by the length of the video. The metric `tsg` needs none"
        )
    return np.asarray([each.duration_s for each in annotations], np.float64)
