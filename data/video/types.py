"""What the rest of Storyline says to a video decoder, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data.grid import Grid
from data.video.limits import VideoLimits

__all__ = [
    "Decoder",
    "Fit",
    "FrameRequest",
    "Mode",
    "SoundRequest",
    "SoundWindow",
    "Video",
    "VideoFacts",
    "View",
    "Window",
]

Mode = Literal["exact", "fast"]
"""How pixels are made: as the ffmpeg command line makes them, or cheaper (docs/decoding.md)."""

Fit = Literal["scaled", "padded", "cropped", "stretched", "within"]
"""How a frame comes to its size (`View`)."""


@dataclass(frozen=True)
class Video:
    """One media file, or the `[start_s, end_s)` part of one, under an id.

    Args:
        id: `video_id`, checked by `data.identity.check_id`.
        path: the media file.
        start_s: start of the part in seconds from the first frame of the file.
        end_s: end of the part in seconds; None means the end of the file.
    """

    id: str
    path: Path
    start_s: float = 0.0
    end_s: float | None = None


_MOST = 1 << 50
"""Above any count or size of a file."""


@dataclass(frozen=True)
class VideoFacts:
    """What probing found. Times are from decoded timestamps, never from the header.

    `duration_s` is the end of the last decodable frame minus the start of the part.
    `width` and `height` are those of the upright picture (rotation applied).
    `damaged` counts packets that the decoder refused; a video with some is *partial*.
    """

    duration_s: float
    fps: float
    frames: int
    width: int
    height: int
    rotation: int
    codec: str
    pix_fmt: str
    size_bytes: int
    has_audio: bool
    damaged: int

    def __post_init__(self) -> None:
        """Facts come out of files and from child processes, too.

        Raises:
            TypeError: what no video can have; as for a field that is missing or unknown.
        """
        numbers = (self.duration_s, self.fps)
        counts = (self.frames, self.width, self.height, self.size_bytes, self.damaged)
        plausible = (
            all(isinstance(each, int | float) and 0 <= each < _MOST for each in numbers)
            and all(type(each) is int and 0 <= each < _MOST for each in counts)
            and type(self.rotation) is int
            and isinstance(self.codec, str)
            and isinstance(self.pix_fmt, str)
            and isinstance(self.has_audio, bool)
        )
        if not plausible:
            raise TypeError("facts of a video must be finite numbers of its size, got others")

    def grid(self, clip_len_s: float) -> Grid:
        """The canonical clips of this video."""
        return Grid(self.duration_s, clip_len_s)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `VideoFacts(**json)` is the inverse."""
        return asdict(self)


@dataclass(frozen=True)
class View:
    """How a frame becomes pixels: upright, short side scaled to `short_side` (long side
    `int(long * short_side / short)`, bicubic, as ffmpeg's swscale does it), then a centre square
    crop if `crop`. Two requests with equal views share the conversion of a frame.

    `mode` "exact" gives the bytes of the ffmpeg command line; "fast" gives the same picture by a
    cheaper filter, which frames are used does not change.

    `fit` other than "scaled" makes the pixels of vision-language models, at native size by swscale
    and resized by PIL's bicubic filter with antialiasing; `crop` then plays no part:

    - "padded": the whole frame at the centre of a square of colour `background`, then resized to
      `short_side`: LLaVA's `expand2square` and `CLIPImageProcessor`
    - "cropped": the short side resized to `short_side`, then the square at its centre:
      torchvision's `Resize` and `CenterCrop` on a PIL picture
    - "stretched": the whole frame resized to a square of `short_side`, whatever its shape:
      torchvision's `Resize((side, side))` on a PIL picture
    - "within": made smaller until the long side is at most `short_side`; never made larger
    """

    short_side: int
    crop: bool = True
    mode: Mode = "exact"
    fit: Fit = "scaled"
    background: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class FrameRequest:
    """The frames that one consumer wants: `k` frames for each of `u` units (clips, timestamps).

    The frame for a time is the last one whose timestamp is before it (`inclusive=False`, the
    rule of ffmpeg's `fps` filter when asked with `(i + 1/2) / F`) or not after it
    (`inclusive=True`, "the picture on the screen at t"); the first frame if there is none.
    Times are compared with a tolerance of one microsecond.

    Args:
        name: who asks; windows carry it.
        times_s: shape (u, k), seconds from the start of the (part of the) video. Units are
            delivered in order; within a unit any order is allowed.
        view: how the frames become pixels.
        inclusive: whether a frame exactly at the time counts.
    """

    name: str
    times_s: NDArray[np.float64]
    view: View
    inclusive: bool = False


@dataclass(frozen=True)
class Window:
    """The frames of one unit of one request.

    Args:
        request: name of the request.
        unit: index of the unit, 0..u-1.
        frames: uint8 RGB, shape (k, H, W, 3).
        times_s: timestamps of the frames that were really used, shape (k,).
    """

    request: str
    unit: int
    frames: NDArray[np.uint8]
    times_s: NDArray[np.float64]


@dataclass(frozen=True)
class SoundRequest:
    """The sound that one consumer wants: `u` windows of equal length, mono.

    Args:
        name: who asks; windows carry it.
        starts_s: starts of the windows in seconds from the start of the (part of the) video,
            increasing, shape (u,). The time is that of the pictures: a sound track that begins
            before or after the first frame is shifted accordingly.
        length_s: length of a window in seconds.
        rate_hz: samples per second that the sound is resampled to.
    """

    name: str
    starts_s: NDArray[np.float64]
    length_s: float
    rate_hz: int


@dataclass(frozen=True)
class SoundWindow:
    """The sound of one window of a request.

    Args:
        request: name of the request.
        unit: index of the window, 0..u-1.
        samples: float32 mono in [-1, 1], shape (round(length_s * rate_hz),), zeros where the file
            has no sound.
        heard: share of the samples that the file has sound for, 0..1.
    """

    request: str
    unit: int
    samples: NDArray[np.float32]
    heard: float


class Decoder(Protocol):
    """A way to decode: PyAV, decord, ... Chosen by name from `data.video.DECODERS`.

    Both methods raise InputError with a reason from the documented list (`missing`, `empty`,
    `not-media`, `no-video-stream`, `no-frames`, `damaged`, `undecodable`, `too-large`).
    """

    name: str
    limits: VideoLimits
    """What a video may declare; beyond it is the InputError `too-large`."""
    progress: Callable[[], None]
    """Called after every decoded frame, so that a slow decoder can be told from one that hangs."""
    allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]]
    """`data.video.select.Allocate`: the memory that the frames of windows are written into."""

    def probe(self, video: Video) -> VideoFacts:
        """Decode the whole (part of the) video without keeping pictures."""
        ...

    def windows(self, video: Video, requests: Sequence[FrameRequest]) -> Iterator[Window]:
        """Serve all requests from one sequential pass.

        Windows of one request come in unit order; windows of different requests are interleaved
        as the frames arrive. Memory is bounded by the widest window, not by the video.
        """
        ...
