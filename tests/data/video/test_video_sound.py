"""Sound of videos that the tests write themselves, on the clock of their pictures."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sound_films import (
    FPS,
    RATE_HZ,
    MakeFilm,
    clicks,
    joined,
    onset_s,
    read,
    request,
    tones,
    write_film,
)

from data.errors import InputError
from data.video import IsolatedDecoder, Video
from data.video.limits import VideoLimits
from data.video.sound import SoundReader
from data.video.types import SoundRequest

av = pytest.importorskip("av")


@pytest.fixture
def make_film(tmp_path: Path) -> MakeFilm:
    """`write_film` by name."""
    return lambda name, *args, **more: write_film(tmp_path / name, *args, **more)


# What comes out is the mean of the channels, whatever the file holds. The bound on the root mean
# square error is that of the codec: quantisation (8 or 16 bits), or the noise of lossy coding.
@pytest.mark.parametrize(
    ("name", "codec", "layout", "rate_hz", "error"),
    [
        ("a.mkv", "flac", "mono", 32_000, 4e-5),
        ("a.mkv", "flac", "stereo", 44_100, 4e-4),
        ("a.mkv", "flac", "5.1", 48_000, 4e-4),
        ("a.mkv", "flac", "stereo", 96_000, 4e-4),
        ("a.mov", "pcm_s16le", "stereo", 8_000, 2e-3),
        ("a.mov", "pcm_s24le", "mono", 48_000, 4e-4),
        ("a.mov", "pcm_f32le", "stereo", 22_050, 4e-4),
        ("a.avi", "pcm_u8", "mono", 16_000, 8e-3),
        ("a.mp4", "aac", "stereo", 44_100, 0.01),
        ("a.mp4", "aac", "5.1", 48_000, 0.01),
        ("a.mkv", "ac3", "5.1", 48_000, 0.01),
        ("a.mp4", "mp3", "stereo", 44_100, 0.015),
        ("a.mkv", "libopus", "stereo", 48_000, 0.01),
    ],
)
def test_any_codec_layout_and_rate_becomes_the_mean_of_the_channels(
    make_film: MakeFilm, name: str, codec: str, layout: str, rate_hz: int, error: float
) -> None:
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    film = make_film(name, tones(rate_hz, channels, 4.2), rate_hz, codec, layout)
    windows = read(film, request(2))
    assert [(each.unit, each.heard) for each in windows] == [(0, 1.0), (1, 1.0)]
    want = tones(RATE_HZ, channels, 4.0)
    if channels == 6 and codec in {"aac", "ac3"}:
        want[3] = 0  # their low-frequency channel carries nothing above 120 Hz
    inside = slice(RATE_HZ // 5, -RATE_HZ // 5)
    difference = (joined(windows) - want.mean(axis=0))[inside]
    assert np.sqrt(np.square(difference).mean()) < error


def test_one_loud_channel_of_two_is_halved_and_not_weighted_as_ffmpeg_does(
    make_film: MakeFilm,
) -> None:
    sound = np.concatenate([tones(RATE_HZ, 1, 2.0), np.zeros((1, 2 * RATE_HZ))])
    (window,) = read(make_film("a.mkv", sound, layout="stereo"), request(1))
    assert abs(window.samples).max() == pytest.approx(0.4 / 2, abs=1e-4)  # ffmpeg: 0.4 / sqrt(2)


def test_the_same_samples_as_the_ffmpeg_command_line(shared: Path) -> None:
    film = shared / "media" / "nasa_13013.mp4"
    if shutil.which("ffmpeg") is None or not film.is_file():
        pytest.skip("needs the ffmpeg command and the shared media")
    mean = "pan=mono|c0=0.5*c0+0.5*c1,aresample=32000"
    command = ["ffmpeg", "-v", "error", "-i", str(film), "-map", "0:a:0", "-af", mean]
    done = subprocess.run([*command, "-f", "f32le", "-"], capture_output=True, check=True)
    want = np.frombuffer(done.stdout, "<f4")
    windows = read(Video("nasa", film), request(7))
    assert [each.heard for each in windows] == [1.0] * 6 + [0.528]  # 13.056 s of sound
    got = joined(windows)[: len(want)]
    np.testing.assert_allclose(got, want[: len(got)], atol=1e-6)


def test_sound_that_starts_late_is_late_and_its_absence_is_told(make_film: MakeFilm) -> None:
    late = make_film("late.mkv", clicks(RATE_HZ, 2.5, 0.25), sound_from_s=1.5)
    windows = read(late, request(3))
    assert [each.heard for each in windows] == pytest.approx([0.25, 1.0, 0.0], abs=1e-3)
    assert onset_s(joined(windows)) == pytest.approx([1.75], abs=0.002)
    assert not windows[0].samples[: RATE_HZ * 3 // 2 - 40].any()


def test_time_is_that_of_the_pictures_when_they_start_later(make_film: MakeFilm) -> None:
    film = make_film("b.mkv", clicks(RATE_HZ, 5.0, 0.5, 1.5), pictures_from_s=1.0)
    windows = read(film, request(2))
    assert onset_s(joined(windows)) == pytest.approx([0.5], abs=0.002)
    assert [each.heard for each in windows] == pytest.approx([1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "mp3"), ("a.mkv", "libopus")]
)
def test_the_silence_that_encoders_put_first_does_not_shift_the_sound(
    make_film: MakeFilm, name: str, codec: str
) -> None:
    rate_hz = 48_000
    film = make_film(name, clicks(rate_hz, 4.0, 0.5, 3.0), rate_hz, codec)
    assert onset_s(joined(read(film, request(2)))) == pytest.approx([0.5, 3.0], abs=0.003)


def test_a_gap_is_zeros_and_what_follows_keeps_its_time(make_film: MakeFilm) -> None:
    sound = clicks(RATE_HZ, 4.0, 0.5, 2.5) + 0.01
    film = make_film("gap.mkv", sound, gap=(RATE_HZ, 1.0), seconds=6.0)
    windows = read(film, request(5, 1.0))
    # flac holds blocks of 4,608 samples, and a block is not cut by the gap
    assert [each.heard for each in windows] == pytest.approx([1, 0, 1, 1, 1], abs=0.15)
    assert sum(each.heard for each in windows) == pytest.approx(4.0, abs=1e-3)
    assert onset_s(joined(windows)) == pytest.approx([0.5, 3.5], abs=0.01)


def test_timestamps_in_milliseconds_tear_no_holes_into_the_sound(make_film: MakeFilm) -> None:
    sound = tones(44_100, 1, 6.0)
    windows = read(make_film("ms.mkv", sound, 44_100, "aac"), request(3))
    assert [each.heard for each in windows[:2]] == [1.0, 1.0]
    step = np.abs(np.diff(joined(windows)[3200 : 5 * RATE_HZ])).max()
    assert step < 0.4 * 2 * np.pi * 220 / RATE_HZ * 1.1  # the steepest step of the sine itself


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "flac"), ("a.mov", "pcm_s16le"), ("a.mp4", "aac")]
)
def test_a_part_has_the_sound_of_its_own_time_and_no_more(
    make_film: MakeFilm, name: str, codec: str
) -> None:
    sound = clicks(RATE_HZ, 60.0, *(np.arange(1, 60) + 0.25)) + tones(RATE_HZ, 1, 60.0) / 8
    whole = make_film(name, sound, codec=codec, seconds=60.0)
    part = replace(whole, start_s=40.5, end_s=45.0)
    windows = read(part, request(3))
    assert [each.heard for each in windows] == pytest.approx([1, 1, 0.25], abs=1e-3)
    assert onset_s(joined(windows)) == pytest.approx([0.75, 1.75, 2.75, 3.75], abs=0.003)
    shifted = SoundRequest("sound", np.array([40.5, 42.5]), 2.0, RATE_HZ)
    early = SoundRequest("sound", np.array([0.0, 40.5, 42.5]), 2.0, RATE_HZ)
    without_seeking = joined(read(whole, early)[1:])
    np.testing.assert_allclose(joined(read(whole, shifted)), without_seeking, atol=1e-4)
    np.testing.assert_allclose(joined(windows[:2]), without_seeking, atol=1e-4)


def test_windows_may_overlap_and_begin_before_the_video(make_film: MakeFilm) -> None:
    film = make_film("a.mkv", tones(RATE_HZ, 1, 4.0))
    starts = np.array([-0.5, 0.25, 1.0])
    windows = read(film, SoundRequest("sound", starts, 1.5, RATE_HZ))
    assert [each.heard for each in windows] == pytest.approx([2 / 3, 1, 1])
    np.testing.assert_array_equal(windows[1].samples[24_000:], windows[2].samples[:24_000])


def test_a_video_without_sound_gives_nothing(make_video: Any) -> None:
    assert read(make_video(), request(2)) == []


@pytest.mark.parametrize(
    ("contents", "reason"), [(b"no video" * 99, "not-media"), (b"", "empty"), (None, "missing")]
)
def test_a_file_that_is_no_video_has_the_reason_that_the_pictures_give(
    tmp_path: Path, contents: bytes | None, reason: str
) -> None:
    if contents is not None:
        (tmp_path / "bad.mp4").write_bytes(contents)
    with pytest.raises(InputError) as caught:
        read(Video("bad", tmp_path / "bad.mp4"), request(1))
    assert caught.value.reason == reason


def overwrite_packets(video: Video, start_s: float, end_s: float) -> int:
    """Replace the sound's packets in `[start_s, end_s)` by noise that no decoder takes."""
    with av.open(str(video.path)) as container:
        places = [
            (packet.pos, packet.size)
            for packet in container.demux(container.streams.audio[0])
            if packet.pts is not None and start_s <= packet.pts * packet.time_base < end_s
        ]
    content = bytearray(video.path.read_bytes())
    for place, size in places:
        content[place : place + size] = b"\x5a" * size
    video.path.write_bytes(bytes(content))
    return len(places)


def test_damaged_packets_are_counted_and_the_rest_stays_in_its_place(make_film: MakeFilm) -> None:
    film = make_film("d.mov", clicks(RATE_HZ, 6.0, 0.5, 5.0), codec="mp3", seconds=6.0)
    overwrite_packets(film, 2.0, 3.0)
    reader = SoundReader()
    windows = list(reader.windows(film, request(6, 1.0)))
    assert reader.damaged > 0
    assert [each.heard for each in windows] == pytest.approx([1, 1, 0, 1, 1, 1], abs=0.1)
    assert onset_s(joined(windows)) == pytest.approx([0.5, 5.0], abs=0.003)
    with (
        IsolatedDecoder(damaged="quarantine") as strict,
        pytest.raises(InputError, match=f"{reader.damaged} packets could not be decoded") as caught,
    ):
        list(strict.sounds(film, request(6, 1.0)))
    assert caught.value.reason == "damaged"


def test_a_single_lost_packet_does_not_shift_what_follows(make_film: MakeFilm) -> None:
    film = make_film("one.mov", clicks(RATE_HZ, 6.0, 0.5, 5.0), codec="mp3", seconds=6.0)
    overwrite_packets(film, 2.0, 2.03)  # less than the jump that timestamps may make unheeded
    windows = read(film, request(3))
    assert 0.02 < 6 - 2 * sum(each.heard for each in windows) < 0.1
    assert onset_s(joined(windows)) == pytest.approx([0.5, 5.0], abs=0.003)


def test_sound_of_which_nothing_decodes_is_an_error_and_not_silence(make_film: MakeFilm) -> None:
    film = make_film("d.mov", tones(RATE_HZ, 1, 4.0), codec="mp3")
    overwrite_packets(film, -1, 9)
    with pytest.raises(
        InputError, match=r"not one sample .* \(ffmpeg -i IN -c copy -an OUT"
    ) as caught:
        read(film, request(2))
    assert caught.value.reason == "undecodable"


def test_sound_in_an_unknown_format_is_an_error_and_not_silence(make_film: MakeFilm) -> None:
    film = make_film("u.mov", tones(RATE_HZ, 1, 4.0), codec="pcm_s16le")
    content = film.path.read_bytes()
    assert content.count(b"sowt") == 1
    film.path.write_bytes(content.replace(b"sowt", b"zzzz"))
    with pytest.raises(InputError, match="no decoder for") as caught:
        read(film, request(2))
    assert caught.value.reason == "undecodable"


def test_samples_that_are_not_finite_or_absurdly_loud_do_no_harm(make_film: MakeFilm) -> None:
    sound = tones(RATE_HZ, 1, 2.0)
    sound[0, 100], sound[0, 200], sound[0, 300] = np.nan, np.inf, 1e30
    (window,) = read(make_film("n.mov", sound, codec="pcm_f32le"), request(1))
    assert window.samples[[100, 200, 300]].tolist() == [0.0, 0.0, 8.0]
    assert np.isfinite(window.samples).all()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (VideoLimits(max_channels=1), "sound of 2 channels"),
        (VideoLimits(max_rate_hz=16_000), "sound of 32,000 Hz"),
        (VideoLimits(max_duration_h=0.001), "a time of"),
        (VideoLimits(max_streams=1), "2 streams"),
    ],
)
def test_sound_beyond_a_limit_is_too_large(
    make_film: MakeFilm, limits: VideoLimits, words: str
) -> None:
    film = make_film("a.mkv", tones(RATE_HZ, 2, 4.0), layout="stereo")
    reader = SoundReader()
    reader.limits = limits
    with pytest.raises(InputError, match=words) as caught:
        list(reader.windows(film, request(2)))
    assert caught.value.reason == "too-large"


def test_memory_is_that_of_a_window_however_long_the_sound(make_film: MakeFilm) -> None:
    film = make_film("long.mov", np.zeros((1, 8_000 * 400)), 8_000, "pcm_s16le", seconds=1.0)
    tracemalloc.start()
    heard = [window.heard for window in SoundReader().windows(film, request(200))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert heard == [1.0] * 200
    assert peak < 4 * 2**20  # the sound at 32 kHz has 51 MB


@pytest.mark.parametrize(
    "wanted",
    [
        SoundRequest("sound", np.array([2.0, 1.0]), 1.0, RATE_HZ),
        SoundRequest("sound", np.array([0.0, np.nan]), 1.0, RATE_HZ),
        SoundRequest("sound", np.zeros((2, 1)), 1.0, RATE_HZ),
        SoundRequest("sound", np.arange(2.0), 0.0, RATE_HZ),
    ],
)
def test_a_request_that_makes_no_sense_is_a_mistake_of_the_caller(
    make_film: MakeFilm, wanted: SoundRequest
) -> None:
    with pytest.raises(ValueError, match="needs finite starts_s"):
        read(make_film("a.mkv", tones(RATE_HZ, 1, 1.0)), wanted)


def test_a_stream_that_appears_in_the_middle_does_not_end_the_sound(make_film: MakeFilm) -> None:
    """Recordings of broadcasts; PyAV's demuxing loop fails at the first packet of such a stream."""
    first = make_film("one.ts", clicks(RATE_HZ, 8.0, 0.5), codec="mp2", seconds=8.0)
    later = first.path.with_name("two.ts")
    with av.open(str(later), "w") as container:
        film = container.add_stream("mpeg4", rate=FPS)
        film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        tracks = [container.add_stream("mp2", rate=RATE_HZ, layout="mono") for _ in range(2)]
        grey = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), "rgb24")
        grey.pts, grey.time_base = 80, Fraction(1, FPS)
        container.mux(film.encode(grey))
        for track in tracks:
            block = clicks(RATE_HZ, 2.0, 1.0).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(block, "fltp", "mono")
            frame.sample_rate, frame.pts = RATE_HZ, 8 * RATE_HZ
            frame.time_base = Fraction(1, RATE_HZ)
            container.mux(track.encode(frame))
        for stream in (film, *tracks):
            container.mux(stream.encode(None))
    # Opening a transport stream reads its end, too, so the stream must be gone there.
    rest = np.zeros((1, 60 * RATE_HZ))
    last = make_film(
        "three.ts", rest, codec="mp2", seconds=60.0, sound_from_s=10.0, pictures_from_s=10.0
    )
    parts = [each.read_bytes() for each in (first.path, later, last.path)]
    first.path.write_bytes(b"".join(parts))
    with av.open(str(first.path)) as container, pytest.raises(IndexError):
        for _ in container.demux(container.streams.audio[0]):
            pass
    windows = read(first, request(40))
    assert onset_s(joined(windows)) == pytest.approx([0.5, 9.0], abs=0.05)
    assert [each.heard for each in windows] == pytest.approx([1.0] * 35 + [0.0] * 5, abs=0.05)
