"""mAP of YouTube Highlights (Sun et al., ECCV 2014), as UMT scores it (Liu et al., CVPR 2022).

A clip is positive if its label is above 0 (`match` of the raw files). AP is over the ranking of all
labelled clips of a video; the number is the mean over the videos of a domain, the summary the mean
of the domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.annotations.types import Annotation
from training.metrics.base import METRICS, Measured
from training.metrics.moments import Mode
from training.metrics.ranked_clips import Labels, by_domain, ranked_labels, trapezoid_ap
from training.predictions import Prediction

__all__ = ["youtube_map"]


@METRICS.register("youtube_map")
def youtube_map(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    clip_len_s: float,
    mode: Mode = "official",
) -> Measured:
    """mAP per domain and their mean; see `Metric` for the arguments.

    official: a video without a positive clip counts 0. strict: it is left out, there is nothing to
    find in it. For lengths and equal scores see `ranked_clips`.

    Raises:
        UsageError: clips without labels, predictions without scores, domains for some videos only.
    """
    del clip_len_s  # clips are those of the annotations
    labels = Labels.of(annotations)
    positive = labels.ratings > 0
    found = trapezoid_ap(ranked_labels(annotations, predictions, labels, positive, mode))
    some = np.asarray(positive.any(axis=(1, 2)))
    counted = some if mode == "strict" else np.ones_like(some)
    return by_domain(annotations, found[:, None], counted)
