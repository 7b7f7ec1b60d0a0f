"""What a metric is, and the registry of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from data.annotations.types import Annotation
from data.registry import Registry
from training.metrics.moments import Mode
from training.task import Prediction

__all__ = ["METRICS", "Metric", "Scores"]

Scores = dict[str, Any]
"""Nested official names to numbers (percent, two decimals) or None where no query counts."""


class Metric(Protocol):
    """Scores predictions as the evaluator of a dataset does."""

    def __call__(
        self,
        annotations: Sequence[Annotation],
        predictions: Sequence[Prediction],
        *,
        clip_len_s: float,
        mode: Mode = "official",
        extended: bool = False,
    ) -> Scores:
        """Score `predictions`, which answer `annotations` one for one, in the same order.

        Args:
            annotations: queries with ground truth.
            predictions: from `training.predictions.in_order`.
            clip_len_s: length of the clips that carry saliency.
            mode: "official" equals the published evaluator; "strict" has its quirks mended.
            extended: also the keys that other papers' evaluators add.
        """
        ...


METRICS: Registry[Metric] = Registry("dataset with metrics")
