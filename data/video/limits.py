"""How large a video may be: a header of a few bytes may declare what no machine can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError

__all__ = ["DEFAULT_LIMITS", "VideoLimits"]


@dataclass(frozen=True)
class VideoLimits:
    """What a video may declare and hold; beyond it is the InputError `too-large`.

    The defaults are far above what this field works with (8K film has 33 million pixels, a day of
    surveillance at 30 Hz 2.6 million frames). Options of the pipeline: `decode.limits`.

    Args:
        max_side: pixels of the longer side of a picture.
        max_pixels: pixels of a picture.
        max_duration_h: hours of a (whole) file, by its header and by its timestamps.
        max_frames: frames of a file, by its header and as they are decoded.
        max_fps: frames per second of its header.
        max_streams: streams of a file.
        max_channels: channels of its sound.
        max_rate_hz: samples per second of its sound.
        memory_mb: MiB of private memory of a decoding child process (Linux); 0: no limit.
    """

    max_side: int = 16_384
    max_pixels: int = 8192 * 8192
    max_duration_h: float = 48.0
    max_frames: int = 20_000_000
    max_fps: float = 1_000.0
    max_streams: int = 64
    max_channels: int = 64
    max_rate_hz: int = 768_000
    memory_mb: int = 8_192

    @property
    def max_duration_s(self) -> float:
        """Seconds of a file."""
        return self.max_duration_h * 3600

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `VideoLimits(**json)` is the inverse."""
        return asdict(self)

    def check_picture(self, path: Path, width: int, height: int) -> None:
        """Refuse a picture that is too large."""
        if width * height > self.max_pixels:
            raise self._error(
                path, f"pictures of {width}x{height}", f"{self.max_pixels:,} pixels", "max_pixels"
            )
        if max(width, height) > self.max_side:
            raise self._error(
                path,
                f"pictures of {width}x{height}",
                f"{self.max_side:,} pixels a side",
                "max_side",
            )

    def check_streams(self, path: Path, streams: int) -> None:
        """Refuse a file of too many streams: each costs memory."""
        if streams > self.max_streams:
            raise self._error(path, f"{streams} streams", f"{self.max_streams}", "max_streams")

    def check_rate(self, path: Path, fps: float) -> None:
        """Refuse an absurd frame rate."""
        if fps > self.max_fps:
            raise self._error(
                path, f"{fps:g} frames a second", f"{self.max_fps:g} a second", "max_fps"
            )

    def check_sound(self, path: Path, channels: int, rate_hz: int) -> None:
        """Refuse sound of too many channels or an absurd rate."""
        if channels > self.max_channels:
            raise self._error(
                path, f"sound of {channels} channels", f"{self.max_channels}", "max_channels"
            )
        if rate_hz > self.max_rate_hz:
            raise self._error(
                path, f"sound of {rate_hz:,} Hz", f"{self.max_rate_hz:,} Hz", "max_rate_hz"
            )

    def check_frames(self, path: Path, frames: int) -> None:
        """Refuse too many frames."""
        if frames > self.max_frames:
            raise self._error(path, f"{frames:,} frames", f"{self.max_frames:,}", "max_frames")

    def check_time(self, path: Path, seconds: float) -> None:
        """Refuse a header or a timestamp beyond the longest video."""
        if seconds > self.max_duration_s:
            raise self._error(
                path,
                f"a time of {seconds:,.0f} s ({seconds / 3600:,.1f} h)",
                f"{self.max_duration_h:g} h",
                "max_duration_h",
            )

    def check_facts(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Look at what a child process says of a video, as if a crafted file had taken it over."""
        self.check_time(path, facts["duration_s"])
        self.check_frames(path, facts["frames"])
        self.check_picture(path, facts["width"], facts["height"])
        if not all(math.isfinite(facts[name]) for name in ("duration_s", "fps")):
            raise InputError("undecodable", f"{path}: its facts are not finite numbers")

    def _error(self, path: Path, found: str, allowed: str, option: str) -> InputError:
        return InputError(
            "too-large",
            f"{path} declares {found}; allowed are {allowed}. Leave it out or encode it again; if "
            f"it is real, raise decode.limits.{option}",
        )


DEFAULT_LIMITS = VideoLimits()
