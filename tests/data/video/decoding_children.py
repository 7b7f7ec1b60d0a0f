"""The decoding children of this process; other tests leave helpers of Python's own running."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def children() -> list[int]:
    """Process ids of the living decoding children of this process."""
    return [each.pid for each in psutil.Process().children() if _decodes(each)]


def _decodes(process: psutil.Process) -> bool:
    try:
        return "data.video.child" in process.cmdline()
    except psutil.Error:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, half a minute at most."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 30 s")


def status(pid: int, name: str) -> int:
    """A number of /proc/PID/status, KiB for memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def used(pid: int) -> tuple[int, int]:
    """KiB of private memory and open descriptors of a process."""
    gc.collect()
    return status(pid, "RssAnon"), len(list(Path(f"/proc/{pid}/fd").iterdir()))
