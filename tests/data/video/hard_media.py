"""Makers of the files that break extractors (specs/feature_extractors.md §3.2), with PyAV alone."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av")

__all__ = [
    "Clip",
    "add_sound",
    "join",
    "picture",
    "repeat",
    "set_matrix",
    "sound",
    "stripes",
    "write",
]


def stripes(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """A picture that carries its index in ten black or white stripes, lowest bit left."""
    bits = (index >> np.arange(10)) & 1
    columns = bits[np.arange(width) * 10 // width] * 255
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).astype(np.uint8)


class Clip:
    """What is encoded: frames with timestamps.

    Args:
        ticks: timestamps in `time_base`, in presentation order.
        time_base: seconds per tick.
        size: width and height.
        codec: name of an encoder.
        pix_fmt: its pixel format.
        b_frames: frames between references.
        gop: frames from one key frame to the next.
        rotation: degrees that a player turns the pictures by.
    """

    def __init__(
        self,
        ticks: Iterable[int] = range(30),
        *,
        time_base: Fraction = Fraction(1, 30),
        size: tuple[int, int] = (160, 64),
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        b_frames: int = 2,
        gop: int = 12,
        rotation: int = 0,
    ) -> None:
        self.ticks = list(ticks)
        self.time_base = time_base
        self.size, self.codec, self.pix_fmt = size, codec, pix_fmt
        self.b_frames, self.gop, self.rotation = b_frames, gop, rotation

    def stream(self, container: Any) -> Any:
        """A stream for it in an open container."""
        options = {"crf": "20"}
        if self.codec == "libx264":
            options |= {"preset": "ultrafast", "x264-params": "log-level=none"}
        if self.codec == "libx265":
            options |= {"preset": "ultrafast", "x265-params": "log-level=none"}
        rate = 1 / self.time_base
        stream = container.add_stream(self.codec, rate=rate, options=options)
        stream.width, stream.height = self.size
        stream.pix_fmt = self.pix_fmt
        stream.codec_context.time_base = self.time_base
        stream.codec_context.max_b_frames = self.b_frames
        stream.codec_context.gop_size = self.gop
        if self.rotation:
            stream.set_display_rotation(self.rotation)
        return stream

    def packets(self, stream: Any) -> list[Any]:
        """All packets, in decoding order."""
        packets: list[Any] = []
        for index, tick in enumerate(self.ticks):
            frame = av.VideoFrame.from_ndarray(stripes(index, *self.size), "rgb24")
            frame.pts, frame.time_base = tick, self.time_base
            packets += stream.encode(frame)
        return packets + stream.encode(None)


def write(
    path: Path,
    *clips: Clip,
    format: str | None = None,
    options: dict[str, str] | None = None,
    shift: int = 0,
    same: Sequence[tuple[int, int]] = (),
    last: int | None = None,
    timecode: bool = False,
) -> Path:
    """A file with one stream per clip.

    Args:
        path: where.
        clips: its video streams.
        format: of the container; by default that of the suffix.
        options: of the container.
        shift: added to the timestamps of packets, so that they may be negative.
        same: (packet, other): packet gets the timestamps of the other.
        last: duration of the last packet.
        timecode: adds a data stream with a time code (mov).
    """
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        streams = [clip.stream(container) for clip in clips]
        if timecode:
            streams[0].metadata["timecode"] = "01:00:00:00"
        container.start_encoding()  # a header also where no packet follows
        for clip, stream in zip(clips, streams, strict=True):
            packets = clip.packets(stream)
            for packet in packets:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            for index, other in same:
                packets[index].pts, packets[index].dts = packets[other].pts, packets[other].dts
            if last is not None:
                packets[-1].duration = last
            for packet in packets:
                container.mux(packet)
    return path


def sound(
    path: Path, *, codec: str = "aac", clip: Clip | None = None, cover: bool = False, late: int = 0
) -> Path:
    """A second of silence from 0 s, with a video stream and a cover picture or without.

    Args:
        path: where.
        codec: of the sound.
        clip: video that goes with it.
        cover: whether there is a cover picture.
        late: ticks that the video starts after the sound.
    """
    with av.open(str(path), "w") as container:
        pictures = clip.stream(container) if clip else None
        stream = container.add_stream(codec, rate=32000)
        if cover:
            _add_cover(container)
        if clip:
            for packet in clip.packets(pictures):
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                container.mux(packet)
        add_sound(container, stream)
    return path


def add_sound(container: Any, stream: Any) -> None:
    """A second of silence for a stream."""
    size = stream.codec_context.frame_size or 1024
    for start in range(0, 32000, size):
        layout = stream.codec_context.layout.name
        kind = stream.codec_context.format.name
        frame = av.AudioFrame(format=kind, layout=layout, samples=size)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = 32000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _add_cover(container: Any) -> None:
    picture_stream = container.add_stream("png", rate=1)
    picture_stream.width, picture_stream.height, picture_stream.pix_fmt = 48, 48, "rgb24"
    picture_stream.disposition = type(picture_stream.disposition).attached_pic
    black = np.zeros((48, 48, 3), np.uint8)
    container.mux(picture_stream.encode(av.VideoFrame.from_ndarray(black, "rgb24")))
    container.mux(picture_stream.encode(None))


def join(path: Path, *parts: Path) -> Path:
    """Files one after the other, as a transport stream allows."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def repeat(path: Path, source: Path, times: int) -> Path:
    """A long film in seconds: the packets of a short one again and again, later each time."""
    with av.open(str(source)) as short, av.open(str(path), "w") as container:
        stream = short.streams.video[0]
        copy = container.add_stream_from_template(stream)
        packets = [each for each in short.demux(stream) if each.size]
        span = len(packets) * packets[0].duration
        stamps = [(each.pts, each.dts) for each in packets]
        for turn in range(times):
            for packet, (pts, dts) in zip(packets, stamps, strict=True):
                packet.stream = copy
                packet.pts, packet.dts = pts + turn * span, dts + turn * span
                packet.time_base = stream.time_base
                container.mux(packet)
    return path


MATRICES = {
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}
"""Clockwise turns as phones write them (ISO 14496-12, tkhd)."""


def set_matrix(path: Path, degrees: int) -> Path:
    """Patch the display matrix of the first track of an MP4, as a phone held that way writes it."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", content, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (each << 16 for each in MATRICES[degrees])
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def picture(path: Path) -> Path:
    """A still picture of its own format."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
