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
from typing import Any, BinaryIO, cast

import data
from data.video import wire
from data.video.arena import GRAIN, Arena

__all__ = ["Child", "Work"]

_ROOT = Path(data.__file__).resolve().parent.parent

_PIPE_BYTES = 1 << 20
"""Size of the pipe buffer: fewer switches between the processes than with the usual 64 KiB."""

_LAST = {"facts", "done", "input-error", "usage-error", "failure"}
"""Kinds of messages that end a job."""

_SIGNS = {"alive", "full"}
"""Kinds of messages that are no answer: a frame was decoded, a window waits for room."""

_GRANT_AFTER_S = 0.01
"""How long a consumer waits for a window of a child that waits for room before it grants memory:
time for the child to see what was freed just now."""


def _parent() -> int:
    """Process that the child should die with: ours, if the kernel can tell that it is gone.

    Linux watches the thread that started the child, which may end earlier unless it is the main
    one; then 0, and the child finds out by its closed pipe.
    """
    return os.getpid() if threading.current_thread() is threading.main_thread() else 0


class Child:
    """One child process.

    Args:
        memory_mb: MiB of its private memory; 0: no limit.
        arena_bytes: memory shared with it, for windows; 0: they come through the pipe.
        decoder: what it imports before the first job asks for it; "" for nothing.
    """

    def __init__(self, memory_mb: int = 0, arena_bytes: int = 0, decoder: str = "") -> None:
        self._arena = Arena(arena_bytes) if arena_bytes >= GRAIN else None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        fds = () if self._arena is None else (self._arena.fd,)
        shared = (0, 0) if self._arena is None else (self._arena.fd, self._arena.capacity)
        arguments = [*map(str, (memory_mb, _parent(), *shared)), *([decoder] if decoder else [])]
        try:
            self._process = self._started(arguments, fds)
        finally:
            if self._arena is not None:
                self._arena.close_fd()
        self.jobs = 0
        with contextlib.suppress(AttributeError, OSError):  # Linux only, and may be limited
            fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _started(self, arguments: list[str], fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        # The child finds this very `data` and then what this process finds; `-P` keeps a folder
        # `data` that happens to lie in the current one out of the way.
        entries = [str(_ROOT), *(entry or str(Path.cwd()) for entry in sys.path)]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "data.video.child", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entries)},
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def _answers(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdout)

    def send(self, header: dict[str, Any], payload: bytes) -> None:
        """Give it a packed job; a child that is dead or stopped shows it in `receive`.

        It returns when the child has read all but what fits into a pipe.
        """
        with contextlib.suppress(BrokenPipeError, ValueError):  # dead; stopped, its pipe is closed
            wire.write(cast(BinaryIO, self._process.stdin), header, payload)

    def receive(self) -> wire.Message | None:
        """Its next message; None when it is dead."""
        try:
            message = wire.read(self._answers, self._arena)
        # torn message of a child that wrote where it should not, or more than there is memory
        except (ValueError, MemoryError):
            return None
        if message is not None and not isinstance(message.header.get("kind"), str):
            return None
        return message

    def grant(self, ticket: int) -> None:
        """Let the window that waits with this ticket be made outside the arena."""
        if self._arena is not None:
            self._arena.grant(ticket)

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
    """One job in a child. A thread hands it over, which may take as long as the child takes to
    start, and reads the answers ahead.

    Windows that wait here are bounded by the arena of the child, and those that are not in it by
    `buffer_bytes`.

    Args:
        child: an idle child; it belongs to this job until `finished`.
        job: what to do.
        buffer_bytes: what may wait here outside the arena; an answer larger than this waits alone.
    """

    def __init__(self, child: Child, job: wire.Job, buffer_bytes: int) -> None:
        self.child = child
        self.job = job
        self._buffer_bytes = buffer_bytes
        self._waiting: deque[wire.Message | None] = deque()
        self._bytes = 0
        self._stopped = self._reader_closes = False
        self._full: int | None = None
        self._heard_s = time.monotonic()
        self._changed = threading.Condition()
        self.finished = False
        child.jobs += 1
        self._reader = threading.Thread(target=self._converse, args=job.pack(), daemon=True)
        self._reader.start()

    def take(self, timeout_s: float) -> wire.Message | None:
        """The next answer; None if the child died. TimeoutError after `timeout_s` of silence, in
        which the child did not even say that it lives.

        Who takes and gets nothing because the child waits for room holds too much to free some by
        waiting, so the child is granted memory.
        """
        with self._changed:
            self._heard_s = time.monotonic()
            while not (self._waiting or self._stopped):
                left_s = self._heard_s + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                ticket, self._full = self._full, None
                if ticket is None:
                    self._changed.wait(left_s)
                elif not self._changed.wait_for(self._has_news, min(left_s, _GRANT_AFTER_S)):
                    self.child.grant(ticket)
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
        if threading.current_thread() is self._reader:
            # The garbage collector runs in any thread, and ended an iteration in this one.
            self._reader_closes = True
            return "it was ended"
        self._reader.join()
        words = self.child.last_words()
        self.child.close()
        return words

    def _converse(self, header: dict[str, Any], payload: bytes) -> None:
        self.child.send(header, payload)
        self._read_ahead()
        if self._reader_closes:
            self.child.close()

    def _read_ahead(self) -> None:
        while True:
            message = self.child.receive()
            with self._changed:
                self._heard_s = time.monotonic()
                if message is not None and message.header["kind"] in _SIGNS:
                    self._full = _ticket(message) or self._full
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

    def _has_news(self) -> bool:
        return bool(self._waiting) or self._stopped

    def _has_room(self, size: int) -> bool:
        return self._stopped or not self._waiting or self._bytes + size <= self._buffer_bytes


def _size(message: wire.Message | None) -> int:
    return 0 if message is None else message.nbytes


def _ticket(message: wire.Message) -> int | None:
    ticket = message.header.get("ticket")
    return ticket if type(ticket) is int and 0 < ticket < 1 << 63 else None
