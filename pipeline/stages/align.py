"""Captions onto the grid: TEA's alignment (Eq. 3) with its gaps filled on purpose.

The paper says what happens to a clip that holds captions; it does not say what a clip without
any gets, which is most clips of a short-clip grid. Each answer has a name here
(specs/tea_lmr_cqval_splits.md §2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.grid import Grid

__all__ = ["FILLS", "align", "clips_of"]

Floats = NDArray[np.float64]

_TOLERANCE_S = 1e-6  # 0.3 s is in clip 3 of 0.1 s, whatever 0.3 / 0.1 rounds to


def align(
    times_s: NDArray[Any], embeddings: NDArray[Any], grid: Grid, fill: str = "nearest"
) -> tuple[Floats, NDArray[np.uint8]]:
    """One vector per clip from vectors at times.

    A clip gets the mean of the captions with `t` in `[start, end)`; the last clip also takes
    what comes after it (the grid may end half a clip before the video). A clip without captions
    is filled: "nearest" in time to its centre (of two equally near the earlier), "hold" the last
    one not after its centre, "linear" between the two around its centre, "zero". Beyond the
    first and last caption "hold" and "linear" give the nearest. Captions of the same time fill as
    one, their mean, so that their order makes no difference.

    Args:
        times_s: caption times in seconds, any order, shape (M,); M may be 0.
        embeddings: one vector per caption, shape (M, D).
        grid: the clips.
        fill: a name of `FILLS`.

    Returns:
        narrative, shape (N, D): zeros for all clips if M is 0.
        coverage, shape (N,): 1 where a clip holds a caption of its own.
    """
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}; allowed: {', '.join(sorted(FILLS))}")
    times = np.asarray(times_s, dtype=np.float64)
    values = np.asarray(embeddings, dtype=np.float64)
    narrative, counts = _means(values, clips_of(times, grid), grid.n)
    empty = counts == 0
    if len(times) and empty.any():
        different, which = np.unique(times, return_inverse=True)
        at_times, _ = _means(values, which, len(different))
        narrative[empty] = FILLS[fill](different, at_times, grid.centres_s[empty])
    return narrative, (~empty).astype(np.uint8)


def _means(
    values: Floats, groups: NDArray[np.int64], count: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Mean of the rows of each group, zeros for one without rows, and how many it has."""
    counts = np.bincount(groups, minlength=count)
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums / np.maximum(counts, 1)[:, None], counts


def clips_of(times_s: Floats, grid: Grid) -> NDArray[np.int64]:
    """Index of the clip that holds each time, shape (M,)."""
    clips = np.floor((times_s + _TOLERANCE_S) / grid.clip_len_s).astype(np.int64)
    return np.clip(clips, 0, grid.n - 1)


def _around(times: Floats, centres: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the last caption not after each centre and of the first one after it; both are
    the end caption where there is none on one side."""
    after = np.searchsorted(times, centres, side="right")
    return np.maximum(after - 1, 0), np.minimum(after, len(times) - 1)


def _nearest(times: Floats, values: Floats, centres: Floats) -> Floats:
    before, after = _around(times, centres)
    later = np.abs(times[after] - centres) < np.abs(times[before] - centres)
    return values[np.where(later, after, before)]


def _hold(times: Floats, values: Floats, centres: Floats) -> Floats:
    return values[_around(times, centres)[0]]


def _linear(times: Floats, values: Floats, centres: Floats) -> Floats:
    before, after = _around(times, centres)
    gap = times[after] - times[before]
    part = np.where(gap > 0, (centres - times[before]) / np.where(gap > 0, gap, 1.0), 0.0)
    return values[before] + part[:, None] * (values[after] - values[before])


def _zero(times: Floats, values: Floats, centres: Floats) -> Floats:
    del times
    return np.zeros((len(centres), values.shape[1]))


FILLS: Mapping[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "nearest": _nearest,
    "hold": _hold,
    "linear": _linear,
    "zero": _zero,
}
"""What a clip without captions gets: `(times, values, centres of the empty clips) -> vectors`."""
