"""What a metric can compare: true moments, and numbers that are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics.ragged import Ragged
from training.predictions import Prediction

__all__ = ["check_finite", "check_have_moments"]


def check_finite(values: Ragged, predictions: Sequence[Prediction], what: str) -> None:
    """Refuse NaN and infinity: NaN passes every threshold, a broken model would be perfect.

    Args:
        values: of the predictions, row by row.
        predictions: the rows, for the message.
        what: they are: "windows", "saliency scores".

    Raises:
        UsageError: names the first query.
    """
    flat = values.flat.reshape(len(values.flat), math.prod(values.flat.shape[1:]))
    wrong = ~np.isfinite(flat).all(axis=1)
    if wrong.any():
        queries = np.unique(values.row[wrong])
        raise UsageError(
            f"the predicted {what} of {len(queries)} queries are not finite numbers (first: query "
            f"{predictions[queries[0]].qid}); nothing was scored"
        )


def check_have_moments(annotations: Sequence[Annotation]) -> None:
    """UsageError unless every query has a true moment, and there is a query."""
    blind = [each.qid for each in annotations if not each.windows]
    if blind or not annotations:
        raise UsageError(
            f"{len(blind)} of {len(annotations)} queries have no ground-truth moment"
            + (f" (first: {blind[0]})" if blind else "")
            + "; evaluate on a split with ground truth"
        )
