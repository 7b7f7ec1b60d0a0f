"""How training is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.errors import StorylineError

__all__ = ["Stop", "StoppedError", "stop_on_signals"]


class StoppedError(StorylineError):
    """Training was asked to stop and saved where it was."""


class Stop:
    """Whether someone asked training to stop."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Stop after the step under way."""
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGTERM and Ctrl-C ask to stop; a second Ctrl-C stops at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.request()

    before = {each: signal.signal(each, ask) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
