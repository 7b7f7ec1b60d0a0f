from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from data.errors import InputError
from data.video import FrameRequest, Video, View, open_decoder
from data.video.convert import Geometry
from data.video.limits import VideoLimits
from data.video.pyav import Clock, PyAVDecoder

av = pytest.importorskip("av")

MakeVideo = Callable[..., Video]
IndexOf = Callable[[NDArray[np.uint8]], int]
ClipRequest = Callable[..., FrameRequest]

GOLDEN = "golden/extractors"
"""Of the shared folder; README.md there says how each number was made."""


@pytest.fixture
def decoder() -> PyAVDecoder:
    return PyAVDecoder()


def used(decoder: PyAVDecoder, video: Video, request: FrameRequest, index_of: IndexOf) -> list[int]:
    return [
        index_of(frame) for window in decoder.windows(video, [request]) for frame in window.frames
    ]


# --- the frame that is chosen -------------------------------------------------------------------

GOLDEN_CASES = [
    "30fps_L2",
    "30fps_L0.5",
    "30fps_L1.5",
    "29.97_L1",
    "23.976_L1/6",
    "23.976_L2_90k",
    "25_L1/6",
    "60_L1",
    "24_L2_mkv",
    "29.97_L1_mkv",
    "1fps_L2",
    "0.5fps_L1",
    "vfr_a_L2",
    "vfr_c_L1_mkv",
    "vfr_d_L0.5_sparse",
    "D1.9_L2",
    "start90_mkv_L2",
    "gap5s_L1",
]
"""A part of the 40 tables of frame_sampling_clip.json, one per kind of file."""


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_frames_are_those_of_the_public_clip_loader(
    name: str, shared: Path, make_video: MakeVideo, decoder: PyAVDecoder, index_of: IndexOf
) -> None:
    table = json.loads((shared / GOLDEN / "frame_sampling_clip.json").read_text())
    case = next(each for each in table["cases"] if each["name"] == name)
    pts = case["pts"]
    ticks = pts.get("list") or [pts["first"] + i * pts["step"] for i in range(pts["n"])]
    video = make_video(
        f"case.{case['container']}", ticks=ticks, time_base=Fraction(case["time_base"]), b_frames=0
    )
    rate = Fraction(*case["framerate_rational"])
    times = (np.arange(len(case["selected"]))[:, None] + 0.5) / float(rate)
    request = FrameRequest("clip", times, View(32, crop=False))
    assert used(decoder, video, request, index_of) == case["selected"]


def test_the_start_offset_of_a_file_is_not_part_of_its_time(
    make_video: MakeVideo, decoder: PyAVDecoder
) -> None:
    video = make_video("late.mkv", ticks=range(2700, 2730))
    facts = decoder.probe(video)
    assert facts.duration_s == pytest.approx(1.0, abs=2e-3)
    (window,) = decoder.windows(video, [FrameRequest("a", np.array([[0.0, 0.5]]), View(32))])
    assert window.times_s.tolist() == pytest.approx([0.0, 0.467], abs=2e-3)


def test_a_variable_frame_rate_is_followed_by_timestamps(
    make_video: MakeVideo, decoder: PyAVDecoder, index_of: IndexOf
) -> None:
    ticks = [0, 10, 20, 500, 510, 1900]
    video = make_video("vfr.mp4", ticks=ticks, time_base=Fraction(1, 1000))
    request = FrameRequest("a", np.array([[0.3, 0.505, 1.0, 1.95]]), View(32, False), True)
    assert used(decoder, video, request, index_of) == [2, 3, 4, 5]
    facts = decoder.probe(video)
    assert facts.frames == 6
    assert facts.fps == pytest.approx(5 / 1.9, rel=0.06)


def test_avi_with_b_frames_plays_evenly_from_zero(
    make_video: MakeVideo, decoder: PyAVDecoder, index_of: IndexOf
) -> None:
    video = make_video("old.avi")
    times = np.arange(30)[:, None] / 30
    windows = list(decoder.windows(video, [FrameRequest("a", times, View(32, False), True)]))
    assert [index_of(window.frames[0]) for window in windows] == list(range(30))
    assert [window.times_s[0] for window in windows] == pytest.approx(times[:, 0].tolist())


def test_missing_and_backward_timestamps_never_go_back() -> None:
    clock = Clock(time_base=0.1, start=10, period_s=0.5)
    assert [clock.seconds(ticks) for ticks in (10, 12, None, 11, None)] == pytest.approx(
        [0.0, 0.2, 0.7, 0.7, 1.2]
    )
    assert [Clock(1.0, None, 0.5).seconds(ticks) for ticks in (None,)] == [0.0]


def test_a_part_has_its_own_time(
    make_video: MakeVideo, decoder: PyAVDecoder, index_of: IndexOf
) -> None:
    whole = make_video(ticks=range(90))
    part = Video("part", whole.path, start_s=1.0, end_s=2.0)
    facts = decoder.probe(part)
    assert (facts.frames, facts.duration_s) == (30, pytest.approx(1.0))
    request = FrameRequest("a", np.array([[0.0, 0.5, 9.0]]), View(32, False), True)
    assert used(decoder, part, request, index_of) == [30, 45, 59]


def test_a_part_beyond_the_end_has_no_frames(make_video: MakeVideo, decoder: PyAVDecoder) -> None:
    video = Video("part", make_video().path, start_s=5.0)
    with pytest.raises(InputError, match=r"no frame in the part from 5.0 s to the end") as caught:
        decoder.probe(video)
    assert caught.value.reason == "no-frames"


# --- the pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "view", "expected"),
    [
        ((854, 480), View(224), Geometry(398, 224, (224, 87, 0))),
        ((480, 854), View(224), Geometry(224, 398, (224, 0, 87))),
        ((100, 100), View(224), Geometry(224, 224, (224, 0, 0))),
        ((320, 180), View(224, crop=False), Geometry(398, 224, None)),
    ],
)
def test_geometry_truncates_as_the_public_loaders_do(
    size: tuple[int, int], view: View, expected: Geometry
) -> None:
    assert Geometry.of(*size, view) == expected


@pytest.mark.parametrize("name", ["nasa_13013.mp4", "h264_10bits.mp4", "h265_10bits.mp4"])
def test_pixels_are_those_of_the_ffmpeg_command_line(
    name: str, shared: Path, decoder: PyAVDecoder
) -> None:
    golden = load_file(shared / GOLDEN / "decode.safetensors")
    rate = 0.5 if name.startswith("nasa") else 2.0  # the loaders' rule for short videos
    request = FrameRequest("clip", np.array([[0.5 / rate]]), View(224))
    (window,) = decoder.windows(Video("a", shared / "media" / name), [request])
    np.testing.assert_array_equal(window.frames[0], golden[f"{name}/clip_len2_crop224_first"])


@pytest.mark.parametrize("rotation", [90, 180, 270, -90])
def test_a_rotated_video_comes_out_upright(
    rotation: int, make_video: MakeVideo, decoder: PyAVDecoder
) -> None:
    plain, turned = make_video("plain.mp4"), make_video("turned.mp4", rotation=rotation)
    facts = decoder.probe(turned)
    assert (facts.width, facts.height) == ((160, 64) if rotation == 180 else (64, 160))
    request = FrameRequest("a", np.array([[0.6]]), View(64, crop=False))
    (before,) = decoder.windows(plain, [request])
    (after,) = decoder.windows(turned, [request])
    upright = np.rot90(before.frames[0], facts.rotation // 90)
    assert after.frames[0].shape == upright.shape
    assert np.abs(after.frames[0].astype(int) - upright).mean() < 2


@pytest.mark.parametrize("name", ["video_90.mov", "video_180.mov", "video_270.mov"])
def test_real_phone_videos_are_as_upright_as_the_command_line_makes_them(
    name: str, shared: Path, decoder: PyAVDecoder
) -> None:
    files = json.loads((shared / GOLDEN / "decode.json").read_text())["files"]
    golden = next(each for each in files if each["file"] == name)["upright_by_cli"]
    height, width, _ = golden["shape"]
    request = FrameRequest("a", np.zeros((1, 1)), View(min(height, width), crop=False), True)
    (window,) = decoder.windows(Video("a", shared / "media" / name), [request])
    cells = [
        [cell.mean((0, 1)) for cell in np.array_split(rows, 8, axis=1)]
        for rows in np.array_split(window.frames[0], 8, axis=0)
    ]
    np.testing.assert_allclose(np.array(cells), golden["rgb24"]["grid8x8"], atol=2.0)


def test_the_size_of_windows_is_stable_when_the_stream_changes_its_resolution(
    make_video: MakeVideo, decoder: PyAVDecoder, tmp_path: Path
) -> None:
    wide = make_video("wide.ts", size=(160, 64), b_frames=0)
    tall = make_video("tall.ts", size=(96, 128), ticks=range(30, 60), b_frames=0)
    both = tmp_path / "both.ts"
    both.write_bytes(wide.path.read_bytes() + tall.path.read_bytes())
    times = np.array([[0.2, 1.5]])
    wanted = [FrameRequest("full", times, View(32, False)), FrameRequest("crop", times, View(48))]
    windows = {each.request: each for each in decoder.windows(Video("b", both), wanted)}
    assert windows["full"].frames.shape == (2, 32, 80, 3)
    assert windows["crop"].frames.shape == (2, 48, 48, 3)
    assert windows["crop"].times_s[1] > 1.0


def test_requests_with_equal_views_get_equal_pixels_from_one_pass(
    make_video: MakeVideo, decoder: PyAVDecoder
) -> None:
    times = np.array([[0.1], [0.5]])
    together = list(
        decoder.windows(
            make_video(), [FrameRequest("a", times, View(32)), FrameRequest("b", times, View(32))]
        )
    )
    assert [(each.request, each.unit) for each in together] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
    ]
    np.testing.assert_array_equal(together[0].frames, together[1].frames)


# --- hard files ---------------------------------------------------------------------------------


def refused(decoder: PyAVDecoder, video: Video) -> str:
    with pytest.raises(InputError, match=video.path.name) as caught:
        decoder.probe(video)
    with pytest.raises(InputError) as again:
        list(decoder.windows(video, [FrameRequest("a", np.zeros((1, 1)), View(32))]))
    assert again.value.reason == caught.value.reason
    return caught.value.reason


def test_a_missing_file_and_a_folder_are_missing(decoder: PyAVDecoder, tmp_path: Path) -> None:
    assert refused(decoder, Video("a", tmp_path / "no.mp4")) == "missing"
    (tmp_path / "folder.mp4").mkdir()
    assert refused(decoder, Video("a", tmp_path / "folder.mp4")) == "missing"


def test_a_file_of_no_bytes_is_empty(decoder: PyAVDecoder, tmp_path: Path) -> None:
    (tmp_path / "none.mp4").touch()
    assert refused(decoder, Video("a", tmp_path / "none.mp4")) == "empty"


def test_text_and_noise_named_mp4_are_not_media(decoder: PyAVDecoder, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("Dear reader,\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.bytes(4096))
    assert refused(decoder, Video("a", tmp_path / "text.mp4")) == "not-media"
    assert refused(decoder, Video("a", tmp_path / "noise.mp4")) == "not-media"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{path}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile {path}\n"),
    ],
)
def test_a_playlist_is_refused_although_its_file_exists(
    name: str, text: str, make_video: MakeVideo, decoder: PyAVDecoder, tmp_path: Path
) -> None:
    secret = make_video("secret.ts")
    playlist = tmp_path / name
    playlist.write_text(text.format(path=secret.path))
    assert refused(decoder, Video("a", playlist)) == "not-media"


def test_a_name_with_a_colon_is_a_file_and_no_protocol(
    make_video: MakeVideo,
    decoder: PyAVDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_video().path.rename(tmp_path / "http:x.mp4")
    monkeypatch.chdir(tmp_path)
    assert decoder.probe(Video("a", Path("http:x.mp4"))).frames == 30


@pytest.mark.parametrize("cover", [False, True])
def test_audio_has_no_video_stream_even_with_a_cover_picture(
    cover: bool, make_audio: Callable[[bool], Video], decoder: PyAVDecoder
) -> None:
    assert refused(decoder, make_audio(cover)) == "no-video-stream"


def test_a_truncated_file_gives_the_frames_that_are_there(
    make_video: MakeVideo, decoder: PyAVDecoder, tmp_path: Path
) -> None:
    whole = make_video("whole.mkv", ticks=range(120), b_frames=0).path.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2])
    facts = decoder.probe(Video("cut", cut))
    assert 10 < facts.frames < 120
    assert facts.duration_s == pytest.approx(facts.frames / 30, abs=2e-2)


def test_an_mp4_without_its_index_is_not_media(
    make_video: MakeVideo, decoder: PyAVDecoder, tmp_path: Path
) -> None:
    whole = make_video("whole.mp4").path.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    assert refused(decoder, Video("cut", cut)) == "not-media"


def test_pictures_that_are_too_large_are_refused_before_they_are_decoded(
    make_video: MakeVideo, decoder: PyAVDecoder
) -> None:
    decoder.limits = VideoLimits(max_pixels=100 * 64)
    assert refused(decoder, make_video()) == "too-large"


def test_a_single_frame_is_a_video(
    make_video: MakeVideo, decoder: PyAVDecoder, index_of: IndexOf
) -> None:
    video = make_video(ticks=[0])
    facts = decoder.probe(video)
    assert (facts.frames, facts.fps) == (1, pytest.approx(30.0, rel=0.1))
    assert facts.duration_s == pytest.approx(1 / 30, rel=0.1)
    request = FrameRequest("a", np.array([[0.0, 5.0]]), View(32, False))
    assert used(decoder, video, request, index_of) == [0, 0]


# --- real files ---------------------------------------------------------------------------------

FACTS: dict[str, dict[str, Any]] = {
    "av1_video.mkv": {"frames": 125, "duration_s": 5.0, "fps": 25.0, "codec": "av1"},
    "bt709_full_range.mp4": {"frames": 30, "duration_s": 1.0, "fps": 30.0, "pix_fmt": "yuvj420p"},
    "corrupted.mp4": {"frames": 49, "duration_s": 5.0, "fps": 10.0, "damaged": 1},
    "h264_10bits.mp4": {"frames": 30, "duration_s": 1.0, "pix_fmt": "yuv420p10le"},
    "h265_10bits.mp4": {"frames": 30, "duration_s": 1.0, "codec": "hevc"},
    "h265_video.mp4": {"frames": 10, "duration_s": 1.0, "fps": 10.0, "codec": "hevc"},
    "nasa_13013.mp4": {"frames": 325, "duration_s": 13.0, "fps": 25.0, "has_audio": True},
    "unordered.mov": {"frames": 4, "duration_s": 0.125, "fps": 32.0},
    "video_0.mov": {"frames": 3, "duration_s": 0.1, "width": 568, "height": 320},
    "video_90.mov": {"frames": 3, "rotation": -90, "width": 320, "height": 568},
    "video_180.mov": {"frames": 3, "rotation": -180, "width": 568, "height": 320},
    "video_270.mov": {"frames": 3, "rotation": 90, "width": 320, "height": 568},
}
"""From decode.json (tolerant_decode, last pts + duration, upright size), not from this code."""


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_real_files_equal_the_golden_ones(
    name: str, shared: Path, decoder: PyAVDecoder
) -> None:
    facts = decoder.probe(Video("a", shared / "media" / name)).to_json()
    expected = {"damaged": 0, "size_bytes": (shared / "media" / name).stat().st_size, **FACTS[name]}
    assert {key: facts[key] for key in expected} == pytest.approx(expected)


def test_real_audio_is_refused_with_the_kinds_of_its_streams(
    shared: Path, decoder: PyAVDecoder
) -> None:
    video = Video("a", shared / "media" / "nasa_13013.mp4.audio.mp3")
    assert refused(decoder, video) == "no-video-stream"


def test_every_real_video_serves_every_clip_of_its_grid(
    shared: Path, decoder: PyAVDecoder, clip_request: ClipRequest
) -> None:
    for name in FACTS:
        video = Video("a", shared / "media" / name)
        n = decoder.probe(video).grid(1.0).n
        windows = list(decoder.windows(video, [clip_request(n, 1.0, View(64))]))
        assert [window.unit for window in windows] == list(range(n))
        assert {window.frames.shape for window in windows} == {(1, 64, 64, 3)}


@pytest.mark.skipif(sys.platform != "linux", reason="it counts threads in Linux's /proc")
def test_a_decoder_works_in_the_thread_that_asks(make_video: MakeVideo) -> None:
    """Filters would else start as many as there are cores, for each view, in every child."""
    times = np.array([[0.1], [0.5]])
    views = {"a": View(64), "b": View(48, mode="fast"), "c": View(32, crop=False)}
    wanted = [FrameRequest(name, times, view) for name, view in views.items()]
    windows = open_decoder("pyav").windows(make_video(), wanted)
    before = threads()
    assert [threads() for _ in windows] == [before] * 6


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))
