"""How far a score may be off because the split has only so many videos: bootstrap intervals.

The queries of one video share its difficulty, so videos are drawn, with all their queries (a
cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and their Application", 1997, §3.8).
Drawing queries as if they were independent gives intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics.base import Key, Measured, Scores, put

__all__ = [
    "Interval",
    "Resampling",
    "Unit",
    "intervals",
    "intervals_json",
    "unit_index",
    "weight_blocks",
]

Unit = Literal["video", "query"]
"""What is drawn: videos with all their queries, or queries."""

Interval = tuple[float, float] | None
"""Two shares; None where there is no number."""

Floats = NDArray[np.float64]

CELLS = 1 << 22
"""Weights in memory at once."""

DEFINED = 0.95
"""Share of samples that must have a number for it to get an interval."""

UNIT_OF: Mapping[Unit, Callable[[Annotation], object]] = {
    "video": lambda row: row.video_id,
    "query": lambda row: (type(row.qid), row.qid),
}


@dataclass(frozen=True)
class Resampling:
    """How intervals are made.

    Args:
        samples: how often the split is drawn again; the ends are quantiles of so many scores.
        level: how often such an interval shall hold the true value, in (0, 1).
        unit: what is drawn.
        seed: the same seed gives the same interval.

    Raises:
        UsageError: a value that makes no sense.
    """

    samples: int = 2000
    level: float = 0.95
    unit: Unit = "video"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UsageError(f"the level of an interval is above 0 and below 1, got {self.level}")
        least = round(2 / (1 - self.level), 6)
        if self.samples < least:
            raise UsageError(
                f"{self.samples} samples are too few for a level of {self.level}; at least "
                f"{least:g}, better 50 times as many"
            )
        if self.seed < 0:
            raise UsageError(f"a seed is 0 or above, got {self.seed}")


def unit_index(annotations: Sequence[Annotation], unit: Unit) -> NDArray[np.int64]:
    """(Q,) which unit each query belongs to, counted from 0 in order of appearance."""
    number: dict[object, int] = {}
    name = UNIT_OF[unit]
    found = [number.setdefault(name(row), len(number)) for row in annotations]
    return np.asarray(found, np.int64)


def weight_blocks(index: NDArray[np.int64], how: Resampling) -> Iterator[Floats]:
    """(B, Q) how often each query was drawn, for all samples, block after block."""
    rng = np.random.default_rng(how.seed)
    units = int(index.max()) + 1
    rows = max(1, CELLS // len(index))
    for start in range(0, how.samples, rows):
        count = min(rows, how.samples - start)
        drawn = rng.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        yield times[:, index].astype(np.float64)


def intervals(measured: Measured, how: Resampling) -> dict[Key, Interval]:
    """Percentile intervals of every number, as shares.

    None where more than one sample in twenty has no number: it rests on about three videos or
    fewer (a length range, a domain), and they cannot say how others would vary.
    """
    index = unit_index(measured.annotations, how.unit)
    blocks = [measured.weighted(weights) for weights in weight_blocks(index, how)]
    return {key: _quantiles([block[key] for block in blocks], how.level) for key in blocks[0]}


def intervals_json(measured: Measured, how: Resampling) -> Scores:
    """What was done, and `[low, high]` of every number, in the nesting of `Measured.scores`."""
    found = {key: _numbers(measured, pair) for key, pair in intervals(measured, how).items()}
    nested: Scores = {
        "level": how.level,
        "samples": how.samples,
        "unit": how.unit,
        "units": int(unit_index(measured.annotations, how.unit).max()) + 1,
        "seed": how.seed,
        "brief": {name: found[key] for name, key in measured.brief.items()},
    }
    for key, pair in found.items():
        put(nested, key, pair)
    return nested


def _quantiles(parts: Sequence[Floats], level: float) -> Interval:
    values = np.concatenate(parts)
    known = values[~np.isnan(values)]
    if len(known) < DEFINED * len(values):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _numbers(measured: Measured, pair: Interval) -> list[float] | None:
    return None if pair is None else [measured.number(end) for end in pair]
