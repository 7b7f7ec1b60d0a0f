"""Metrics by dataset. Each scores the predictions of all queries of a split.

METRICS.get("qvhighlights")(annotations, predictions, mode="official")
"""

from __future__ import annotations

from training.metrics.base import METRICS, Metric, Scores
from training.metrics.moments import Mode
from training.metrics.qvhighlights import qvhighlights

__all__ = ["METRICS", "Metric", "Mode", "Scores", "qvhighlights"]
