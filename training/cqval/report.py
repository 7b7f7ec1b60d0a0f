"""Scores of predictions on the twelve splits, as LMR's Table IV has them.

Every number is measured again on the queries of its split by the evaluator of moment_detr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import UsageError, nearest
from training.cqval.build import Queries, Splits
from training.cqval.published import PUBLISHED_SIZES, TABLE_IV, THRESHOLDS, Threshold
from training.evaluate import measure
from training.metrics import Measured, Mode
from training.metrics.base import Key, Number
from training.metrics.uncertainty import Interval, Resampling, intervals
from training.predictions import Prediction, in_order

__all__ = ["Report", "Row", "report"]

EVALUATOR = "mr_hd"
"""That of QVHighlights, which C-QVal is a part of."""

HITS = "R1@0.7"
"""Whose hits are counted: a share of n queries that everybody can check."""

_PERCENT = Number()


@dataclass(frozen=True)
class Row:
    """One split.

    Args:
        least: its threshold.
        queries: how many are scored.
        hits: queries whose first moment has an IoU of 0.7 and more; None without queries.
        percent: metric to percent, as the evaluator writes it; None without queries.
        shares: the same as shares, not rounded.
        intervals: metric to `(low, high)` percent; empty if not asked for.
        scores: everything that the evaluator says of the split; None without queries.
    """

    least: Threshold
    queries: int
    hits: int | None
    percent: Mapping[str, float | None]
    shares: Mapping[str, float | None]
    intervals: Mapping[str, Interval]
    scores: Mapping[str, Any] | None


@dataclass(frozen=True)
class Report:
    """The table.

    Args:
        splits: what was scored on.
        mode: of the evaluator.
        metrics: names of the shown metrics.
        rows: one per split.
        resampling: how intervals were made; None without.
    """

    splits: Splits
    mode: Mode
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    resampling: Resampling | None

    @property
    def same_sizes(self) -> bool:
        """Whether all splits have the published sizes; their queries may still be others."""
        return self.splits.published and self.splits.sizes == PUBLISHED_SIZES

    def average(self, metric: str) -> float | None:
        """Mean over the twelve splits in percent; None if one of them has no number."""
        shares = [row.shares[metric] for row in self.rows]
        known = [share for share in shares if share is not None]
        return _PERCENT(np.mean(known)) if len(known) == len(shares) else None

    def to_json(self) -> dict[str, Any]:
        """For machines: every score of every split, and what was published."""
        how = self.resampling
        return {
            "name": self.splits.name,
            "mode": self.mode,
            "evaluator": EVALUATOR,
            "parser": dict(self.splits.parser),
            "clause_labels": self.splits.clause_labels,
            "word_rule": self.splits.word_rule,
            "annotations_sha256": self.splits.sha256,
            "resampling": how and {"level": how.level, "samples": how.samples, "unit": how.unit},
            "splits": [_row_json(row) for row in self.rows],
            "average": {name: self.average(name) for name in self.metrics},
            "published": {
                "source": "LMR, arXiv 2405.12540, Table IV",
                "sizes": PUBLISHED_SIZES,
                "same_sizes": self.same_sizes,
                "same_queries": None,  # LMR's list of queries is not public
                **TABLE_IV,
            },
        }


def report(
    splits: Splits,
    queries: Queries,
    predictions: Sequence[Prediction],
    *,
    clip_len_s: float,
    mode: Mode = "official",
    metrics: Sequence[str] = tuple(TABLE_IV),
    resampling: Resampling | None = None,
) -> Report:
    """Score predictions on each of the twelve splits.

    Args:
        splits: from `read_splits`.
        queries: the annotations that the splits were made of.
        predictions: for all of these queries, in any order.
        clip_len_s: of the clips with saliency.
        mode: see `training.metrics.Metric`.
        metrics: what to show: "R1@0.5", "mAP@average", "mIoU", ...
        resampling: how to make intervals; None makes none.

    Raises:
        UsageError: splits of other annotations, predictions of other queries, unknown metrics.
    """
    _check_same(splits, queries)
    answers = in_order(queries.annotations, predictions)
    rows = []
    for least in THRESHOLDS:
        inside = np.flatnonzero(splits.inside(least)).tolist()
        if not inside:
            empty = dict.fromkeys(metrics)
            rows.append(Row(least, 0, None, empty, empty, {}, None))
            continue
        measured = measure(
            [queries.annotations[i] for i in inside],
            [answers[i] for i in inside],
            metrics=EVALUATOR,
            clip_len_s=clip_len_s,
            mode=mode,
        )
        rows.append(_row(least, measured, metrics, resampling))
    return Report(splits, mode, tuple(metrics), tuple(rows), resampling)


def _check_same(splits: Splits, queries: Queries) -> None:
    if splits.sha256 != queries.sha256:
        raise UsageError(
            f"the splits were made of another annotation file: {splits.file} with sha256 "
            f"{splits.sha256[:16]}..., and {queries.file} has {queries.sha256[:16]}...; score on "
            "the same file, or build the splits again"
        )
    if list(splits.qids) != [each.qid for each in queries.annotations]:
        raise UsageError(
            f"the splits hold other queries than {queries.file}, or in another order; build them "
            "again"
        )


def _row(
    least: Threshold, measured: Measured, metrics: Sequence[str], resampling: Resampling | None
) -> Row:
    means = measured.means()
    keys = _keys(means, metrics)
    shares = {name: means[keys[name]] for name in metrics}
    ranges = intervals(measured, resampling) if resampling else {}
    recall = means[_names(means)[HITS]]
    return Row(
        least=least,
        queries=len(measured.annotations),
        hits=None if recall is None else round(recall * len(measured.annotations)),
        percent={
            name: None if share is None else measured.number(share)
            for name, share in shares.items()
        },
        shares=shares,
        intervals={name: _percent(ranges[keys[name]]) for name in metrics} if ranges else {},
        scores=measured.scores(),
    )


def _names(means: Mapping[Key, float | None]) -> dict[str, Key]:
    """Short names of the numbers on all moments: "R1@0.7" is `("full", "MR-R1", "0.7")`."""
    return {"@".join(key[1:]).removeprefix("MR-"): key for key in means if key[0] == "full"}


def _keys(means: Mapping[Key, float | None], metrics: Sequence[str]) -> dict[str, Key]:
    names = _names(means)
    for each in metrics:
        if each not in names:
            raise UsageError(f"unknown metric '{each}'; {nearest(each, names)}")
    return {each: names[each] for each in metrics}


def _percent(interval: Interval) -> Interval:
    return None if interval is None else (_PERCENT(interval[0]), _PERCENT(interval[1]))


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "clauses": row.least.clauses,
        "words": row.least.words,
        "queries": row.queries,
        f"hits {HITS}": row.hits,
        "percent": dict(row.percent),
        "intervals": dict(row.intervals),
        "scores": row.scores,
    }
