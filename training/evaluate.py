"""Scoring: predictions against annotations, and a model on a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from data.annotations.types import Annotation
from data.errors import UsageError
from training.data import Order, Queries
from training.metrics import METRICS, Mode, Scores
from training.predictions import in_order, rounded
from training.task import MomentTask, Prediction

__all__ = ["Evaluation", "Validator", "check_disjoint", "predict", "score"]


@dataclass(frozen=True)
class Evaluation:
    """Scores, and the predictions that earned them, rounded as in a submission."""

    scores: Scores
    predictions: Sequence[Prediction]


def score(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    metrics: str,
    clip_len_s: float,
    mode: Mode = "official",
    extended: bool = False,
) -> Scores:
    """Scores of predictions, which must answer every annotated query exactly once.

    Args:
        annotations: queries with ground truth.
        predictions: in any order.
        metrics: whose official metrics, a name of `METRICS`.
        clip_len_s, mode, extended: see `training.metrics.Metric`.

    Raises:
        UsageError: unknown metrics, or predictions of other queries.
    """
    metric = METRICS.get(metrics)
    answers = in_order(annotations, predictions)
    return metric(annotations, answers, clip_len_s=clip_len_s, mode=mode, extended=extended)


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


def check_disjoint(
    trained: Sequence[Annotation], scored: Sequence[Annotation], split: str, *, allow: bool
) -> str | None:
    """Refuse to score a model on videos that it was trained on.

    Args:
        trained: annotations of the training split.
        scored: annotations of the split to score.
        split: its name, for the message.
        allow: only describe the overlap.

    Returns:
        A sentence about the overlap that was allowed; None if there is none.

    Raises:
        UsageError: videos are shared and `allow` is off.
    """
    shared = sorted({each.video_id for each in trained} & {each.video_id for each in scored})
    if not shared:
        return None
    fact = (
        f"{len(shared)} videos of split '{split}' are in the training split too "
        f"(first: {shared[0]})"
    )
    if not allow:
        raise UsageError(
            f"{fact}; scores on them say nothing about other videos. Choose a split that is "
            "disjoint by video, or pass --allow-overlap"
        )
    return f"{fact}; allowed by --allow-overlap"
