"""Evaluators by name. Each measures the predictions of all queries of a split.

METRICS.get("mr_hd")(annotations, predictions, clip_len_s=2.0, mode="official").scores()
"""

from __future__ import annotations

from training.metrics import (  # noqa: F401 (they register themselves)
    mr_hd,
    tsg,
    tsg_discounted,
    tvsum,
    youtube,
)
from training.metrics.base import METRICS, Measured, Metric, Scores
from training.metrics.moments import Mode

__all__ = ["METRICS", "Measured", "Metric", "Mode", "Scores"]
