"""The parent's end of a decoding child: start it, give it a job, read its answers ahead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO, cast

import data
from data.video import wire

__all__ = ["Child", "Work"]

_ROOT = Path(data.__file__).resolve().parent.parent

_PIPE_BYTES = 1 << 20
"""Size of the pipe buffer: fewer switches between the processes than with the usual 64 KiB."""

_LAST = {"facts", "done", "input-error", "usage-error", "failure"}
"""Kinds of messages that end a job."""


def _parent() -> str:
    """Process that the child should die with: ours, if the kernel can tell that it is gone.

    Linux watches the thread that started the child, which may end earlier unless it is the main
    one; then "0", and the child finds out by its closed pipe.
    """
    return str(os.getpid()) if threading.current_thread() is threading.main_thread() else "0"


class Child:
    """One child process.

    Args:
        memory_mb: MiB of its private memory; 0: no limit.
    """

    def __init__(self, memory_mb: int = 0) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        # The child finds this very `data` and then what this process finds; `-P` keeps a folder
        # `data` that happens to lie in the current one out of the way.
        entries = [str(_ROOT), *(entry or str(Path.cwd()) for entry in sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "data.video.child", str(memory_mb), _parent()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entries)},
        )
        self.jobs = 0
        with contextlib.suppress(AttributeError, OSError):  # Linux only, and may be limited
            fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def _answers(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdout)

    def send(self, job: wire.Job) -> None:
        """Give it a job; a child that is already dead shows it in `receive`."""
        self.jobs += 1
        header, payload = job.pack()
        with contextlib.suppress(BrokenPipeError):
            wire.write(cast(BinaryIO, self._process.stdin), header, payload)

    def receive(self) -> wire.Message | None:
        """Its next message; None when it is dead."""
        try:
            message = wire.read(self._answers)
        # torn message of a child that wrote where it should not, or more than there is memory
        except (ValueError, MemoryError):
            return None
        if message is not None and not isinstance(message.header.get("kind"), str):
            return None
        return message

    def stop(self) -> None:
        """End it and free its pipes."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            cast(BinaryIO, self._process.stdin).close()

    def close(self) -> None:
        """After `stop`, when nobody reads its answers any more."""
        self._answers.close()
        self._stderr.close()

    def last_words(self) -> str:
        """How it ended, with the last line that it or a library wrote."""
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._stderr.seek(0)
        lines = self._stderr.read()[-4096:].decode(errors="replace").strip().splitlines()
        return f"{how}; it wrote last: {lines[-1][:300]}" if lines else how


class Work:
    """One job in a child. A thread reads the answers ahead, at most `buffer_bytes` of them.

    Args:
        child: an idle child; it belongs to this job until `finished`.
        job: what to do.
        buffer_bytes: answers that may wait here; one larger than this waits alone.
    """

    def __init__(self, child: Child, job: wire.Job, buffer_bytes: int) -> None:
        self.child = child
        self.job = job
        self._buffer_bytes = buffer_bytes
        self._waiting: deque[wire.Message | None] = deque()
        self._bytes = 0
        self._stopped = False
        self._heard_s = time.monotonic()
        self._changed = threading.Condition()
        self.finished = False
        self._reader = threading.Thread(target=self._read_ahead, daemon=True)
        child.send(job)
        self._reader.start()

    def take(self, timeout_s: float) -> wire.Message | None:
        """The next answer; None if the child died. TimeoutError after `timeout_s` of silence, in
        which the child did not even say that it lives.
        """
        with self._changed:
            self._heard_s = time.monotonic()
            while not (self._waiting or self._stopped):
                left_s = self._heard_s + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                self._changed.wait(left_s)
            if self._stopped:
                return None
            message = self._waiting.popleft()
            self._bytes -= _size(message)
            self._changed.notify_all()
        self.finished = message is not None and message.header["kind"] in _LAST
        return message

    def abandon(self) -> str:
        """Kill the child, whatever it does; returns how it ended."""
        with self._changed:
            if self._stopped:
                return "it was ended"
            self._stopped = True
            self._changed.notify_all()
        self.child.stop()
        self._reader.join()
        words = self.child.last_words()
        self.child.close()
        return words

    def _read_ahead(self) -> None:
        while True:
            message = self.child.receive()
            with self._changed:
                self._heard_s = time.monotonic()
                if message is not None and message.header["kind"] == "alive":
                    self._changed.notify_all()
                    continue
                while not self._has_room(_size(message)):
                    self._changed.wait()
                if self._stopped:
                    return
                self._waiting.append(message)
                self._bytes += _size(message)
                self._changed.notify_all()
            if message is None or message.header["kind"] in _LAST:
                return

    def _has_room(self, size: int) -> bool:
        return self._stopped or not self._waiting or self._bytes + size <= self._buffer_bytes


def _size(message: wire.Message | None) -> int:
    return 0 if message is None else message.payload.nbytes
