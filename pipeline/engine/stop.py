"""The wish to stop: SIGTERM, SIGUSR1 (SLURM's warning), SIGHUP (a lost terminal) or one Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["StopFlag"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopFlag:
    """Set by the first signal; the second one raises KeyboardInterrupt at once.

        with StopFlag() as stop:
            while not stop: ...

    Ray installs its own SIGTERM handler when it starts; `install` is called again after that.
    """

    def __init__(self) -> None:
        self.at: float | None = None
        """`time.monotonic()` of the wish, None while there is none."""
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.at is not None

    def request(self) -> None:
        """Ask to stop, as a signal would."""
        self.at = self.at or time.monotonic()

    def install(self) -> None:
        """Listen to the signals; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    def __enter__(self) -> StopFlag:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self:
            raise KeyboardInterrupt
        self.request()
