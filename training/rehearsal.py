"""Faults of the annotations are found before training, by scoring made-up predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.annotations import Ratings
from data.annotations.types import Annotation
from data.errors import UsageError, nearest
from training.batch import SUMS
from training.metrics import Measured
from training.predictions import Prediction
from training.split import Split
from training.task import QueryInfo

__all__ = ["rehearse"]


def rehearse(
    train: Split,
    scored: Split,
    measure: Callable[[Sequence[Prediction]], Measured],
    select: str | None,
    ratings: Ratings = SUMS,
) -> str:
    """Whether there is something to learn, and whether what is learned can be scored.

    Args:
        train: the training split.
        scored: the split that chooses the best epoch.
        measure: its metrics.
        select: the brief metric that is asked for; None: what public code chooses by.
        ratings: how the scores of annotators become labels.

    Returns:
        The brief metric that chooses the best epoch.

    Raises:
        UsageError: training queries without ground truth, or none with anything to find;
            annotations on which the metrics stop; a metric that is unknown, or that no query
            counts in.
    """
    blind = [each.qid for each in train.annotations if not _teaches(each)]
    if blind:
        raise UsageError(
            f"{len(blind)} queries of split '{train.name}' have no ground-truth moment and no "
            f"saliency (first: {blind[0]}); nothing can be learned from them"
        )
    if not any(truth and truth.teaches for truth in train.truths(ratings)):
        raise UsageError(
            f"no query of split '{train.name}' has a moment on the grid of its video, or rated "
            "clips of different labels; nothing can be learned from them. See `trainer lint`, and "
            "data.max_clips if it is set"
        )
    measured = _measured(train, scored, measure)
    select, brief = select or measured.select, measured.scores()["brief"]
    if select not in brief:
        raise UsageError(f"eval.select: unknown metric '{select}'; {nearest(select, brief)}")
    if brief[select] is None:
        counting = [name for name, value in brief.items() if value is not None]
        raise UsageError(
            f"eval.select={select}: no query of split '{scored.name}' counts in this metric; "
            f"choose another: {', '.join(counting) or 'none does'}"
        )
    return select


def _teaches(row: Annotation) -> bool:
    """Whether a query has a moment or, for highlight detection alone, saliency labels."""
    return bool(row.saliency) if row.windows is None else bool(row.windows)


def _measured(
    train: Split, scored: Split, measure: Callable[[Sequence[Prediction]], Measured]
) -> Measured:
    """Measure predictions of the kind that the model will make."""
    moments = any(row.windows is not None for row in train.annotations)
    try:
        return measure([_made_up(query, moments=moments) for query in scored.infos()])
    except UsageError as error:
        if moments:
            raise
        raise UsageError(
            f"split '{train.name}' rates clips and has no moments, so that its model predicts "
            f"none, and split '{scored.name}' cannot be scored without: {error}"
        ) from None


def _made_up(query: QueryInfo, *, moments: bool) -> Prediction:
    windows = ((0.0, 1.0, 1.0),) if moments else ()
    saliency = query.saliency((0.0,) * query.grid.n)
    return Prediction(query.qid, query.query, query.video_id, windows, saliency)
