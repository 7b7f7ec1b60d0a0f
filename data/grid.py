"""The canonical grid: the clips of a video that every stream agrees on (DESIGN §1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHORTEST_CLIP_S", "Grid"]

SHORTEST_CLIP_S = 1e-3
"""Less than a frame: a number below is another unit, and grids of it would fill the memory."""


@dataclass(frozen=True)
class Grid:
    """`n = max(1, floor(D/L + 1/2))` clips of `L` seconds; clip `i` is `[iL, (i+1)L)`.

    The last clip may end up to half a clip before or after the video does; the rule is the
    effective length of the public loaders (specs/feature_extractors.md §2.0).

    Args:
        duration_s: length of the video in seconds, from decoded timestamps.
        clip_len_s: length of a clip in seconds.
    """

    duration_s: float
    clip_len_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration_s) and self.duration_s >= 0):
            raise ValueError(f"duration must be finite and >= 0 seconds, got {self.duration_s}")
        if not (math.isfinite(self.clip_len_s) and self.clip_len_s > 0):
            raise ValueError(f"clip length must be finite and > 0 seconds, got {self.clip_len_s}")

    @property
    def n(self) -> int:
        """Number of clips."""
        return max(1, math.floor(self.duration_s / self.clip_len_s + 0.5))

    @property
    def starts_s(self) -> NDArray[np.float64]:
        """Start of each clip in seconds, shape (n,)."""
        return np.arange(self.n, dtype=np.float64) * self.clip_len_s

    @property
    def centres_s(self) -> NDArray[np.float64]:
        """Centre of each clip in seconds, shape (n,)."""
        return self.starts_s + self.clip_len_s / 2

    @property
    def spans_s(self) -> NDArray[np.float64]:
        """`[start, end)` of each clip in seconds, shape (n, 2)."""
        return np.stack([self.starts_s, self.starts_s + self.clip_len_s], axis=1)

    def clip_at(self, time_s: float) -> int:
        """Index of the clip that holds `time_s`; times outside the grid fall in the end clips."""
        return min(max(int(time_s // self.clip_len_s), 0), self.n - 1)
