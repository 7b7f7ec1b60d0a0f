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
    times_s: NDArray[Any],
    embeddings: NDArray[Any],
    grid: Grid,
    fill: str = "nearest",
    ends_s: NDArray[Any] | None = None,
) -> tuple[Floats, NDArray[np.uint8]]:
    """One vector per clip from vectors at times.

    A clip gets the mean of the captions with `t` in `[start, end)`; the last clip also takes
    what comes after it (the grid may end half a clip before the video). A caption with a span
    `[t, end)` is in every clip that it touches. A clip without captions is filled: "nearest" in
    time to its centre (of two equally near the earlier), "hold" the last one not after its centre,
    "linear" between the two around its centre, "zero". Beyond the first and last caption "hold"
    and "linear" give the nearest. Captions of the same time fill as one, their mean, so that their
    order makes no difference; one with a span stands at both of its ends.

    Args:
        times_s: caption times in seconds, any order, shape (M,); M may be 0.
        embeddings: one vector per caption, shape (M, D).
        grid: the clips.
        fill: a name of `FILLS`.
        ends_s: where the span of each caption ends, shape (M,); its time for one without a span.
            None: no caption has one.

    Returns:
        narrative, shape (N, D): zeros for all clips if M is 0.
        coverage, shape (N,): 1 where a clip holds a caption of its own.
    """
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}; allowed: {', '.join(sorted(FILLS))}")
    times = np.asarray(times_s, dtype=np.float64)
    values = np.asarray(embeddings, dtype=np.float64)
    ends = times if ends_s is None else np.asarray(ends_s, dtype=np.float64)
    if len(ends) != len(times) or (ends < times).any():
        raise ValueError("a caption ends before it begins, or not every caption has an end")
    narrative, counts = _clip_means(values, clips_of(times, grid), _last_clips(ends, grid), grid.n)
    empty = counts == 0
    if len(times) and empty.any():
        spans = ends > times
        different, which = np.unique(np.append(times, ends[spans]), return_inverse=True)
        at_times, _ = _means(np.append(values, values[spans], axis=0), which, len(different))
        narrative[empty] = FILLS[fill](different, at_times, grid.centres_s[empty])
    return narrative, (~empty).astype(np.uint8)


def _clip_means(
    values: Floats, first: NDArray[np.int64], last: NDArray[np.int64], count: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Mean of the captions from their first to their last clip, and how many each clip has."""
    sums, counts = _sums(values, first, count)
    for caption in np.flatnonzero(last > first):
        sums[first[caption] + 1 : last[caption] + 1] += values[caption]
        counts[first[caption] + 1 : last[caption] + 1] += 1
    return sums / np.maximum(counts, 1)[:, None], counts


def _means(
    values: Floats, groups: NDArray[np.int64], count: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Mean of the rows of each group, zeros for one without rows, and how many it has."""
    sums, counts = _sums(values, groups, count)
    return sums / np.maximum(counts, 1)[:, None], counts


def _sums(
    values: Floats, groups: NDArray[np.int64], count: int
) -> tuple[Floats, NDArray[np.int64]]:
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums, np.bincount(groups, minlength=count)


def clips_of(times_s: Floats, grid: Grid) -> NDArray[np.int64]:
    """Index of the clip that holds each time, shape (M,)."""
    return _inside(np.floor((times_s + _TOLERANCE_S) / grid.clip_len_s), grid)


def _last_clips(ends_s: Floats, grid: Grid) -> NDArray[np.int64]:
    """Index of the last clip that a span touches which ends there, shape (M,). Of a caption without
    a span it may be below the clip of its time.
    """
    return _inside(np.ceil((ends_s - _TOLERANCE_S) / grid.clip_len_s) - 1, grid)


def _inside(clips: Floats, grid: Grid) -> NDArray[np.int64]:
    return np.clip(clips, 0, grid.n - 1).astype(np.int64)


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
