"""Windows in shared memory: views that stay, bounded memory, nothing that is left behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding_children import children, status, until
from hard_media import Clip, write

from data.errors import InputError
from data.video import (
    FrameRequest,
    IsolatedDecoder,
    Video,
    View,
    Window,
    isolated,
    open_decoder,
    wire,
    worker,
)
from data.video.arena import GRAIN
from data.video.limits import VideoLimits

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


def test_an_iteration_that_the_collector_ends_in_the_reading_thread_leaves_nothing(
    video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in a cycle (a kept traceback) is closed in whatever thread the collector runs."""
    read, collects, collected = wire.read, threading.Event(), threading.Event()

    def collecting(file: Any, arena: Any = None) -> Any:
        if collects.is_set() and threading.current_thread() is not threading.main_thread():
            collects.clear()
            gc.collect()
            collected.set()
        return read(file, arena)

    monkeypatch.setattr(worker.wire, "read", collecting)
    wanted = requests(60)
    with IsolatedDecoder(buffer_bytes=0) as decoder:
        gc.disable()
        try:
            cycle: list[Any] = [decoder.windows(video, wanted)]
            next(cycle[0])
            cycle.append(cycle)
            del cycle
            collects.set()
            (work,) = decoder._running
            with work._changed:  # the reader waits for room; let it read on
                work._buffer_bytes = 1 << 30
                work._changed.notify_all()
            del work
            assert collected.wait(20)
        finally:
            gc.enable()
        until(lambda: not children())
        assert_equal(list(decoder.windows(video, requests())), expected(video, requests()))


def test_views_may_go_while_the_child_looks_for_room(video: Video) -> None:
    """numpy's search fails when its array changes meanwhile; before, one in 10,000 windows did."""
    wanted = [FrameRequest("a", np.linspace(0, 5, 20_000)[:, None], View(16))]
    with IsolatedDecoder(fallbacks=()) as decoder:
        assert sum(1 for _ in decoder.windows(video, wanted)) == 20_000


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
        until(lambda: made.exists() and int(made.read_text() or 0) >= 4)
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
