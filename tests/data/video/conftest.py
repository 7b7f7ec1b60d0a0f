"""Small real videos, written with PyAV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.video import FrameRequest, Video, View

av = pytest.importorskip("av")

MakeVideo = Callable[..., Video]


def numbered(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """A picture that carries its index in ten black or white stripes, lowest bit left."""
    bits = (index >> np.arange(10)) & 1
    columns = bits[np.arange(width) * 10 // width] * 255
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def index_of() -> Callable[[NDArray[np.uint8]], int]:
    """The index that a picture of `make_video` carries, also after scaling without crop."""

    def read(picture: NDArray[np.uint8]) -> int:
        width = picture.shape[1]
        centres = (np.arange(10) * width + width // 2) // 10
        bits = picture[picture.shape[0] // 2, centres, 1] > 127
        return int((bits * 2 ** np.arange(10)).sum())

    return read


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Write a video whose frames carry their index; `ticks` are timestamps in `time_base`."""

    def make(
        name: str = "a.mp4",
        *,
        ticks: Sequence[int] = tuple(range(30)),
        time_base: Fraction = Fraction(1, 30),
        size: tuple[int, int] = (160, 64),
        codec: str = "libx264",
        rotation: int = 0,
        b_frames: int = 2,
    ) -> Video:
        path = tmp_path / name
        container = av.open(str(path), "w")
        options = {"preset": "ultrafast", "crf": "10", "x264-params": "log-level=none"}
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        for index, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(numbered(index, *size), "rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.close()
        return Video(path.stem, path)

    return make


@pytest.fixture
def make_audio(tmp_path: Path) -> Callable[[bool], Video]:
    """Write a second of silence, with or without a cover picture."""

    def make(cover: bool) -> Video:
        with av.open(str(tmp_path / "sound.mp3"), "w") as container:
            stream = container.add_stream("mp3", rate=32000)
            if cover:
                picture = container.add_stream("png", rate=1)
                picture.width, picture.height, picture.pix_fmt = 32, 32, "rgb24"
                picture.disposition = type(picture.disposition).attached_pic
                black = np.zeros((32, 32, 3), np.uint8)
                container.mux(picture.encode(av.VideoFrame.from_ndarray(black, "rgb24")))
                container.mux(picture.encode(None))
            for start in range(0, 32000, 1152):
                frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.int16), "s16p", "stereo")
                frame.sample_rate, frame.pts = 32000, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return Video("sound", tmp_path / "sound.mp3")

    return make


@pytest.fixture(scope="session")
def clip_request() -> Callable[..., FrameRequest]:
    """One frame per clip: what the `fps` filter gives at rate `1 / clip_len_s`."""

    def make(n: int, clip_len_s: float, view: View | None = None) -> FrameRequest:
        times = (np.arange(n, dtype=np.float64)[:, None] + 0.5) * clip_len_s
        return FrameRequest("clip", times, view or View(32, crop=False))

    return make
