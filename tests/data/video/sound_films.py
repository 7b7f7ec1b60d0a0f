"""Films with sound for tests, written with PyAV, and what one asks of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.video import Video
from data.video.sound import SoundReader
from data.video.types import SoundRequest, SoundWindow

av = pytest.importorskip("av")

RATE_HZ = 32_000
FPS = 10
BLOCK = 1000

MakeFilm = Callable[..., Video]


def tones(rate_hz: int, channels: int, seconds: float) -> NDArray[np.float64]:
    """A sine of its own pitch per channel, shape (channels, samples)."""
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    pitches_hz = 220 * (1 + np.arange(channels))
    return 0.4 * np.sin(2 * np.pi * pitches_hz[:, None] * time_s)


def clicks(rate_hz: int, seconds: float, *at_s: float) -> NDArray[np.float64]:
    """Silence with short bursts of 1 kHz at the given times, one channel."""
    sound = np.zeros((1, round(rate_hz * seconds)))
    burst = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate_hz // 100) / rate_hz)
    for time_s in at_s:
        first = round(time_s * rate_hz)
        sound[0, first : first + len(burst)] = burst[: sound.shape[1] - first]
    return sound


def write_film(
    path: Path,
    sound: NDArray[np.float64],
    rate_hz: int = RATE_HZ,
    codec: str = "flac",
    layout: str = "mono",
    *,
    seconds: float = 4.0,
    sound_from_s: float = 0.0,
    pictures_from_s: float = 0.0,
    gap: tuple[int, float] = (1 << 60, 0.0),
) -> Video:
    """Grey pictures with sound (channels, samples); `gap` is (sample, seconds of silence)."""
    with av.open(str(path), "w") as container:
        film = container.add_stream("mpeg4", rate=FPS)
        film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        track = container.add_stream(codec, rate=rate_hz, layout=layout)
        grey = np.full((32, 32, 3), 90, np.uint8)
        pictures = iter(range(round(seconds * FPS)))

        def show(until_s: float) -> None:
            for index in pictures:
                frame = av.VideoFrame.from_ndarray(grey, "rgb24")
                frame.pts = index + round(pictures_from_s * FPS)
                frame.time_base = Fraction(1, FPS)
                container.mux(film.encode(frame))
                if (index + 1) / FPS >= until_s:
                    return

        for first in range(0, sound.shape[1], BLOCK):
            show(first / rate_hz)
            block = np.ascontiguousarray(sound[:, first : first + BLOCK], np.float32)
            frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
            late_s = sound_from_s + (gap[1] if first >= gap[0] else 0.0)
            frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
            frame.pts = first + round(late_s * rate_hz)
            container.mux(track.encode(frame))
        show(math.inf)
        container.mux(film.encode(None))
        container.mux(track.encode(None))
    return Video(path.stem, path)


def request(n: int, length_s: float = 2.0, rate_hz: int = RATE_HZ) -> SoundRequest:
    return SoundRequest("sound", np.arange(n) * length_s, length_s, rate_hz)


def read(video: Video, wanted: SoundRequest) -> list[SoundWindow]:
    return list(SoundReader().windows(video, wanted))


def joined(windows: list[SoundWindow]) -> NDArray[np.float32]:
    return np.concatenate([window.samples for window in windows])


def onset_s(samples: NDArray[np.float32], rate_hz: int = RATE_HZ) -> list[float]:
    """Starts of bursts, in seconds."""
    loud = np.flatnonzero(np.abs(samples) > 0.3) / rate_hz
    return [] if len(loud) == 0 else loud[np.flatnonzero(np.diff(loud, prepend=-1) > 0.1)].tolist()
