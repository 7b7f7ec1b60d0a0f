"""Faults of the annotations are found before training, by scoring made-up predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.annotations.types import Annotation
from data.errors import UsageError, nearest
from training.metrics import Measured
from training.split import Split
from training.task import Prediction, QueryInfo

__all__ = ["rehearse"]


def rehearse(
    train: Split,
    scored: Split,
    measure: Callable[[Sequence[Prediction]], Measured],
    select: str | None,
) -> str:
    """Whether there is something to learn, and whether what is learned can be scored.

    Args:
        train: the training split.
        scored: the split that chooses the best epoch.
        measure: its metrics.
        select: the brief metric that is asked for; None: what public code chooses by.

    Returns:
        The brief metric that chooses the best epoch.

    Raises:
        UsageError: training queries without ground truth; annotations on which the metrics stop;
            a metric that is unknown, or that no query counts in.
    """
    blind = [each.qid for each in train.annotations if not _teaches(each)]
    if blind:
        raise UsageError(
            f"{len(blind)} queries of split '{train.name}' have no ground-truth moment and no "
            f"saliency (first: {blind[0]}); nothing can be learned from them"
        )
    measured = measure([_made_up(query) for query in scored.infos()])
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


def _made_up(query: QueryInfo) -> Prediction:
    saliency = query.saliency((0.0,) * query.grid.n)
    return Prediction(query.qid, query.query, query.video_id, ((0.0, 1.0, 1.0),), saliency)
