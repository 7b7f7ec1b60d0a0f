"""Containers that change while they are read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data.video import FrameRequest, Video, View, open_decoder
from data.video.container import opened, packets_of
from data.video.limits import DEFAULT_LIMITS

av = pytest.importorskip("av")

FPS = 10
SILENCE = np.zeros((1, 48_000), np.float32)


def piece(path: Path, first: int, frames: int, tracks: int) -> bytes:
    """A transport stream of grey pictures, some of it with a second of sound in each track."""
    with av.open(str(path), "w") as container:
        film = container.add_stream("mpeg4", rate=FPS)
        film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        sounds = [container.add_stream("mp2", rate=48_000, layout="mono") for _ in range(tracks)]
        for index in range(first, first + frames):
            pixels = np.full((32, 32, 3), index % 200, np.uint8)
            picture = av.VideoFrame.from_ndarray(pixels, "rgb24")
            picture.pts, picture.time_base = index, Fraction(1, FPS)
            container.mux(film.encode(picture))
        for sound in sounds:
            block = av.AudioFrame.from_ndarray(SILENCE, "fltp", "mono")
            block.sample_rate, block.time_base = 48_000, Fraction(1, 48_000)
            block.pts = first * 48_000 // FPS
            container.mux(sound.encode(block))
        for stream in (film, *sounds):
            container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture
def broadcast(tmp_path: Path) -> Video:
    """Sound tracks appear after two seconds. Opening reads the end, too, so they go again."""
    cuts = [(0, 20, 0), (20, 10, 8), (30, 600, 0)]
    parts = [piece(tmp_path / f"{cut[0]}.ts", *cut) for cut in cuts]
    whole = tmp_path / "broadcast.ts"
    whole.write_bytes(b"".join(parts))
    return Video("a", whole)


def test_streams_that_appear_in_the_middle_end_nothing(broadcast: Video) -> None:
    """PyAV's own loop fails at such a stream (recordings of broadcasts)."""
    with av.open(str(broadcast.path)) as container:
        assert len(container.streams) == 1
        with pytest.raises(IndexError):
            for _ in container.demux(container.streams.video[0]):
                pass
    with opened(broadcast, DEFAULT_LIMITS) as (container, stream):
        assert sum(packet.size > 0 for packet in packets_of(container, stream)) == 630
    decoder = open_decoder("pyav")
    facts = decoder.probe(broadcast)
    assert (facts.frames, facts.damaged) == (630, 0)
    assert facts.duration_s == pytest.approx(63.0)
    times = np.arange(0.05, 63, 0.5)[:, None]
    windows = list(decoder.windows(broadcast, [FrameRequest("a", times, View(32))]))
    shown = [int(each.frames[0, 16, 16, 1]) for each in windows]
    assert shown == pytest.approx([index * 5 % 200 for index in range(126)], abs=4)
