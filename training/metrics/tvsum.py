"""Top-5 mAP of TVSum (Song et al., CVPR 2015), as UMT scores it (Liu et al., CVPR 2022).

For each annotator a clip is positive whose rating is above the (lower) median of that annotator's
ratings of the video. AP looks at the five clips with the highest scores and counts recall among
their own positives: one hit at the first place and four misses are a full 1. The number is the mean
over annotators and videos of a domain; the summary is the mean of the domains.

With one validation video per domain this measures the choice of the checkpoint more than the model:
the mean of the 20 annotators themselves scores 0.843 (specs/evaluator_reference.md §5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from training.metrics.base import METRICS, Measured
from training.metrics.moments import Mode
from training.metrics.ranked_clips import Labels, by_domain, ranked_labels, trapezoid_ap
from training.predictions import Prediction

__all__ = ["tvsum_top5"]

TOP = 5


@METRICS.register("tvsum_top5")
def tvsum_top5(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    clip_len_s: float,
    mode: Mode = "official",
) -> Measured:
    """Top-5 mAP per domain and their mean; see `Metric` for the arguments.

    official: an annotator without a positive clip among the five counts 0, for whatever reason.
    strict: an annotator who has no positive clip at all (who rated all clips alike) says nothing
    and is left out, and so is a video where nobody has one. For lengths and equal scores see
    `ranked_clips`.

    Raises:
        UsageError: clips without labels, predictions without scores, domains for some videos only.
    """
    del clip_len_s  # clips are counted, not timed
    labels = Labels.of(annotations)
    positive = above_median(labels)
    hits = ranked_labels(annotations, predictions, labels, positive, mode)
    found = trapezoid_ap(hits[:, :TOP])
    if mode == "official":
        return by_domain(annotations, found[:, None], np.ones(len(found), np.bool_))
    heard = np.asarray(positive.any(axis=1))
    some = np.asarray(heard.any(axis=1))
    mean = np.where(heard, found, 0.0).sum(axis=1) / np.maximum(heard.sum(axis=1), 1)
    return by_domain(annotations, mean[:, None], some)


def above_median(labels: Labels) -> NDArray[np.bool_]:
    """(Q, N, A) ratings above the annotator's median; of an even number the lower middle one."""
    ratings = np.where(labels.inside[..., None], labels.ratings, np.inf)
    middle = ((labels.clips - 1) // 2)[:, None, None]
    median = np.take_along_axis(np.sort(ratings, axis=1), middle, axis=1)
    return np.asarray((ratings > median) & labels.inside[..., None])
