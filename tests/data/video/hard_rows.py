"""The table of hard files (specs/feature_extractors.md §3.2): how each is made, what is in it.

What is expected follows from how a file is made (ticks, sizes, shifts), not from what a decoder
said. Where bytes are cut or overwritten, the bounds say what must survive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from hard_media import Clip, join, picture, set_matrix, sound, write

__all__ = ["BAD", "GOOD", "Bad", "Good"]

LONG = range(180)
"""Six seconds."""


@dataclass(frozen=True)
class Good:
    """A file that is decoded.

    Args:
        make: writes it into a folder.
        frames: how many, or from .. to where bytes are missing.
        duration_s: from the first frame to the end of the last one.
        n: clips of one second on the grid.
        size: of the upright picture.
        shows: index of the frame on the screen at some times.
        fps: frames per second.
        damaged: whether packets are refused.
        decord: whether decord gives the same number of frames (None: not asked).
        ffprobe: whether ffprobe counts the same frames.
    """

    make: Callable[[Path], Path]
    frames: int | range
    duration_s: float
    n: int
    size: tuple[int, int] = (160, 64)
    shows: Mapping[float, int] = field(default_factory=dict)
    fps: float = 30.0
    damaged: bool = False
    decord: bool | None = None
    ffprobe: bool = True


@dataclass(frozen=True)
class Bad:
    """A file that is refused, with the reason."""

    make: Callable[[Path], Path]
    reason: str


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def overwritten(path: Path, length: int = 200) -> Path:
    """Zeros over the middle."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + length] = bytes(length)
    path.write_bytes(content)
    return path


def holding(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


UNSHIFTED = {"avoid_negative_ts": "disabled"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}

ROWS: dict[str, Good | Bad] = {
    "variable frame rate": Good(
        lambda at: write(
            at / "a.mp4",
            Clip([0, 10, 20, 500, 510, 1900], time_base=Fraction(1, 1000), b_frames=0),
            last=33,
        ),
        frames=6,
        duration_s=1.933,
        n=2,
        fps=5 / 1.9,
        shows={0.005: 0, 0.499: 2, 0.505: 3, 1.8: 4, 1.95: 5},
        decord=True,
    ),
    "edit list that cuts the beginning": Good(
        lambda at: write(at / "a.mp4", Clip(LONG), shift=-31, options=UNSHIFTED),
        frames=149,
        duration_s=149 / 30,
        n=5,
        shows={0.01: 31, 1.01: 61},
        decord=False,
    ),
    "starts at 90 s": Good(
        lambda at: write(at / "a.mkv", Clip(range(2700, 2730))),
        frames=30,
        duration_s=1,
        n=1,
        shows={0.01: 0, 0.51: 15},
        decord=True,
    ),
    "negative timestamps": Good(
        lambda at: write(at / "a.ts", Clip(range(60)), shift=-20, options=UNSHIFTED),
        frames=60,
        duration_s=2,
        n=2,
        shows={0.01: 0, 1.01: 30},
    ),
    "pictures half a second after the sound (mp4)": Good(
        lambda at: sound(at / "a.mp4", clip=Clip(range(60)), late=15),
        frames=60,
        duration_s=2,
        n=2,
        shows={0.01: 0, 1.01: 30},
    ),
    "pictures half a second after the sound (mkv)": Good(
        lambda at: sound(at / "a.mkv", clip=Clip(range(60)), late=15),
        frames=60,
        duration_s=2,
        n=2,
        shows={0.01: 0, 1.01: 30},
    ),
    "turned by 90 degrees": Good(
        lambda at: set_matrix(write(at / "a.mp4", Clip()), 90),
        frames=30,
        duration_s=1,
        n=1,
        size=(64, 160),
        decord=True,
    ),
    "turned by 180 degrees": Good(
        lambda at: set_matrix(write(at / "a.mp4", Clip()), 180),
        frames=30,
        duration_s=1,
        n=1,
        # upside down the stripes are the other way round: bit 9 first
        shows={0.01: 0, 7.5 / 30: 0b1110000000},
    ),
    "turned by 270 degrees": Good(
        lambda at: set_matrix(write(at / "a.mp4", Clip()), 270),
        frames=30,
        duration_s=1,
        n=1,
        size=(64, 160),
    ),
    "10 bits H.264": Good(
        lambda at: write(at / "a.mp4", Clip(pix_fmt="yuv420p10le")),
        frames=30,
        duration_s=1,
        n=1,
        shows={0.51: 15},
    ),
    "10 bits HEVC": Good(
        lambda at: write(at / "a.mp4", Clip(codec="libx265", pix_fmt="yuv420p10le")),
        frames=30,
        duration_s=1,
        n=1,
        shows={0.51: 15},
    ),
    "odd size 4:4:4": Good(
        lambda at: write(at / "a.mp4", Clip(pix_fmt="yuv444p", size=(161, 65))),
        frames=30,
        duration_s=1,
        n=1,
        size=(161, 65),
        shows={0.51: 15},
    ),
    "odd size 4:2:0": Good(
        lambda at: write(at / "a.mp4", Clip(codec="mpeg4", size=(161, 65))),
        frames=30,
        duration_s=1,
        n=1,
        size=(161, 65),
        shows={0.51: 15},
    ),
    "no duration: mkv as it is streamed": Good(
        lambda at: write(at / "a.mkv", Clip(range(60)), options={"live": "1"}),
        frames=60,
        duration_s=2,
        n=2,
        shows={1.01: 30},
    ),
    "no duration: webm as it is streamed": Good(
        lambda at: write(
            at / "a.webm", Clip(range(60), codec="libvpx", b_frames=0), options={"live": "1"}
        ),
        frames=60,
        duration_s=2,
        n=2,
        shows={1.01: 30},
    ),
    "no duration: fragmented mp4": Good(
        lambda at: write(at / "a.mp4", Clip(range(60)), options=FRAGMENTED),
        frames=60,
        duration_s=2,
        n=2,
        shows={1.01: 30},
    ),
    "no timestamps: raw H.264": Good(
        lambda at: write(at / "a.h264", Clip(range(60))),
        frames=60,
        duration_s=2,
        n=2,
        shows={0.01: 0, 1.01: 30},
    ),
    "no timestamps: raw HEVC": Good(
        lambda at: write(at / "a.hevc", Clip(range(60), codec="libx265")),
        frames=60,
        duration_s=2,
        n=2,
        shows={0.01: 0, 1.01: 30},
    ),
    "B-frames at the end": Good(
        lambda at: write(at / "a.mp4", Clip(range(59), b_frames=3, gop=250)),
        frames=59,
        duration_s=59 / 30,
        n=2,
        shows={1.91: 57, 1.95: 58},
        decord=True,
    ),
    "cut, index at the front": Good(
        lambda at: cut(write(at / "a.mp4", Clip(LONG), options={"movflags": "+faststart"}), 0.6),
        frames=range(30, 150),
        duration_s=2.1,
        n=2,
        shows={1.01: 30},
        damaged=True,
        decord=False,
    ),
    "cut, no index needed": Good(
        lambda at: cut(write(at / "a.mkv", Clip(LONG)), 0.5),
        frames=range(30, 150),
        duration_s=2.6,
        n=3,
        shows={1.01: 30},
    ),
    "cut before its index": Bad(lambda at: cut(write(at / "a.mp4", Clip(LONG)), 0.6), "not-media"),
    "overwritten middle (mp4)": Good(
        lambda at: overwritten(write(at / "a.mp4", Clip(LONG))),
        frames=range(120, 180),
        duration_s=6,
        n=6,
        shows={0.51: 15, 5.51: 165},
        damaged=True,
        decord=False,
    ),
    "overwritten middle (mkv)": Good(
        lambda at: overwritten(write(at / "a.mkv", Clip(LONG))),
        frames=range(120, 180),
        duration_s=6,
        n=6,
        shows={0.51: 15, 5.51: 165},
    ),
    "sound only": Bad(lambda at: sound(at / "a.m4a"), "no-video-stream"),
    "sound and a cover picture": Bad(
        lambda at: sound(at / "a.mp3", codec="mp3", cover=True), "no-video-stream"
    ),
    "no frames": Bad(
        lambda at: write(at / "a.mp4", Clip([]), options={"movflags": "empty_moov"}), "no-frames"
    ),
    "a header and nothing else": Bad(lambda at: write(at / "a.mkv", Clip([])), "not-media"),
    "0 bytes": Bad(lambda at: holding(at / "a.mp4", b""), "empty"),
    "random bytes": Bad(
        lambda at: holding(at / "a.mp4", np.random.default_rng(5).bytes(50_000)), "not-media"
    ),
    "text": Bad(lambda at: holding(at / "a.mp4", b"Dear reader,\n" * 100), "not-media"),
    "a still picture": Bad(lambda at: picture(at / "a.png"), "not-media"),
    "one frame": Good(
        lambda at: write(at / "a.mp4", Clip([0])),
        frames=1,
        duration_s=1 / 30,
        n=1,
        shows={0.5: 0},
        decord=True,
    ),
    "two frames": Good(
        lambda at: write(at / "a.mp4", Clip([0, 1])),
        frames=2,
        duration_s=2 / 30,
        n=1,
        shows={0.01: 0, 0.5: 1},
    ),
    "five hours": Good(
        lambda at: write(at / "a.mp4", Clip(range(1800), time_base=Fraction(10), size=(40, 32))),
        frames=1800,
        duration_s=18_000,
        n=18_000,
        size=(40, 32),
        fps=0.1,
        shows={5_005: 500, 9_995: 999},
    ),
    "a size that changes": Good(
        lambda at: join(
            at / "both.ts",
            write(at / "1.ts", Clip(range(30), b_frames=0)),
            write(at / "2.ts", Clip(range(30, 60), b_frames=0, size=(96, 128))),
        ),
        frames=60,
        duration_s=2,
        n=2,
        shows={0.51: 15, 1.51: 15},
    ),
    "AVI with B-frames (H.264)": Good(
        lambda at: write(at / "a.avi", Clip(LONG)),
        frames=180,
        duration_s=6,
        n=6,
        shows={0.01: 0, 1.01: 30, 5.99: 179},
        decord=False,
    ),
    "AVI with B-frames (MPEG-4)": Good(
        lambda at: write(at / "a.avi", Clip(LONG, codec="mpeg4")),
        frames=180,
        duration_s=6,
        n=6,
        shows={0.01: 0, 1.01: 30, 5.99: 179},
    ),
    "equal timestamps": Good(
        lambda at: write(
            at / "a.mkv", Clip(range(60), b_frames=0), same=[(10, 9), (30, 29), (31, 29)]
        ),
        frames=60,
        duration_s=2,
        n=2,
        shows={0.31: 10, 0.99: 31, 1.51: 45},
    ),
    "a cover picture beside the video": Good(
        lambda at: sound(at / "a.mp4", clip=Clip(range(60)), cover=True),
        frames=60,
        duration_s=2,
        n=2,
        shows={1.01: 30},
    ),
    "two video streams": Good(
        lambda at: write(at / "a.mp4", Clip(range(60)), Clip(range(90), size=(320, 128))),
        frames=60,
        duration_s=2,
        n=2,
        shows={1.01: 30},
    ),
    "a data stream": Good(
        lambda at: write(at / "a.mov", Clip(range(60)), timecode=True),
        frames=60,
        duration_s=2,
        n=2,
        shows={1.01: 30},
    ),
    "1000 frames a second": Good(
        lambda at: write(
            at / "a.mp4", Clip(range(1000), time_base=Fraction(1, 1000), size=(160, 32))
        ),
        frames=1000,
        duration_s=1,
        n=1,
        size=(160, 32),
        fps=1000,
        shows={0.5005: 500},
    ),
    "2000 frames a second": Bad(
        lambda at: write(at / "a.mp4", Clip(range(20), time_base=Fraction(1, 2000))), "too-large"
    ),
    "mkv named mp4": Good(
        lambda at: write(at / "a.mp4", Clip(), format="matroska"), frames=30, duration_s=1, n=1
    ),
    "mp4 named txt": Good(
        lambda at: write(at / "a.txt", Clip(), format="mp4"), frames=30, duration_s=1, n=1
    ),
    "a path with spaces, colon, percent, quotes and umlauts": Good(
        lambda at: write(at / "-a b: %03d ü漢 'q' #?.mp4", Clip()), frames=30, duration_s=1, n=1
    ),
    "flv": Good(lambda at: write(at / "a.flv", Clip(range(60))), frames=60, duration_s=2, n=2),
    "mpeg": Good(
        lambda at: write(at / "a.mpg", Clip(range(60), codec="mpeg2video")),
        frames=60,
        duration_s=2,
        n=2,
        shows={1.01: 30},
    ),
}

GOOD = {name: row for name, row in ROWS.items() if isinstance(row, Good)}
BAD = {name: row for name, row in ROWS.items() if isinstance(row, Bad)}
