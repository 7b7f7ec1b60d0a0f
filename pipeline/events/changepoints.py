"""Ruptures' KernelCPD on the features of clips: the strong offline method to be compared with.

It minimises the scatter within segments exactly (Celisse et al. 2018, Truong et al. 2020), which
takes time in the square of the length; `pip install ruptures` (extra `cpd`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.errors import UsageError
from pipeline.events.stored import Clips

__all__ = ["MAX_CLIPS", "PENALTIES", "KernelCpd", "check_runs"]

MAX_CLIPS = 5_000
"""Longest video; about 10 s of one core and, with a given number, 8 bytes per clip and cut."""

PENALTIES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
"""Values of `KernelCpd.penalty` that `tune` tries."""


def check_runs(clips: Iterable[int] = ()) -> None:
    """Whether KernelCPD can be run on videos of so many clips, before any is read.

    Raises:
        UsageError: ruptures is not installed, or a video has more than `MAX_CLIPS` clips.
    """
    if importlib.util.find_spec("ruptures") is None:
        raise UsageError("KernelCPD needs the package ruptures: pip install 'ruptures>=1.1'")
    longest = max(clips, default=0)
    if longest > MAX_CLIPS:
        raise UsageError(
            f"KernelCPD takes the square of the length; it is not run on videos of more than "
            f"{MAX_CLIPS:,} clips (here {longest:,}): leave it out (--no-cpd)"
        )


@dataclass(frozen=True)
class KernelCpd:
    """Boundaries of a video by KernelCPD with the cosine of clips as kernel.

    Exactly one is given:

    Args:
        count: so many boundaries in every video (fewer where it has not so many clips).
        penalty: what one more boundary costs, in scatters of a clip of the video times `log N`.

    Raises:
        UsageError: ruptures is not installed.
    """

    count: int | None = None
    penalty: float | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.penalty is None):
            raise ValueError(f"give either count or penalty, got {self.count} and {self.penalty}")
        check_runs()

    def __call__(self, clips: Clips) -> list[float]:
        """Boundaries in seconds, ascending, inside `(0, D)`.

        Raises:
            UsageError: a video of more than `MAX_CLIPS` clips.
        """
        from ruptures import KernelCPD

        n = len(clips.features)
        check_runs([n])
        norms = np.linalg.norm(clips.features, axis=1, keepdims=True)
        rows = clips.features / np.where(norms == 0, 1.0, norms)
        scatter = float(np.square(rows - rows.mean(axis=0)).sum()) / n
        count = None if self.count is None else min(self.count, n - 1)
        if n < 2 or count == 0 or scatter < 1e-12:  # nothing but rounding
            return []
        if rows.shape[1] > n:  # the same inner products in fewer numbers
            rows = np.asarray(np.linalg.qr(rows.T, mode="r"), np.float64).T
        found = KernelCPD(kernel="linear", min_size=1).fit(np.ascontiguousarray(rows))
        if count is not None:
            ends = found.predict(n_bkps=count)
        else:
            assert self.penalty is not None  # by __post_init__
            ends = found.predict(pen=self.penalty * scatter * math.log(n))
        times = [end * clips.clip_len_s for end in ends[:-1]]
        return [time for time in times if 0 < time < clips.duration_s]
