"""Windows in shared memory: views that stay, bounded memory, nothing that is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from decoding_children import children
from hard_media import Clip, repeat, write

from data.errors import InputError
from data.video import FrameRequest, IsolatedDecoder, Video, View, Window, isolated, open_decoder
from data.video.arena import GRAIN
from data.video.limits import VideoLimits
from data.video.worker import Child

pytest.importorskip("av")

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")

WINDOW = 8 * 48 * 48 * 3
"""Bytes of a window of `requests`."""


@pytest.fixture
def video(tmp_path: Path) -> Video:
    return Video("a", write(tmp_path / "a.mp4", Clip(range(180), size=(160, 64))))


def requests(n: int = 12, side: int = 48) -> list[FrameRequest]:
    """`n` units of 8 frames, half a second apart: later ones begin before earlier ones are over."""
    times = np.arange(n)[:, None] * 0.5 + np.arange(8) / 8
    return [FrameRequest("a", times, View(side))]


def expected(video: Video, wanted: Sequence[FrameRequest]) -> list[Window]:
    return list(open_decoder("pyav").windows(video, wanted))


def assert_equal(one: Sequence[Window], other: Sequence[Window]) -> None:
    assert [each.unit for each in one] == [each.unit for each in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.times_s, b.times_s)


# --- what the consumer sees


def test_frames_are_read_only_views_that_outlive_the_decoder(video: Video) -> None:
    with IsolatedDecoder() as decoder:
        windows = list(decoder.windows(video, requests()))
    with pytest.raises(ValueError, match="read-only"):
        windows[0].frames[0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        windows[0].frames.flags.writeable = True
    assert not windows[0].frames.flags.owndata
    assert_equal(windows, expected(video, requests()))


@pytest.mark.parametrize("windows_of_room", [1, 3, 7])
def test_a_consumer_that_keeps_everything_gets_fresh_memory_and_no_deadlock(
    video: Video, windows_of_room: int
) -> None:
    room = windows_of_room * -(-WINDOW // GRAIN) * GRAIN
    with IsolatedDecoder(buffer_bytes=room, timeout_s=20) as decoder:
        first = list(decoder.windows(video, requests()))
        second = list(decoder.windows(video, requests()))  # with nothing of the first given back
    assert_equal(first, expected(video, requests()))
    assert_equal(second, expected(video, requests()))


@pytest.mark.parametrize("buffer_bytes", [0, 1, GRAIN, WINDOW - 1])
def test_a_window_larger_than_the_buffer_comes_all_the_same(
    video: Video, buffer_bytes: int
) -> None:
    with IsolatedDecoder(buffer_bytes=buffer_bytes, timeout_s=20) as decoder:
        assert_equal(list(decoder.windows(video, requests())), expected(video, requests()))


def test_a_window_that_is_held_is_never_overwritten(video: Video) -> None:
    """Every third window is kept over three passes; its neighbours' places are used again."""
    with IsolatedDecoder(buffer_bytes=20 * WINDOW) as decoder:
        kept = []
        for _ in range(3):
            windows = decoder.windows(video, requests())
            kept += [window.frames[2:5] for window in windows if window.unit % 3 == 0]
    want = [each.frames[2:5] for each in expected(video, requests()) if each.unit % 3 == 0]
    for got, one in zip(kept, want * 3, strict=True):
        np.testing.assert_array_equal(got, one)


def test_without_memory_files_a_deleted_temporary_file_serves(
    video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with IsolatedDecoder(buffer_bytes=4 * WINDOW, timeout_s=20) as decoder:
        windows = list(decoder.windows(video, requests()))
        assert not list((tmp_path / "tmp").iterdir())
    assert_equal(windows, expected(video, requests()))


def test_decoders_in_threads_do_not_disturb_each_other(video: Video) -> None:
    found: dict[int, list[Window]] = {}

    def work(number: int) -> None:
        with IsolatedDecoder(buffer_bytes=3 * WINDOW, timeout_s=60) as decoder:
            for _ in range(3):
                found[number] = list(decoder.windows(video, requests()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert_equal(found[number], expected(video, requests()))


def test_views_may_be_dropped_in_another_thread_while_the_next_ones_come(video: Video) -> None:
    with IsolatedDecoder(buffer_bytes=4 * WINDOW, timeout_s=20) as decoder:
        held: list[Window] = []
        sums = []
        for window in decoder.windows(video, requests()):
            held.append(window)
            sums.append(int(window.frames.sum()))
            if len(held) == 2:
                thread = threading.Thread(target=held.clear)
                thread.start()
                thread.join()
    assert sums == [int(each.frames.sum()) for each in expected(video, requests())]


@LINUX
def test_shared_memory_goes_together_with_the_limits_of_the_child(
    video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More shared memory is written than the child may have of its own (200 MiB) and than it may
    write into a file (64 MiB)."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # whose stacks are private memory
    times = np.arange(24)[:, None] * 0.2 + np.arange(64) / 64
    limits = VideoLimits(memory_mb=200)
    with IsolatedDecoder(limits=limits, buffer_bytes=512 << 20, fallbacks=()) as decoder:
        windows = list(decoder.windows(video, [FrameRequest("a", times, View(224))]))
        assert sum(each.frames.nbytes for each in windows) > 210 << 20
        (child,) = children()
        assert status(child, "RssShmem") > 210 << 10


# --- decoders that misbehave

BAD = '''
import os, pathlib, signal, time
import numpy as np
from data.video import wire
from data.video.pyav import PyAVDecoder
from data.video.types import Window


class HangingInside(PyAVDecoder):
    """Hangs half way through its second window."""

    def windows(self, video, requests):
        yield next(super().windows(video, requests))
        self.allocate((8, 48, 48, 3))[:4] = 9
        time.sleep(600)


class DyingInside(PyAVDecoder):
    def windows(self, video, requests):
        yield next(super().windows(video, requests))
        self.allocate((8, 48, 48, 3))[:4] = 9
        os.kill(os.getpid(), signal.SIGSEGV)


class Elsewhere(PyAVDecoder):
    """Does not use the memory that it is offered, nor does it give contiguous frames."""

    def windows(self, video, requests):
        del self.allocate
        self.allocate = lambda shape: np.empty((*shape[:3], 6), np.uint8)[..., ::2]
        yield from super().windows(video, requests)


class Lying(PyAVDecoder):
    """Points where a window is that the parent holds."""

    def windows(self, video, requests):
        wire.pack_window = lambda window, offset: old(window, 0)
        yield from super().windows(video, requests)


old = wire.pack_window


class Counting(PyAVDecoder):
    """Says in a file how many windows it made."""

    def windows(self, video, requests):
        for count, window in enumerate(super().windows(video, requests)):
            pathlib.Path(f"{video.path}.made").write_text(str(count + 1))
            yield window
'''


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    (tmp_path / "bad_sharers.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: f"bad_sharers:{name}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("HangingInside", "decoder-timeout"), ("DyingInside", "decoder-crashed")],
)
def test_what_came_before_a_hang_or_a_crash_inside_a_window_stays(
    name: str, reason: str, video: Video, bad: Callable[[str], str]
) -> None:
    with IsolatedDecoder(bad(name), fallbacks=(), timeout_s=5) as decoder:
        windows = decoder.windows(video, requests())
        first = next(windows)
        with pytest.raises(InputError) as caught:
            next(windows)
        assert caught.value.reason == reason
        assert_equal([first], expected(video, requests())[:1])
        assert decoder.probe(video).frames == 180  # a new child


def test_a_decoder_that_brings_its_own_memory_works(
    video: Video, bad: Callable[[str], str]
) -> None:
    with IsolatedDecoder(bad("Elsewhere"), fallbacks=()) as decoder:
        assert_equal(list(decoder.windows(video, requests())), expected(video, requests()))


def test_a_child_that_points_into_a_held_window_is_an_error(
    video: Video, bad: Callable[[str], str]
) -> None:
    with IsolatedDecoder(bad("Lying"), fallbacks=()) as decoder:
        windows = decoder.windows(video, requests())
        first = next(windows)
        with pytest.raises(InputError, match=r"no sensible answer.*in use") as caught:
            next(windows)
        assert caught.value.reason == "decoder-crashed"
        assert first.unit == 0


# --- the next video meanwhile


def test_the_next_video_is_decoded_while_the_current_one_is_held_up_within_its_bound(
    tmp_path: Path, bad: Callable[[str], str]
) -> None:
    first = Video("1", write(tmp_path / "1.mp4", Clip(range(180))))
    second = Video("2", write(tmp_path / "2.mp4", Clip(range(180))))
    room = 6 * -(-WINDOW // GRAIN) * GRAIN
    with IsolatedDecoder(bad("Counting"), fallbacks=(), buffer_bytes=room) as decoder:
        windows = decoder.windows(first, requests())
        next(windows)
        decoder.prefetch(second, requests())
        made = tmp_path / "2.mp4.made"
        _until(lambda: made.exists() and int(made.read_text()) >= 4)
        time.sleep(0.5)
        # 6 places; units overlap, so two that are not whole yet have theirs
        assert 4 <= int(made.read_text()) <= 6
        assert len(list(windows)) == 11
        assert_equal(list(decoder.windows(second, requests())), expected(second, requests()))


def test_two_children_serve_any_number_of_videos(tmp_path: Path, video: Video) -> None:
    copies = [Video(str(i), tmp_path / f"{i}.mp4") for i in range(12)]
    for copy in copies:
        copy.path.write_bytes(video.path.read_bytes())
    with IsolatedDecoder() as decoder:
        seen = set()
        for copy, following in zip(copies, [*copies[1:], None], strict=True):
            for window in decoder.windows(copy, requests()):
                if window.unit == 0 and following is not None:
                    decoder.prefetch(following, requests())
            seen |= set(children())
    assert len(seen) <= 2


def test_a_warm_child_is_the_one_that_decodes(video: Video) -> None:
    with IsolatedDecoder() as decoder:
        decoder.warm()
        decoder.warm()
        before = set(children())
        decoder.probe(video)
        assert set(children()) == before
        assert len(before) == 1


def test_a_child_that_served_its_videos_is_followed_by_one_that_is_ready(
    video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_JOBS_PER_CHILD", 2)
    with IsolatedDecoder() as decoder:
        seen = []
        for _ in range(4):
            decoder.probe(video)
            seen.append(children())
    assert [len(each) for each in seen] == [1, 1, 1, 1]
    assert seen[0] != seen[1] == seen[2] != seen[3]


# --- no leak, bounded memory, nothing left behind


@LINUX
def test_a_thousand_files_leave_memory_and_descriptors_as_they_were(tmp_path: Path) -> None:
    video = Video("a", write(tmp_path / "a.mp4", Clip(range(10), codec="mpeg4", size=(64, 64))))
    wanted = [FrameRequest("a", np.arange(4)[:, None] * 0.08, View(32))]
    child = Child(arena_bytes=1 << 20)
    decoder, own = IsolatedDecoder(), open_decoder("pyav")
    decoder._idle.append(child)  # one child for all of them
    with decoder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "_JOBS_PER_CHILD", 1 << 30)
        for number in range(1100):
            list(own.windows(video, wanted))
            list(decoder.windows(video, wanted))
            if number == 100:
                before = [used(os.getpid()), used(child.pid)]
        after = [used(os.getpid()), used(child.pid)]
    for (kib, descriptors), (kib_after, descriptors_after) in zip(before, after, strict=True):
        assert kib_after - kib < 2048
        assert descriptors_after == descriptors


@LINUX
def test_the_memory_of_a_long_film_is_that_of_its_buffer(tmp_path: Path) -> None:
    """Ten minutes of two streams; what a whole one of them takes would be 30 times the bound."""
    short = write(tmp_path / "short.mp4", Clip(range(300), size=(320, 180), gop=50))
    video = Video("long", repeat(tmp_path / "long.mkv", short, 60))
    buffer_bytes = 16 << 20
    with IsolatedDecoder(buffer_bytes=buffer_bytes) as decoder:
        assert peak_mib(decoder, video, 600, side=112) < 16 + 100


@pytest.mark.slow
@pytest.mark.timeout(900)
@LINUX
def test_an_hour_of_720p_for_clip_and_slowfast_stays_below_a_gigabyte(tmp_path: Path) -> None:
    slow = Clip(range(50), time_base=Fraction(1, 5), size=(1280, 720))  # 5 fps: a test of memory
    short = write(tmp_path / "short.mp4", slow)
    video = Video("long", repeat(tmp_path / "long.mkv", short, 360))
    with IsolatedDecoder() as decoder:
        assert peak_mib(decoder, video, 3600, side=224) < 300  # leaves 700 for the networks


def peak_mib(decoder: IsolatedDecoder, video: Video, duration_s: int, side: int) -> float:
    """Largest memory of the child while windows come in batches of 8, shared memory included.

    The parent has nothing but views.
    """
    centres = (np.arange(duration_s // 2)[:, None] + 0.5) * 2
    slowfast = np.maximum(0, centres + (np.arange(32) - 15.5) / 15)
    wanted = [
        FrameRequest("clip", centres, View(side)),
        FrameRequest("slowfast", slowfast, View(side)),
    ]
    before, batch = used(os.getpid())[0], []
    for window in decoder.windows(video, wanted):
        batch.append(window)
        if len(batch) == 8:
            batch.clear()
    assert used(os.getpid())[0] - before < 4096
    (child,) = children()
    return status(child, "VmHWM") / 1024


@LINUX
def test_a_killed_parent_leaves_no_child_and_no_memory(tmp_path: Path, root: Path) -> None:
    video = write(tmp_path / "a.mp4", Clip(range(180)))
    before = sorted(Path("/dev/shm").iterdir())
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(video)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert "storyline-windows" in Path(f"/proc/{child}/maps").read_text()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _until(lambda: not _lives(child))
    assert sorted(Path("/dev/shm").iterdir()) == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.mp4"]


HOLDING = """
import sys, time, pathlib
import numpy as np
from data.video import FrameRequest, IsolatedDecoder, Video, View
decoder = IsolatedDecoder(buffer_bytes=1 << 20)
times = np.arange(50)[:, None] / 10
video = Video("a", pathlib.Path(sys.argv[1]))
windows = decoder.windows(video, [FrameRequest("a", times, View(200))])
window = next(windows)
print(decoder._running[0].child.pid, flush=True)
time.sleep(60)
"""


def _lives(pid: int) -> bool:
    path = Path(f"/proc/{pid}/status")
    return path.exists() and "State:\tZ" not in path.read_text()


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 30 s")


def status(pid: int, name: str) -> int:
    """A number of /proc/PID/status, KiB for memory."""
    lines: Iterator[str] = iter(Path(f"/proc/{pid}/status").read_text().splitlines())
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def used(pid: int) -> tuple[int, int]:
    """KiB of private memory and open descriptors of a process."""
    gc.collect()
    return status(pid, "RssAnon"), len(list(Path(f"/proc/{pid}/fd").iterdir()))
