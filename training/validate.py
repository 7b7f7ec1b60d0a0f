"""A model on a split: its predictions, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from training.data import Order, Queries
from training.metrics import Scores
from training.predictions import Prediction, rounded
from training.task import MomentTask

__all__ = ["Evaluation", "Validator", "predict"]


@dataclass(frozen=True)
class Evaluation:
    """Scores, and the predictions that earned them, rounded as in a submission."""

    scores: Scores
    predictions: Sequence[Prediction]


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
