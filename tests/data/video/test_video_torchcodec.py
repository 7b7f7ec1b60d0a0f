"""torchcodec is optional: these tests are skipped where it cannot be loaded.

PYTHONPATH=<folder with torchcodec> pytest tests/data/video/test_video_torchcodec.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.errors import InputError, UsageError
from data.video import Decoder, FrameRequest, Video, View, open_decoder
from data.video.limits import VideoLimits

MakeVideo = Callable[..., Video]
ClipRequest = Callable[..., FrameRequest]


@pytest.fixture
def decoder() -> Decoder:
    try:
        return open_decoder("torchcodec")
    except UsageError as error:
        pytest.skip(f"torchcodec needs its package and the system's FFmpeg: {error}")


def test_without_its_package_torchcodec_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UsageError, match=r"\[torchcodec\].*system's FFmpeg 4 to 8"):
        open_decoder("torchcodec")


def test_torchcodec_and_pyav_serve_nearly_the_same_pixels(
    decoder: Decoder, make_video: MakeVideo, clip_request: ClipRequest
) -> None:
    video = make_video(ticks=range(90))
    request = clip_request(6, 0.5, View(48, crop=False))
    ours = list(open_decoder("pyav").windows(video, [request]))
    theirs = list(decoder.windows(video, [request]))
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.times_s, other.times_s, atol=1e-6)
        assert np.abs(one.frames.astype(int) - other.frames).mean() < 2


@pytest.mark.parametrize(
    "name", ["nasa_13013.mp4", "video_90.mov", "video_270.mov", "h265_video.mp4", "av1_video.mkv"]
)
def test_the_facts_of_real_files_are_those_of_pyav(
    name: str, decoder: Decoder, shared: Path
) -> None:
    video = Video("a", shared / "media" / name)
    ours, theirs = open_decoder("pyav").probe(video).to_json(), decoder.probe(video).to_json()
    for number in ("duration_s", "fps"):
        assert theirs.pop(number) == pytest.approx(ours.pop(number), rel=1e-6)
    assert theirs == ours


def test_a_part_and_a_late_start_have_their_own_time(
    decoder: Decoder, make_video: MakeVideo, index_of: Callable[[NDArray[np.uint8]], int]
) -> None:
    late = make_video("late.mkv", ticks=range(2700, 2790))
    part = Video("part", late.path, start_s=1.0, end_s=2.0)
    request = FrameRequest("a", np.array([[0.0, 0.5, 9.0]]), View(32, False), True)
    (ours,) = open_decoder("pyav").windows(part, [request])
    (theirs,) = decoder.windows(part, [request])
    assert [index_of(frame) for frame in theirs.frames] == [index_of(f) for f in ours.frames]
    assert decoder.probe(part).frames == 30


def test_rotated_pictures_are_upright(decoder: Decoder, shared: Path) -> None:
    request = FrameRequest("a", np.zeros((1, 1)), View(64, crop=False), True)
    video = Video("a", shared / "media" / "video_90.mov")
    (ours,) = open_decoder("pyav").windows(video, [request])
    (theirs,) = decoder.windows(video, [request])
    assert theirs.frames.shape == ours.frames.shape
    assert np.abs(theirs.frames.astype(int) - ours.frames).mean() < 3


def test_a_broken_packet_and_wrong_times_are_undecodable(
    decoder: Decoder, shared: Path, make_video: MakeVideo
) -> None:
    for video in (Video("a", shared / "media" / "corrupted.mp4"), make_video("old.avi")):
        with pytest.raises(InputError, match="use decoder 'pyav'") as caught:
            decoder.probe(video)
        assert caught.value.reason == "undecodable"


def test_files_are_refused_for_the_reasons_of_pyav(
    decoder: Decoder, make_video: MakeVideo, make_audio: Callable[[bool], Video], tmp_path: Path
) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {make_video('secret.ts').path}\n")
    (tmp_path / "none.mp4").touch()
    cases = {
        "missing": Video("a", tmp_path / "no.mp4"),
        "empty": Video("a", tmp_path / "none.mp4"),
        "not-media": Video("a", playlist),
        "no-video-stream": make_audio(False),
        "no-frames": Video("a", make_video().path, start_s=5.0),
    }
    for reason, video in cases.items():
        with pytest.raises(InputError) as caught:
            decoder.probe(video)
        assert caught.value.reason == reason
    decoder.limits = VideoLimits(max_frames=10)
    with pytest.raises(InputError, match="max_frames"):
        decoder.probe(make_video())


def test_progress_is_called_and_memory_is_the_callers(
    decoder: Decoder, make_video: MakeVideo, clip_request: ClipRequest
) -> None:
    calls: list[int] = []
    given: list[NDArray[np.uint8]] = []

    def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        given.append(np.empty(shape, np.uint8))
        return given[-1]

    decoder.progress, decoder.allocate = (lambda: calls.append(1)), allocate
    windows = list(decoder.windows(make_video(), [clip_request(2, 0.5)]))
    assert [window.frames is array for window, array in zip(windows, given, strict=True)] == [
        True,
        True,
    ]
    assert len(calls) >= 20
