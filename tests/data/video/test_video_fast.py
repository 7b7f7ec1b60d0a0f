"""Mode `fast`: the same frames and the same picture, cheaper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.video import FrameRequest, Video, View, open_decoder
from data.video.convert import Geometry

pytest.importorskip("av")

MakeVideo = Callable[..., Video]

MEDIA = [
    "av1_video.mkv",
    "bt709_full_range.mp4",
    "h264_10bits.mp4",
    "h265_10bits.mp4",
    "h265_video.mp4",
    "nasa_13013.mp4",
    "unordered.mov",
    "video_0.mov",
    "video_90.mov",
    "video_180.mov",
    "video_270.mov",
]


@pytest.mark.parametrize("short_side", [64, 224, 256])
@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("name", MEDIA)
def test_fast_pictures_are_close_to_exact_ones(
    name: str, crop: bool, short_side: int, shared: Path
) -> None:
    """Of 16:9 the sides 64 and 256 give odd widths, which swscale treats as others."""
    video, times = Video("a", shared / "media" / name), np.array([[0.0, 0.05, 0.4, 0.9, 7.0]])
    wanted = [
        FrameRequest("exact", times, View(short_side, crop)),
        FrameRequest("fast", times, View(short_side, crop, "fast")),
    ]
    windows = {each.request: each for each in open_decoder("pyav").windows(video, wanted)}
    exact, fast = windows["exact"], windows["fast"]
    assert fast.frames.shape == exact.frames.shape
    assert fast.times_s.tolist() == exact.times_s.tolist()
    difference = np.abs(fast.frames.astype(int) - exact.frames)
    # The bounds of docs/decoding.md; a neighbouring pixel is 5 to 40 away.
    assert difference.mean() < (2.5 if short_side >= 224 else 3.2)
    assert abs((fast.frames.astype(int) - exact.frames).mean()) < 2.1


def test_fast_pictures_are_not_the_exact_ones(shared: Path) -> None:
    video, times = Video("a", shared / "media" / "nasa_13013.mp4"), np.array([[8.0]])
    exact, fast = (
        next(iter(open_decoder("pyav").windows(video, [FrameRequest("a", times, view)])))
        for view in (View(224), View(224, mode="fast"))
    )
    assert (exact.frames != fast.frames).any()


@pytest.mark.parametrize(
    "size", [(640, 360), (854, 480), (1280, 720), (1920, 1080), (360, 640), (426, 240), (177, 144)]
)
def test_the_region_that_is_scaled_lies_where_the_crop_of_the_whole_frame_would(
    size: tuple[int, int],
) -> None:
    whole, cut = Geometry.of(*size, View(224)), Geometry.of(*size, View(224, mode="fast"))
    assert whole.crop is not None
    assert cut.crop is not None
    assert cut.region is not None
    axis = 0 if size[0] > size[1] else 1
    scale = size[axis] / (whole.width, whole.height)[axis]
    start, length = cut.region[2 + axis], cut.region[axis]
    scaled = (cut.width, cut.height)[axis]
    for pixel in (0, 223):
        there = (whole.crop[1 + axis] + pixel + 0.5) * scale
        here = start + (cut.crop[1 + axis] + pixel + 0.5) * length / scaled
        assert here == pytest.approx(there, abs=0.2)
    assert 224 <= scaled <= 224 + 48
    assert start % 2 == 0
    assert start + length <= size[axis]


@pytest.mark.parametrize("size", [(100, 100), (224, 224), (226, 224), (60, 61)])
def test_a_square_or_nearly_square_frame_is_served_whole(
    size: tuple[int, int], make_video: MakeVideo
) -> None:
    even = tuple(each // 2 * 2 for each in size)
    request = FrameRequest("a", np.array([[0.1]]), View(224, mode="fast"))
    (window,) = open_decoder("pyav").windows(make_video(size=even), [request])
    assert window.frames.shape == (1, 224, 224, 3)
    assert Geometry.of(*size, View(224, mode="fast")).crop is not None
