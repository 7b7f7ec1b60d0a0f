"""Where the windows of frames lie that a clip network looks through, and the rows they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError
from data.registry import Registry

__all__ = ["WINDOWS", "CentredWindows", "StrideWindows", "Windows"]

WINDOWS: Registry[type[Windows]] = Registry("windows")
"""All ways to lay windows, by name."""

_TOLERANCE_S = 1e-6


@dataclass(frozen=True)
class Windows(ABC):
    """A way to lay windows over the clips of a grid.

    Args:
        rate_fps: frames per second that the video is resampled to first.
        frames: frames of a window; where it grows with the clip, the fewest.
        rows: rows of the grid that one window gives, one after the other.
    """

    name: ClassVar[str]
    rate_fps: float = 25.0
    frames: int = 16
    rows: int = 1

    def times(
        self,
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        duration_s: float | None,
        extra: int = 0,
    ) -> NDArray[np.float64]:
        """When to look for the frames of each window.

        Args:
            starts_s: start of each of the N clips in seconds.
            clip_len_s: length of a clip in seconds.
            duration_s: length of the video in seconds.
            extra: frames wanted after each window: a flow needs one.

        Returns:
            Seconds, shape (ceil(N / rows), k): frame j of ffmpeg's `fps=rate_fps` filter is asked
            for by (j + 1/2) / rate_fps. Frames before the first repeat it; those after the last
            repeat that one, as the decoder does.

        Raises:
            UsageError: these windows cannot make clips of this length.
        """
        self.check(clip_len_s)
        first = self._first(starts_s, clip_len_s, duration_s)
        index = first[:, None] + np.arange(self.count(clip_len_s) + extra)
        times: NDArray[np.float64] = (np.maximum(index, 0) + 0.5) / self.rate_fps
        return times

    def count(self, clip_len_s: float) -> int:
        """Frames of a window over clips of this length."""
        del clip_len_s
        return self.frames

    def check(self, clip_len_s: float) -> None:  # noqa: B027 - some windows fit every length
        """UsageError if these windows cannot make clips of this length."""

    @abstractmethod
    def _first(
        self, starts_s: NDArray[np.float64], clip_len_s: float, duration_s: float | None
    ) -> NDArray[np.float64]:
        """Index of the first frame of each window, whole numbers, shape (ceil(N / rows),)."""

    def params(self) -> dict[str, Any]:
        """Plain JSON: the recipe."""
        return {"windows": self.name} | asdict(self)


@WINDOWS.register("centred")
@dataclass(frozen=True)
class CentredWindows(Windows):
    """One window per clip, `max(frames, rate_fps * clip_len_s)` frames about its centre."""

    name: ClassVar[str] = "centred"

    def __post_init__(self) -> None:
        if self.rows != 1:
            raise UsageError(
                f"windows 'centred' give one row each, got rows_per_window {self.rows}; "
                "leave it out, or say windows: stride"
            )

    def count(self, clip_len_s: float) -> int:
        """See `Windows.count`."""
        return max(self.frames, round(self.rate_fps * clip_len_s))

    def _first(
        self, starts_s: NDArray[np.float64], clip_len_s: float, duration_s: float | None
    ) -> NDArray[np.float64]:
        del duration_s
        centre = (np.asarray(starts_s, dtype=np.float64) + clip_len_s / 2) * self.rate_fps
        first: NDArray[np.float64] = np.floor(centre - self.count(clip_len_s) / 2 + 0.5)
        return first


@WINDOWS.register("stride")
@dataclass(frozen=True)
class StrideWindows(Windows):
    """Windows one after the other from frame 0, the last one moved back into the video.

    With t frames in the video, window w begins at `frames * w` and ends before frame t - 1 at the
    latest: where it would reach further it is moved back, as `prepare/extract_charades.py` of
    26hzhang/VSLNet does (the very last frame is never seen there, nor here). A video shorter than a
    window gets one in which the last frame repeats; the public code shortens the window instead.
    """

    name: ClassVar[str] = "stride"

    def check(self, clip_len_s: float) -> None:
        """See `Windows.check`."""
        makes_s = self.frames / self.rate_fps / self.rows
        if abs(clip_len_s - makes_s) > _TOLERANCE_S:
            raise UsageError(
                f"windows of {self.frames} frames at {self.rate_fps:g} fps with "
                f"{self.rows} row{'s' * (self.rows > 1)} each make clips of {makes_s:g} s, but "
                f"clip_len_s is {clip_len_s:g}; set clip_len_s: {makes_s:g}, another "
                "`rows_per_window`, or preset: grid, which takes any clip length"
            )

    def _first(
        self, starts_s: NDArray[np.float64], clip_len_s: float, duration_s: float | None
    ) -> NDArray[np.float64]:
        del clip_len_s
        if duration_s is None:
            raise ValueError("windows 'stride' need the duration of the video")
        total = np.floor(duration_s * self.rate_fps + 0.5)
        start = self.frames * np.arange(-(-len(starts_s) // self.rows), dtype=np.float64)
        first: NDArray[np.float64] = np.maximum(np.minimum(start, total - 1 - self.frames), 0)
        return first
