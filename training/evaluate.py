"""Scoring: predictions against annotations, and a model on a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from data.annotations.types import Annotation
from training.data import Order, Queries
from training.metrics import METRICS, Measured, Mode, Scores
from training.predictions import in_order, rounded
from training.task import MomentTask, Prediction

__all__ = ["Evaluation", "Validator", "measure", "predict"]


@dataclass(frozen=True)
class Evaluation:
    """Scores, and the predictions that earned them, rounded as in a submission."""

    scores: Scores
    predictions: Sequence[Prediction]


def measure(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    metrics: str,
    clip_len_s: float,
    mode: Mode = "official",
) -> Measured:
    """What a metric finds out about predictions, which must answer every query exactly once.

    Args:
        annotations: queries with ground truth.
        predictions: in any order.
        metrics: a name of `METRICS`.
        clip_len_s, mode: see `training.metrics.Metric`.

    Raises:
        UsageError: unknown metrics, or predictions of other queries.
    """
    metric = METRICS.get(metrics)
    answers = in_order(annotations, predictions)
    return metric(annotations, answers, clip_len_s=clip_len_s, mode=mode)


def predict(task: MomentTask, queries: Queries, order: Order) -> list[Prediction]:
    """Predictions for a whole split, rounded as a submission is."""
    task.model.eval()
    with torch.inference_mode():
        batches = queries.read(order.batches(0), None)
        return [rounded(each) for batch in batches for each in task.predict(batch)]


@dataclass(frozen=True)
class Validator:
    """Scores a task on a split; called during training.

    Args:
        task: whose model is scored as it is.
        queries, order: the split.
        score: scores of predictions for the split.
    """

    task: MomentTask
    queries: Queries
    order: Order
    score: Callable[[Sequence[Prediction]], Scores]

    def __call__(self) -> Evaluation:
        """Predictions for the whole split, and their scores."""
        predictions = predict(self.task, self.queries, self.order)
        return Evaluation(self.score(predictions), predictions)
