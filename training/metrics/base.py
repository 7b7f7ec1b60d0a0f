"""What a metric is, and the registry of metrics.

A metric measures every query for itself (`Measured`); scores are means of what was measured. So
per-query results, confidence intervals and paired comparisons exist once, for all metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.registry import Registry
from training.metrics.moments import Mode
from training.task import Prediction

__all__ = ["METRICS", "Average", "Columns", "Key", "Measured", "Metric", "Number", "Scores"]

Scores = dict[str, Any]
"""Nested official names to numbers, or None where no query counts."""

Key = tuple[str, ...]
"""Where a number stands in the nesting: ("full", "MR-mAP", "0.5")."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Number:
    """How the reference writes a share: `{scale * share:.{decimals}f}`, which is not `round`."""

    scale: float = 100.0
    decimals: int = 2

    def __call__(self, share: float | np.floating) -> float:
        """The number in the JSON."""
        return float(f"{self.scale * share:.{self.decimals}f}")


@dataclass(frozen=True)
class Columns:
    """Numbers that a mean over queries is taken of.

    Args:
        keys: (C) where each mean goes.
        values: (Q, C), or (Q, C, A) if the mean is also over annotators; whatever stands in rows
            that do not count is never looked at.
        counted: (Q,) bool, the queries that the means are over; with none the number is None.
    """

    keys: tuple[Key, ...]
    values: Floats
    counted: NDArray[np.bool_]

    def means(self) -> dict[Key, float | None]:
        """Means as the references take them, to the last bit."""
        values = self.values[self.counted]
        if not len(values):
            return dict.fromkeys(self.keys)
        if values.ndim == 2:
            return dict(zip(self.keys, values.mean(axis=0).tolist(), strict=True))
        return {key: float(values[:, i].mean()) for i, key in enumerate(self.keys)}

    def per_query(self) -> Floats:
        """(Q, C), NaN where a query does not count."""
        values = self.values if self.values.ndim == 2 else self.values.mean(axis=2)
        return np.where(self.counted[:, None], values, np.nan)

    def weighted(self, weights: Floats) -> Floats:
        """(B, C) means with (B, Q) weights of queries, NaN where the weights of all that count
        are 0."""
        values = self.values if self.values.ndim == 2 else self.values.mean(axis=2)
        chosen = weights[:, self.counted]
        total = chosen.sum(axis=1, keepdims=True)
        found = chosen @ values[self.counted]
        return np.asarray(
            np.divide(found, total, out=np.full_like(found, np.nan), where=total > 0)
        )


@dataclass(frozen=True)
class Average:
    """A number that is the mean of other numbers, before they are rounded."""

    key: Key
    of: tuple[Key, ...]


@dataclass(frozen=True)
class Measured:
    """Everything that a metric found out about the predictions of a split.

    Args:
        annotations: the Q queries, in the order of all rows here.
        columns: what is averaged over queries; no key twice.
        averages: what is averaged over those.
        brief: names of the summary and the numbers that they repeat.
        select: name in `brief` of the number that the public code chooses checkpoints by.
        number: how shares are written.
    """

    annotations: Sequence[Annotation]
    columns: tuple[Columns, ...]
    averages: tuple[Average, ...] = ()
    brief: Mapping[str, Key] = field(default_factory=dict)
    select: str = ""
    number: Number = Number()

    def means(self) -> dict[Key, float | None]:
        """Every number as a share, not rounded."""
        found: dict[Key, float | None] = {}
        for each in self.columns:
            found |= each.means()
        for average in self.averages:
            parts = [found[key] for key in average.of]
            known = [part for part in parts if part is not None]
            complete = bool(known) and len(known) == len(parts)
            found[average.key] = float(np.mean(known)) if complete else None
        return found

    def scores(self) -> Scores:
        """The JSON of the reference: brief first, then every number in its nesting."""
        shares = self.means()
        numbers = {
            key: None if share is None else self.number(share) for key, share in shares.items()
        }
        nested: Scores = {"brief": {name: numbers[key] for name, key in self.brief.items()}}
        for key, number in numbers.items():
            _put(nested, key, number)
        return nested

    def weighted(self, weights: Floats) -> dict[Key, Floats]:
        """Every number as a share, (B,) each, with (B, Q) weights of the queries."""
        found: dict[Key, Floats] = {}
        for each in self.columns:
            means = each.weighted(weights)
            found |= {key: means[:, i] for i, key in enumerate(each.keys)}
        for average in self.averages:
            found[average.key] = np.mean([found[key] for key in average.of], axis=0)
        return found

    def per_query(self) -> Iterator[Scores]:
        """For each query its qid, vid and own shares in [0, 1], None where it does not count."""
        tables = [(each.keys, each.per_query()) for each in self.columns]
        for i, row in enumerate(self.annotations):
            own: dict[Key, float | None] = {}
            for keys, values in tables:
                numbers = values[i].tolist()
                own |= {k: None if v != v else v for k, v in zip(keys, numbers, strict=True)}
            for average in self.averages:
                parts = [part for key in average.of if (part := own[key]) is not None]
                own[average.key] = float(np.mean(parts)) if parts else None
            nested: Scores = {"qid": row.qid, "vid": row.video_id, "query": row.query}
            for key, value in own.items():
                _put(nested, key, value)
            yield nested


class Metric(Protocol):
    """Measures predictions as the evaluator of a dataset does."""

    def __call__(
        self,
        annotations: Sequence[Annotation],
        predictions: Sequence[Prediction],
        *,
        clip_len_s: float,
        mode: Mode = "official",
    ) -> Measured:
        """Measure `predictions`, which answer `annotations` one for one, in the same order.

        Args:
            annotations: queries with ground truth.
            predictions: from `training.predictions.in_order`.
            clip_len_s: length of the clips that carry saliency.
            mode: "official" equals the published evaluator; "strict" has its quirks mended.

        Raises:
            UsageError: no ground truth, or input on which the reference evaluator stops.
        """
        ...


METRICS: Registry[Metric] = Registry("metric")
"""All evaluators; a dataset says which are its own (`Dataset.metrics`)."""


def _put(nested: Scores, key: Key, value: float | None) -> None:
    for name in key[:-1]:
        nested = nested.setdefault(name, {})
    nested[key[-1]] = value
