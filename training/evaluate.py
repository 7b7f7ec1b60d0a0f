"""Scoring: predictions against annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.annotations.mend import mended
from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics import METRICS, Measured, Mode
from training.predictions import Prediction, in_order

__all__ = ["Found", "measure"]


@dataclass(frozen=True)
class Found:
    """What there is to report.

    Args:
        title: who made the predictions.
        measured: what the metric found out.
        about: further keys of the JSON.
        aliases: see `Measured`; for files of other tools, which may come with scores of theirs.
    """

    title: str
    measured: Measured
    about: dict[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


def measure(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    metrics: str,
    clip_len_s: float,
    mode: Mode = "official",
) -> Measured:
    """What a metric finds out about predictions, which must answer every query exactly once.

    "official" scores the queries as they are; "strict" mends their moments first and leaves out
    queries without one that can be used (`Measured.mending`).

    Args:
        annotations: queries with ground truth, as the annotation file has them.
        predictions: in any order.
        metrics: a name of `METRICS`.
        clip_len_s, mode: see `training.metrics.Metric`.

    Raises:
        UsageError: unknown metrics, predictions of other queries, or nothing to score.
    """
    metric = METRICS.get(metrics)
    answers = in_order(annotations, predictions)
    if mode == "official":
        return metric(annotations, answers, clip_len_s=clip_len_s, mode=mode)
    usable, report = mended(annotations)
    if annotations and not usable:
        raise UsageError(f"mode strict has nothing to score: {'; '.join(report.sentences())}")
    kept = {row.qid for row in usable}
    pairs = zip(annotations, answers, strict=True)
    answers = [answer for row, answer in pairs if row.qid in kept]
    measured = metric(usable, answers, clip_len_s=clip_len_s, mode=mode)
    return replace(measured, mending=report)
