"""What a metric is, and the registry of metrics.

A metric measures every query for itself (`Measured`); scores are means of what was measured. So
per-query results, confidence intervals and paired comparisons exist once, for all metrics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.annotations.mend import MendReport
from data.annotations.types import Annotation
from data.errors import UsageError
from data.registry import Registry
from training.metrics.moments import Mode
from training.predictions import Prediction

__all__ = ["METRICS", "Average", "Columns", "Key", "Measured", "Metric", "Number", "Scores", "put"]

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
        found = (np.ascontiguousarray(values[:, i]).mean() for i in range(len(self.keys)))
        return dict(zip(self.keys, map(float, found), strict=True))

    @property
    def shares(self) -> Floats:
        """(Q, C), the mean over annotators where there are any."""
        return self.values if self.values.ndim == 2 else self.values.mean(axis=2)

    def per_query(self) -> Floats:
        """(Q, C), NaN where a query does not count."""
        return np.where(self.counted[:, None], self.shares, np.nan)

    def weighted(self, weights: Floats) -> Floats:
        """(B, C) means with (B, Q) weights of queries, NaN where the weights of all that count
        are 0."""
        chosen = weights[:, self.counted]
        total = chosen.sum(axis=1, keepdims=True)
        found = chosen @ self.shares[self.counted]
        return np.asarray(np.divide(found, total, out=np.full_like(found, np.nan), where=total > 0))

    def signed(self, signs: Floats) -> Floats:
        """(B, C) means where query q has (B, Q) `signs` in front; NaN where no query counts."""
        count = int(self.counted.sum())
        found = signs[:, self.counted] @ self.shares[self.counted]
        return np.asarray(found / count if count else np.full_like(found, np.nan))

    def only(self, keys: Collection[Key]) -> Columns:
        """The columns of these keys."""
        kept = [i for i, key in enumerate(self.keys) if key in keys]
        return Columns(tuple(self.keys[i] for i in kept), self.values[:, kept], self.counted)


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
        aliases: further names in the JSON's `brief`, and the names there that they repeat.
        notes: what a reader of the numbers must know, in sentences.
        mending: what was done to the true moments before, where the mode is "strict".
    """

    annotations: Sequence[Annotation]
    columns: tuple[Columns, ...]
    averages: tuple[Average, ...] = ()
    brief: Mapping[str, Key] = field(default_factory=dict)
    select: str = ""
    number: Number = Number()
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    mending: MendReport | None = None

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
            put(nested, key, number)
        return nested

    def weighted(self, weights: Floats) -> dict[Key, Floats]:
        """Every number as a share, (B,) each, with (B, Q) weights of the queries."""
        return self._complete([each.weighted(weights) for each in self.columns])

    def signed(self, signs: Floats) -> dict[Key, Floats]:
        """Every number as a share, (B,) each, with (B, Q) signs in front of the queries' own."""
        return self._complete([each.signed(signs) for each in self.columns])

    def table(self) -> dict[Key, Floats]:
        """Every number for each query by itself, (Q,) shares; NaN where it does not count."""
        columns = [each.per_query() for each in self.columns]
        found = _by_key(self.columns, columns)
        for average in self.averages:
            parts = np.stack([found[key] for key in average.of])
            known = ~np.isnan(parts)
            total, count = np.where(known, parts, 0.0).sum(axis=0), known.sum(axis=0)
            nothing = np.full_like(total, np.nan)
            found[average.key] = np.divide(total, count, out=nothing, where=count > 0)
        return found

    def per_query(self) -> Iterator[Scores]:
        """For each query its qid, vid, query and own share of each number of `brief`.

        Shares are in [0, 1], and None where the query does not count.
        """
        found = self.summary().table()
        columns = [found[key].tolist() for key in self.brief.values()]
        for row, *shares in zip(self.annotations, *columns, strict=True):
            own = (None if share != share else share for share in shares)
            yield {
                "qid": row.qid,
                "vid": row.video_id,
                "query": row.query,
                **dict(zip(self.brief, own, strict=True)),
            }

    def summary(self) -> Measured:
        """Only what the numbers of `brief` are made of."""
        wanted = set(self.brief.values())
        averages = tuple(each for each in self.averages if each.key in wanted)
        wanted |= {key for each in averages for key in each.of}
        columns = [each.only(wanted) for each in self.columns]
        return replace(
            self, columns=tuple(each for each in columns if each.keys), averages=averages
        )

    def minus(self, other: Measured) -> Measured:
        """What is between two measurements of the same queries by the same metric.

        Numbers that only one of them has are left out.

        Raises:
            UsageError: the two do not count the same queries.
        """
        theirs = {each.keys: each for each in other.columns}
        columns = tuple(
            Columns(each.keys, each.values - theirs[each.keys].values, _same(each, theirs))
            for each in self.columns
            if each.keys in theirs
        )
        known = {key for each in columns for key in each.keys}
        averages = tuple(each for each in self.averages if known.issuperset(each.of))
        known |= {each.key for each in averages}
        brief = {name: key for name, key in self.brief.items() if key in known}
        return replace(self, columns=columns, averages=averages, brief=brief)

    def _complete(self, columns: Sequence[Floats]) -> dict[Key, Floats]:
        found = _by_key(self.columns, columns)
        for average in self.averages:
            found[average.key] = np.mean([found[key] for key in average.of], axis=0)
        return found


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


def _by_key(columns: Sequence[Columns], values: Sequence[Floats]) -> dict[Key, Floats]:
    return {
        key: numbers[:, i]
        for each, numbers in zip(columns, values, strict=True)
        for i, key in enumerate(each.keys)
    }


def _same(one: Columns, others: Mapping[tuple[Key, ...], Columns]) -> NDArray[np.bool_]:
    if not np.array_equal(one.counted, others[one.keys].counted):
        raise UsageError(
            f"{'/'.join(one.keys[0])} counts {one.counted.sum()} queries of one file and others of "
            "the second; use mode strict, which counts every query"
        )
    return one.counted


def put(nested: Scores, key: Key, value: object) -> None:
    """Write a value to its place in the nesting."""
    for name in key[:-1]:
        nested = nested.setdefault(name, {})
    nested[key[-1]] = value
