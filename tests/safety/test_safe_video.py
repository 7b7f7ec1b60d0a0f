"""Videos from strangers: no other file is opened, nothing large is begun, the child is confined."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from short_film import film

from data.errors import InputError
from data.video import IsolatedDecoder, Video, VideoFacts, open_decoder, wire
from data.video.arena import Arena
from data.video.limits import VideoLimits


def _hls(secret: Path) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode()


PLAYLISTS: dict[str, Callable[[Path], bytes]] = {
    "m3u8": _hls,
    # FFmpeg looks behind an ID3 tag, whose bytes are no text
    "m3u8 behind an ID3 tag": lambda secret: b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + _hls(secret),
    "m3u8 named as a box": lambda secret: b"#EXTftyp" + _hls(secret),
    "concat": lambda secret: f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
    "sdp": lambda _: b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5 RTP/AVP 96\n",
    "dash": lambda secret: (
        b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        b"profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'><Period><AdaptationSet>"
        + f"<Representation id='0'><BaseURL>{secret}</BaseURL></Representation>".encode()
        + b"</AdaptationSet></Period></MPD>"
    ),
    "url": lambda _: b"file:///etc/passwd\n",
    "picture": lambda _: b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_playlist_named_as_a_video_opens_no_other_file(
    decoder: str, kind: str, tmp_path: Path
) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    film(tmp_path / "secret.ts", container="mpegts")
    (tmp_path / "list.mp4").write_bytes(PLAYLISTS[kind](tmp_path / "secret.ts"))
    with pytest.raises(InputError, match=r"list\.mp4") as caught:
        open_decoder(decoder).probe(Video("a", tmp_path / "list.mp4"))
    assert caught.value.reason == "not-media"


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.ts", "a.avi", "a.asf"])
def test_what_decord_may_open_is_still_recognised(name: str, tmp_path: Path) -> None:
    from data.video.signatures import is_container

    assert is_container(film(tmp_path / name).path)


def test_an_mp4_that_points_to_another_file_gives_nothing_of_it(tmp_path: Path) -> None:
    """QuickTime's data references: the frames of a film can lie in a file that it names."""
    content = film(tmp_path / "a.mov").path.read_bytes()
    here = b"\0\0\0\x0curl \0\0\0\x01"
    there = b"\0\0\0\x0curl \0\0\0\x00"  # not "in this file"
    assert here in content
    (tmp_path / "b.mov").write_bytes(content.replace(here, there))
    (tmp_path / "secret").write_bytes(content)
    assert open_decoder("pyav").probe(Video("b", tmp_path / "b.mov")).frames == 10  # its own


@pytest.mark.parametrize("kind", ["pipe", "device", "circle", "folder", "nothing"])
def test_what_is_no_file_is_missing_and_never_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(InputError, match="correct the list or put the file there") as caught:
        open_decoder("pyav").probe(Video("a", path))
    assert caught.value.reason == "missing"


# --- limits


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        (
            VideoLimits(max_pixels=63 * 64),
            r"pictures of 64x64; allowed are 4,032 pixels.*max_pixels",
        ),
        (VideoLimits(max_side=63), r"pictures of 64x64; allowed are 63 pixels a side.*max_side"),
        (VideoLimits(max_duration_h=0.9 / 3600), r"a time of 1 s .*max_duration_h"),
        (VideoLimits(max_frames=9), r"10 frames; allowed are 9.*max_frames"),
        (VideoLimits(max_fps=9), r"10 frames a second.*max_fps"),
        (VideoLimits(max_streams=0), r"1 streams.*max_streams"),
    ],
)
def test_a_header_beyond_a_limit_is_too_large_before_a_frame_is_decoded(
    limits: VideoLimits, found: str, tmp_path: Path
) -> None:
    decoder = open_decoder("pyav")
    decoder.limits = limits
    seen: list[int] = []
    decoder.progress = lambda: seen.append(1)
    with pytest.raises(InputError, match=rf"a\.mp4 declares {found}") as caught:
        decoder.probe(film(tmp_path / "a.mp4"))
    assert caught.value.reason == "too-large"
    assert seen == []


@pytest.mark.parametrize(
    "limits", [VideoLimits(max_frames=9), VideoLimits(max_duration_h=0.85 / 3600)]
)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_beyond_a_limit_end_the_decoding_where_the_header_does_not_say(
    decoder: str, limits: VideoLimits, tmp_path: Path
) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    made = open_decoder(decoder)
    made.limits = limits
    with pytest.raises(InputError) as caught:
        made.probe(film(tmp_path / "a.ts", container="mpegts"))
    assert caught.value.reason == "too-large"


def test_an_mp4_whose_ten_frames_claim_four_days_is_too_large(tmp_path: Path) -> None:
    content = bytearray(film(tmp_path / "a.mp4").path.read_bytes())
    media, steps = content.index(b"mdhd") + 16, content.index(b"stts") + 8
    timescale, duration = struct.unpack_from(">II", content, media)
    assert (duration, struct.unpack_from(">II", content, steps)) == (timescale, (1, 10))
    struct.pack_into(">I", content, media + 4, 0xFFFFFFF0)
    struct.pack_into(">I", content, steps + 8, 36_000 * timescale)  # seconds from frame to frame
    (tmp_path / "b.mp4").write_bytes(content.replace(b"edts", b"free"))
    with IsolatedDecoder() as decoder, pytest.raises(InputError, match="max_duration_h") as caught:
        decoder.probe(Video("b", tmp_path / "b.mp4"))
    assert caught.value.reason == "too-large"


def test_the_limits_of_the_pipeline_reach_the_child(tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4")
    limited = IsolatedDecoder(limits=VideoLimits(max_frames=9))
    with limited as decoder, pytest.raises(InputError, match="max_frames") as caught:
        decoder.probe(video)
    assert caught.value.reason == "too-large"


# --- the child

GREEDY = """
import resource, numpy as np
from data.video.pyav import PyAVDecoder

class Greedy(PyAVDecoder):
    def probe(self, video):
        return np.ones(1 << 32, np.uint8)

class Confined(PyAVDecoder):
    def probe(self, video):
        kinds = (resource.RLIMIT_CORE, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)
        raise ZeroDivisionError(str([resource.getrlimit(each) for each in kinds]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits are those of Linux")
def test_a_decoder_that_takes_too_much_memory_is_too_large_and_leaves_no_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greedy_decoders.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(tmp_path)
    video = film(tmp_path / "a.mp4")
    limits = VideoLimits(memory_mb=1500)
    greedy = IsolatedDecoder("greedy_decoders:Greedy", fallbacks=(), limits=limits)
    message = r"than the 1,500 MiB .*memory_mb"
    with greedy as decoder, pytest.raises(InputError, match=message) as caught:
        decoder.probe(video)
    assert caught.value.reason == "too-large"
    confined = IsolatedDecoder("greedy_decoders:Confined", fallbacks=(), limits=limits)
    message = r"\(0, 0\), \(1572864000, .*\(67108864, "
    with confined as decoder, pytest.raises(InputError, match=message):
        decoder.probe(video)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 1500 << 20  # ours is not touched


def test_the_usual_limit_is_no_hindrance(tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", size=2048, frames=3)
    with IsolatedDecoder() as decoder:
        assert decoder.probe(video).frames == 3


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from data.video.worker import Child
child = Child()
print(child._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_that_is_stopped_still_dies_with_its_parent(root: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    status = Path(f"/proc/{child}/status")
    _until(lambda: "NoNewPrivs:\t1" in status.read_text())
    os.kill(child, signal.SIGSTOP)  # it cannot see that its pipe is closed
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _until(lambda: not status.exists() or "State:\tZ" in status.read_text())


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 30 s")


# --- answers of a child that a video has taken over

FACTS = VideoFacts(1.0, 10.0, 10, 64, 64, 0, "mpeg4", "yuv420p", 100, False, 0).to_json()


def answer(header: object, payload: bytes = b"", *, sizes: tuple[int, int] | None = None) -> bytes:
    """A message of a child, with any sizes in front."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<IQ", *(sizes or (len(text), len(payload)))) + text + payload


@pytest.mark.parametrize(
    "message",
    [
        answer({}, sizes=(2, 1 << 60)),
        answer({}, sizes=(0xFFFFFFFF, 0)),
        answer(b"[1]"),
        answer(b"{" * 1000),
        answer(b'{"kind": "done", "kind": "facts"}'),
        answer(b"\xff\xfe"),
    ],
)
def test_a_message_that_is_none_is_an_error_before_memory_is_taken(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|JSON|decode|given twice|double quotes"):
        wire.read(io.BytesIO(message))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 2, 2, 3], "unit": 0, "request": "r"},  # 12 + 8 bytes, 3 came
        {"shape": [1, 1, 1, -3], "unit": 0, "request": "r"},
        {"shape": [1 << 40, 1 << 40, 1 << 40, 3], "unit": 0, "request": "r"},
        {"shape": "x", "unit": 0, "request": "r"},
        {"shape": [0, 1, 1, 3], "unit": None, "request": "r"},
        {"shape": [0, 1, 1, 3], "unit": 0, "request": "r", "offset": 0},  # 3 bytes too many
        {},
    ],
)
def test_a_window_that_is_none_is_an_error(change: dict[str, object]) -> None:
    message = wire.Message({"kind": "window", **change}, np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="window"):
        wire.unpack_window(message)


@pytest.mark.parametrize("offset", [None, -4096, 1, 1 << 70, 4096, "0", 0.0, True])
def test_a_window_at_a_place_that_is_none_is_an_error(offset: object) -> None:
    """24 pixels, said to lie in an arena of 4096 bytes, and in none."""
    header = {"kind": "window", "request": "r", "unit": 0, "shape": [1, 2, 4, 3], "offset": offset}
    for arena in (Arena(4096), None):
        message = wire.Message(header, np.zeros(8, np.uint8), arena)
        with pytest.raises(ValueError, match="window"):
            wire.unpack_window(message)


@pytest.mark.parametrize(
    "change",
    [
        {"duration_s": float("inf")},
        {"duration_s": "1"},
        {"frames": -1},
        {"frames": 1.5},
        {"width": 1 << 60},
        {"has_audio": 1},
        {"codec": None},
    ],
)
def test_facts_that_no_video_has_are_refused_wherever_they_come_from(
    change: dict[str, object],
) -> None:
    with pytest.raises(TypeError, match="facts of a video"):
        VideoFacts(**(FACTS | change))


def test_facts_of_a_child_are_held_against_the_limits() -> None:
    limits = VideoLimits()
    limits.check_facts(Path("a"), FACTS)
    for change in ({"duration_s": 1e9}, {"frames": 10**9}, {"width": 10**6}):
        with pytest.raises(InputError) as caught:
            limits.check_facts(Path("a"), FACTS | change)
        assert caught.value.reason == "too-large"
