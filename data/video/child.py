"""The child process of `IsolatedDecoder`: `python -m data.video.child`, jobs in, answers out."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import BinaryIO

from data.errors import InputError, UsageError
from data.video import open_decoder, wire
from data.video.arena import ArenaWriter
from data.video.confine import confine
from data.video.sound import SoundReader
from data.video.types import SoundRequest

__all__ = ["main"]

_HEARTBEAT_S = 1.0
_LONGEST = 100_000
"""Characters of a traceback."""


def main() -> None:
    """Answer jobs from standard input until it closes.

    Arguments: MiB of private memory that this process may have (0: no limit), the process that it
    should die with (0: none), descriptor and bytes of the arena (0 bytes: none), and the decoder
    that is imported before the first job asks for it.
    """
    memory_mb, parent, fd, arena_bytes = (int(each) for each in sys.argv[1:5] or "0000")
    confine(memory_mb=memory_mb, parent=parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Libraries that print must not write between two messages.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    jobs: queue.Queue[wire.Job] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    arena = ArenaWriter(fd, arena_bytes, _Full(answers)) if arena_bytes else None
    for name in sys.argv[5:]:
        with contextlib.suppress(Exception):  # the job that wants it says what is wrong
            open_decoder(name)
    while True:
        try:
            _answer(jobs.get(), answers, arena)
        except BrokenPipeError:
            os._exit(0)


def _listen(jobs: queue.Queue[wire.Job]) -> None:
    """Read jobs. A decoder that hangs must not outlive the parent, so its end ends the process."""
    while (message := wire.read(sys.stdin.buffer)) is not None:
        jobs.put(wire.Job.unpack(message))
    os._exit(0)


def _answer(job: wire.Job, answers: BinaryIO, arena: ArenaWriter | None) -> None:
    try:
        _work(job, answers, arena)
    except BrokenPipeError:
        raise
    except InputError as error:
        header = {"kind": "input-error", "reason": error.reason, "message": str(error)}
        wire.write(answers, header)
    except UsageError as error:
        wire.write(answers, {"kind": "usage-error", "message": str(error)})
    except MemoryError:
        message = (
            f"{job.video.path} needs more memory than the {job.limits.memory_mb:,} MiB that its "
            "decoder may have; encode it again, or raise decode.limits.memory_mb"
        )
        header = {"kind": "input-error", "reason": "too-large", "message": message}
        wire.write(answers, header)
    except Exception:
        wire.write(answers, {"kind": "failure", "message": traceback.format_exc()[-_LONGEST:]})


class _Full:
    """Tells the parent that a window waits for room in the arena."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers

    def __call__(self, ticket: int) -> None:
        wire.write(self._answers, {"kind": "full", "ticket": ticket})


class _Heartbeat:
    """Tells the parent now and then that frames still come, however long an answer takes."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._last_s = time.monotonic()

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= _HEARTBEAT_S:
            self._last_s = now_s
            wire.write(self._answers, {"kind": "alive"})


def _work(job: wire.Job, answers: BinaryIO, arena: ArenaWriter | None) -> None:
    if job.sound is not None:
        _hear(job, job.sound, answers)
        return
    decoder = open_decoder(job.decoder)
    decoder.progress = _Heartbeat(answers)
    decoder.limits = job.limits
    if job.task == "probe":
        wire.write(answers, {"kind": "facts", "facts": decoder.probe(job.video).to_json()})
        return
    if arena is not None:
        decoder.allocate = arena.allocate
    for window in decoder.windows(job.video, job.requests):
        offset = arena.hand_over(window.frames) if arena is not None else None
        wire.write(answers, *wire.pack_window(window, offset))
    wire.write(answers, {"kind": "done", "damaged": getattr(decoder, "damaged", 0)})


def _hear(job: wire.Job, request: SoundRequest, answers: BinaryIO) -> None:
    reader = SoundReader()
    reader.progress = _Heartbeat(answers)
    reader.limits = job.limits
    for window in reader.windows(job.video, request):
        wire.write(answers, *wire.pack_sound(window))
    wire.write(answers, {"kind": "done", "damaged": reader.damaged})


if __name__ == "__main__":
    main()
