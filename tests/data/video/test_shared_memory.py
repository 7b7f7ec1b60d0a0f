"""Shared memory and the processes that use it: no leak, bounded, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from decoding_children import children, status, until, used
from hard_media import Clip, repeat, write

from data.video import FrameRequest, IsolatedDecoder, Video, View, isolated, open_decoder
from data.video.worker import Child

pytest.importorskip("av")

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")


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
    short = write(
        tmp_path / "short.mp4", Clip(range(100), time_base=Fraction(1, 10), size=(320, 180), gop=50)
    )
    video = Video("long", repeat(tmp_path / "long.mkv", short, 60))
    buffer_bytes = 16 << 20
    with IsolatedDecoder(buffer_bytes=buffer_bytes) as decoder:
        assert peak_mib(decoder, video, 600, side=112) < 16 + 100


@pytest.mark.slow
@pytest.mark.timeout(900)
@LINUX
def test_an_hour_of_720p_for_clip_and_slowfast_stays_below_a_gigabyte(tmp_path: Path) -> None:
    slow = Clip(range(10), time_base=Fraction(1, 1), size=(1280, 720))  # 1 fps: a test of memory
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
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(video)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    mapped = Path(f"/proc/{child}/maps").read_text()
    assert "storyline-windows" in mapped
    assert "/dev/shm/" not in mapped  # the folder itself is everybody's: others may be at work
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until(lambda: not _lives(child))
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
