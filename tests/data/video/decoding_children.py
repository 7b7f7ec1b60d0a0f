"""The decoding children of this process; other tests leave helpers of Python's own running."""

from __future__ import annotations

import psutil


def children() -> list[int]:
    """Process ids of the living decoding children of this process."""
    return [each.pid for each in psutil.Process().children() if _decodes(each)]


def _decodes(process: psutil.Process) -> bool:
    try:
        return "data.video.child" in process.cmdline()
    except psutil.Error:
        return False
