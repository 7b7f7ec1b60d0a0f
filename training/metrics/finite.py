"""Numbers that a metric can compare."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data.errors import UsageError
from training.metrics.ragged import Ragged
from training.task import Prediction

__all__ = ["check_finite"]


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
