"""A measurement of one number, made from the shares of its queries."""

from __future__ import annotations

import numpy as np

from data.annotations.types import Annotation
from training.metrics import Measured
from training.metrics.base import Columns

__all__ = ["measured"]


def measured(
    shares: list[float], videos: list[int] | None = None, counted: list[bool] | None = None
) -> Measured:
    """One number, "score", that each query has its own share of."""
    videos = videos if videos is not None else list(range(len(shares)))
    rows = [Annotation(qid, "q", f"v{video}", 10.0) for qid, video in enumerate(videos)]
    inside = np.ones(len(shares), bool) if counted is None else np.asarray(counted)
    columns = Columns((("score",),), np.asarray(shares, float)[:, None], inside)
    return Measured(rows, (columns,), (), {"score": ("score",)}, "score")
