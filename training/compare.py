"""Is one file of predictions better than another, or was it luck? A paired comparison.

Both answer the same queries, so each number is compared query by query: what the second file has
more than the first. Three answers about the mean of these differences:

- an interval: the bootstrap of `training.metrics.uncertainty`, over differences;
- p: under the hypothesis that it does not matter which of the two files answered a video, the sign
  of all differences of a video may be flipped. p is the share of such flips that give a mean at
  least as far from 0 as the one found (a paired permutation test, two-sided). All flips are tried
  where there are no more of them than `permutations`; else so many are drawn, and p is
  (1 + count) / (1 + permutations), which is never 0 (Phipson and Smyth, 2010);
- p corrected by Holm (1979) for having looked at all numbers of the summary at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, some
from training.metrics.base import Key, Measured, Scores
from training.metrics.uncertainty import CELLS, Interval, Resampling, intervals, unit_index

__all__ = ["Comparison", "Contrast", "PairedTest", "compare", "holm", "per_query"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """How a comparison is made.

    Args:
        resampling: of the intervals; its `unit` is also what changes sign as a whole.
        permutations: how many flips are drawn where there are too many to try all.

    Raises:
        UsageError: no permutation.
    """

    resampling: Resampling = field(default_factory=Resampling)
    permutations: int = 10_000

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise UsageError(f"at least 1 permutation is needed, got {self.permutations}")

    def json(self) -> Scores:
        """The same as plain values."""
        how = self.resampling
        return {
            "level": how.level,
            "samples": how.samples,
            "unit": how.unit,
            "permutations": self.permutations,
            "seed": how.seed,
        }


@dataclass(frozen=True)
class Contrast:
    """One number of both files.

    Args:
        a, b: as each file's evaluation writes them; None where no query counts.
        difference: b - a, of the shares before they are rounded.
        ci: interval of the difference.
        p, p_holm: see the module.
        better, worse, equal: queries that b answers better, worse or equally well, by this number.
    """

    a: float | None
    b: float | None
    difference: float | None
    ci: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    better: int
    worse: int
    equal: int


@dataclass(frozen=True)
class Comparison:
    """All numbers of the summary.

    Args:
        contrasts: by brief name.
        left_out: brief names that only one of the files has.
        units: how many videos (or queries) there are.
        exact: whether all flips were tried.
    """

    contrasts: Mapping[str, Contrast]
    left_out: tuple[str, ...]
    units: int
    exact: bool

    def json(self) -> Scores:
        """The same as plain values."""
        return {
            "units": self.units,
            "exact": self.exact,
            "left_out": list(self.left_out),
            "brief": {name: asdict(each) for name, each in self.contrasts.items()},
        }


def compare(a: Measured, b: Measured, test: PairedTest) -> Comparison:
    """Compare two measurements of the same queries by the same metric.

    Raises:
        UsageError: they do not count the same queries, or have no number in common.
    """
    both = b.summary().minus(a.summary())
    if not both.brief:
        raise UsageError(
            f"the two files have no number in common: A has {some(list(a.brief), 3)}, B has "
            f"{some(list(b.brief), 3)}; compare files that answer the same task"
        )
    index = unit_index(both.annotations, test.resampling.unit)
    shares = both.means()
    bounds = intervals(both, test.resampling)
    p = sign_flip_p(both, index, test)
    corrected = holm(
        {name: found for name, key in both.brief.items() if (found := p[key]) == found}
    )
    each_query = both.table()
    means_a, means_b = a.means(), b.means()
    contrasts = {
        name: Contrast(
            a=_number(a, means_a[key]),
            b=_number(b, means_b[key]),
            difference=_number(both, shares[key]),
            ci=_pair(both, bounds[key]),
            p=p[key] if name in corrected else None,
            p_holm=corrected.get(name),
            **_counts(each_query[key]),
        )
        for name, key in both.brief.items()
    }
    left_out = sorted((a.brief.keys() | b.brief.keys()) - contrasts.keys())
    units = int(index.max()) + 1
    return Comparison(contrasts, tuple(left_out), units, _all_flips(units, test))


def per_query(a: Measured, b: Measured) -> Iterator[Scores]:
    """For each query its qid, vid, query, and of each number the shares of both files and b - a."""
    for one, other in zip(a.per_query(), b.per_query(), strict=True):
        row = {name: one[name] for name in ("qid", "vid", "query")}
        for name in a.brief:
            if name in other:
                x, y = one[name], other[name]
                known = x is not None and y is not None
                row[name] = {"a": x, "b": y, "difference": y - x if known else None}
        yield row


def sign_flip_p(both: Measured, index: NDArray[np.int64], test: PairedTest) -> dict[Key, float]:
    """p of each number of a difference; NaN where no query counts.

    Args:
        both: `b.minus(a)`.
        index: (Q,) the unit of each query.
        test: how many flips.
    """
    found = {
        key: abs(float(mean[0])) for key, mean in both.signed(np.ones((1, len(index)))).items()
    }
    # sums that are equal but were added up in another order must count as equal
    least = {key: value - 1e-12 * max(value, 1e-3) for key, value in found.items()}
    extreme = dict.fromkeys(found, 0)
    flips = 0
    for signs in _signs(int(index.max()) + 1, len(index), test):
        flips += len(signs)
        for key, means in both.signed(signs[:, index].astype(np.float64)).items():
            extreme[key] += int((np.abs(means) >= least[key]).sum())
    drawn = 0 if _all_flips(int(index.max()) + 1, test) else 1
    return {
        key: (count + drawn) / (flips + drawn) if found[key] == found[key] else float("nan")
        for key, count in extreme.items()
    }


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: the chance that any true hypothesis is rejected stays below a
    level, whatever the dependence between the tests."""
    ordered = sorted(p, key=lambda name: p[name])
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p[name]))
        corrected[name] = highest
    return corrected


def _signs(units: int, queries: int, test: PairedTest) -> Iterator[NDArray[np.int8]]:
    """(B, units) of -1 and 1, block after block."""
    rows = max(1, CELLS // queries)
    if _all_flips(units, test):
        for start in range(0, 1 << units, rows):
            number = np.arange(start, min(start + rows, 1 << units))[:, None]
            yield (1 - 2 * ((number >> np.arange(units)) & 1)).astype(np.int8)
        return
    rng = np.random.default_rng(test.resampling.seed)
    for start in range(0, test.permutations, rows):
        shape = (min(rows, test.permutations - start), units)
        yield rng.integers(0, 2, shape, dtype=np.int8) * 2 - 1


def _all_flips(units: int, test: PairedTest) -> bool:
    return units < 60 and 1 << units <= test.permutations


def _counts(differences: Floats) -> dict[str, int]:
    known = differences[~np.isnan(differences)]
    better, worse = int((known > 1e-12).sum()), int((known < -1e-12).sum())
    return {"better": better, "worse": worse, "equal": len(known) - better - worse}


def _number(measured: Measured, share: float | None) -> float | None:
    return None if share is None else measured.number(share) + 0.0


def _pair(measured: Measured, pair: Interval) -> tuple[float, float] | None:
    return None if pair is None else (measured.number(pair[0]), measured.number(pair[1]))
