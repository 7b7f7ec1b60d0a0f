from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from decoding_children import children

from data.errors import InputError, UsageError
from data.video import FrameRequest, IsolatedDecoder, Video, View, Window, open_decoder, wire

pytest.importorskip("av")

MakeVideo = Callable[..., Video]
ClipRequest = Callable[..., FrameRequest]

BAD_DECODERS = '''
import os, signal, time
from data.errors import InputError
from data.video.pyav import PyAVDecoder


class Crashing(PyAVDecoder):
    """Dies of a real segmentation fault."""

    def probe(self, video):
        os.write(2, b"about to crash")
        os.kill(os.getpid(), signal.SIGSEGV)

    def windows(self, video, requests):
        self.probe(video)


class CrashingLate(PyAVDecoder):
    def windows(self, video, requests):
        windows = super().windows(video, requests)
        yield next(windows)
        os.kill(os.getpid(), signal.SIGSEGV)


class Hanging(PyAVDecoder):
    def probe(self, video):
        time.sleep(600)


class Slow(PyAVDecoder):
    """Takes longer than the time limit of its test, frame by frame."""

    def probe(self, video):
        for _ in range(30):
            time.sleep(0.15)
            self.progress()
        return super().probe(video)


class Raising(PyAVDecoder):
    def probe(self, video):
        raise ZeroDivisionError("a bug")


class Printing(PyAVDecoder):
    """Writes where the answers go."""

    def probe(self, video):
        os.write(1, b"chatter")
        print("chatter", flush=True)
        return super().probe(video)
'''


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Names of decoders that misbehave, importable by the child."""
    (tmp_path / "bad_decoders.py").write_text(BAD_DECODERS)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: f"bad_decoders:{name}"


@pytest.fixture(scope="module")
def isolated() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder() as decoder:
        yield decoder


def assert_equal(one: list[Window], other: list[Window]) -> None:
    assert [(each.request, each.unit) for each in one] == [
        (each.request, each.unit) for each in other
    ]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.times_s, b.times_s)


def requests() -> list[FrameRequest]:
    clip = FrameRequest("clip", (np.arange(6)[:, None] + 0.5) * 0.5, View(48))
    fast = np.arange(6)[:, None] * 0.5 + np.arange(8) / 16
    return [clip, FrameRequest("fast", fast, View(48), inclusive=True)]


def test_the_child_answers_as_the_decoder_does_in_process(
    make_video: MakeVideo, isolated: IsolatedDecoder
) -> None:
    video = make_video(ticks=range(90))
    assert isolated.probe(video) == open_decoder("pyav").probe(video)
    assert_equal(
        list(isolated.windows(video, requests())),
        list(open_decoder("pyav").windows(video, requests())),
    )
    assert isolated.used == "pyav"


def test_prefetched_windows_equal_those_without_prefetch(
    make_video: MakeVideo, isolated: IsolatedDecoder
) -> None:
    videos = [make_video(f"{i}.mp4", ticks=range(30 * (i + 1))) for i in range(3)]
    plain = [list(isolated.windows(video, requests())) for video in videos]
    ahead = []
    isolated.prefetch(videos[0], requests())
    for video, following in zip(videos, [*videos[1:], None], strict=True):
        windows = isolated.windows(video, requests())
        ahead.append([next(windows)])
        if following is not None:
            isolated.prefetch(following, requests())
        ahead[-1] += list(windows)
    for one, other in zip(plain, ahead, strict=True):
        assert_equal(one, other)


def test_a_prefetch_that_is_not_used_changes_nothing(
    make_video: MakeVideo, isolated: IsolatedDecoder
) -> None:
    first, second = make_video("1.mp4"), make_video("2.mp4", ticks=range(60))
    isolated.prefetch(first, requests())
    windows = list(isolated.windows(second, requests()))
    assert_equal(windows, list(open_decoder("pyav").windows(second, requests())))


def test_several_videos_may_be_prefetched_and_are_decoded_once(make_video: MakeVideo) -> None:
    videos = [make_video(f"{i}.mp4", ticks=range(30 * (i + 1))) for i in range(4)]
    with IsolatedDecoder(ahead=2) as decoder:
        for video in videos[:2]:
            decoder.prefetch(video, requests())
        first, second = [work.child.pid for work in decoder._prefetched]
        decoder.prefetch(videos[0], requests())  # it is ahead already
        assert [work.child.pid for work in decoder._prefetched] == [first, second]
        decoder.prefetch(videos[2], requests())  # takes the place of the oldest
        pids = [work.child.pid for work in decoder._prefetched]
        assert pids[0] == second
        assert first not in pids
        served = [list(decoder.windows(video, requests())) for video in videos]
        assert not decoder._prefetched
    for video, windows in zip(videos, served, strict=True):
        assert_equal(windows, list(open_decoder("pyav").windows(video, requests())))


def test_a_small_buffer_holds_the_child_back_and_loses_nothing(make_video: MakeVideo) -> None:
    video = make_video(ticks=range(90))
    with IsolatedDecoder(buffer_bytes=1) as decoder:
        windows = []
        for window in decoder.windows(video, requests()):
            time.sleep(0.005)
            windows.append(window)
    assert_equal(windows, list(open_decoder("pyav").windows(video, requests())))


def test_a_crash_is_an_error_of_the_video_and_the_next_one_gets_a_new_child(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    with IsolatedDecoder(bad("Crashing"), fallbacks=()) as decoder:
        for _ in range(2):
            with pytest.raises(
                InputError, match=r"a\.mp4.*SIGSEGV; it wrote last: about to crash"
            ) as caught:
                decoder.probe(make_video())
            assert caught.value.reason == "decoder-crashed"


def test_a_decoder_that_crashes_is_followed_by_the_fallback(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    video = make_video(ticks=range(90))
    with IsolatedDecoder(bad("Crashing"), fallbacks=("pyav",)) as decoder:
        windows = list(decoder.windows(video, requests()))
        assert decoder.used == "pyav"
    assert_equal(windows, list(open_decoder("pyav").windows(video, requests())))


def test_a_crash_after_the_first_window_is_raised_and_the_next_attempt_uses_the_fallback(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    video = make_video(ticks=range(90))
    with IsolatedDecoder(bad("CrashingLate"), fallbacks=("pyav",)) as decoder:
        windows = decoder.windows(video, requests())
        next(windows)
        with pytest.raises(InputError, match="SIGSEGV"):
            list(windows)
        assert len(list(decoder.windows(video, requests()))) == 12
        assert decoder.used == "pyav"


def test_a_decoder_that_hangs_is_ended_after_the_time_limit(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    with (
        IsolatedDecoder(bad("Hanging"), fallbacks=(), timeout_s=0.5) as decoder,
        pytest.raises(InputError, match=r"gave nothing for 0.5 s") as caught,
    ):
        decoder.probe(make_video())
    assert caught.value.reason == "decoder-timeout"


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs a process that can be stopped")
def test_a_child_that_does_not_even_read_its_job_is_ended_after_the_time_limit(
    make_video: MakeVideo, clip_request: ClipRequest
) -> None:
    """The times of a long video are more than a pipe holds."""
    video, wanted = make_video(), [clip_request(100_000, 0.001)]
    others = set(children())  # of the decoder that all tests here share
    with IsolatedDecoder(fallbacks=(), timeout_s=1.0) as decoder:
        decoder.warm()
        (child,) = set(children()) - others
        os.kill(child, signal.SIGSTOP)
        decoder.prefetch(video, wanted)  # comes back at once
        with pytest.raises(InputError, match=r"gave nothing for 1 s") as caught:
            next(decoder.windows(video, wanted))
    assert caught.value.reason == "decoder-timeout"
    assert set(children()) == others


def test_a_decoder_that_is_slow_but_gives_frames_is_not_ended(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    with IsolatedDecoder(bad("Slow"), fallbacks=(), timeout_s=3) as decoder:
        assert decoder.probe(make_video()).frames > 0


def test_a_bug_in_a_decoder_is_reported_with_its_traceback(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    with (
        IsolatedDecoder(bad("Raising"), fallbacks=()) as decoder,
        pytest.raises(InputError, match=r"(?s)Traceback.*ZeroDivisionError: a bug") as caught,
    ):
        decoder.probe(make_video())
    assert caught.value.reason == "decoder-crashed"


def test_what_a_library_prints_does_not_disturb_the_answers(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    with IsolatedDecoder(bad("Printing"), fallbacks=()) as decoder:
        assert decoder.probe(make_video()).frames == 30


def test_no_fallback_is_tried_for_a_file_that_is_missing(
    tmp_path: Path, bad: Callable[[str], str]
) -> None:
    with (
        IsolatedDecoder("pyav", fallbacks=(bad("Crashing"),)) as decoder,
        pytest.raises(InputError, match="does not exist") as caught,
    ):
        decoder.probe(Video("a", tmp_path / "no.mp4"))
    assert caught.value.reason == "missing"


def test_when_all_decoders_fail_the_error_names_what_each_said(
    make_video: MakeVideo, bad: Callable[[str], str]
) -> None:
    with (
        IsolatedDecoder(bad("Raising"), fallbacks=(bad("Crashing"),)) as decoder,
        pytest.raises(InputError, match=r"(?s)ZeroDivisionError.*fallback '.*Crashing'.*SIGSEGV"),
    ):
        decoder.probe(make_video())


def test_an_unknown_decoder_is_a_usage_error_and_not_one_of_the_video(
    make_video: MakeVideo,
) -> None:
    with (
        IsolatedDecoder("pyaw", fallbacks=()) as decoder,
        pytest.raises(UsageError, match="did you mean 'pyav'"),
    ):
        decoder.probe(make_video())


def test_a_damaged_video_is_kept_or_refused_as_the_policy_says(
    shared: Path, isolated: IsolatedDecoder, clip_request: ClipRequest
) -> None:
    video = Video("a", shared / "media" / "corrupted.mp4")
    assert isolated.probe(video).damaged == 1
    with IsolatedDecoder(damaged="quarantine") as strict:
        with pytest.raises(InputError, match=r"corrupted\.mp4: 1 packets") as caught:
            strict.probe(video)
        assert caught.value.reason == "damaged"
        with pytest.raises(InputError, match=r"corrupted\.mp4: 1 packets"):
            list(strict.windows(video, [clip_request(3, 2.0)]))


def test_an_iteration_that_is_given_up_does_not_disturb_the_next(
    make_video: MakeVideo, isolated: IsolatedDecoder
) -> None:
    video = make_video(ticks=range(90))
    windows = isolated.windows(video, requests())
    next(windows)
    windows.close()  # type: ignore[attr-defined]
    assert isolated.probe(video).frames == 90


def test_closing_ends_all_children(make_video: MakeVideo) -> None:
    decoder = IsolatedDecoder()
    video = make_video(ticks=range(90))
    windows = decoder.windows(video, requests())
    next(windows)
    decoder.prefetch(video, requests())
    assert len(children()) >= 2
    before = set(children())
    decoder.close()
    assert len(before - set(children())) == 2
    with pytest.raises(InputError, match="it was ended"):
        list(windows)


def test_a_child_ends_with_its_parent() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "data.video.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.communicate(timeout=20)
    assert child.returncode == 0


def test_importing_the_package_needs_no_decoder(tmp_path: Path) -> None:
    code = "import sys, data.video; sys.exit(bool({'av', 'decord', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_jobs_and_windows_survive_the_wire() -> None:
    video = Video("a", Path(os.fsdecode(b"caf\xe9.mp4")), 0.1, None)
    job = wire.Job("windows", "pyav", video, tuple(requests()))
    pipe = io.BytesIO()
    wire.write(pipe, *job.pack())
    window = Window(
        "clip", 3, np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.array([0.1, 2])
    )
    wire.write(pipe, *wire.pack_window(window))
    pipe.seek(0)
    first, second = wire.read(pipe), wire.read(pipe)
    assert first is not None
    assert second is not None
    assert wire.Job.unpack(first).pack() == job.pack()
    assert wire.Job.unpack(first).video == video
    assert_equal([wire.unpack_window(second)], [window])
    assert wire.read(pipe) is None
