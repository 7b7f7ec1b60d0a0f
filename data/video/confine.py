"""What the decoding child gives up before it opens a file that may be crafted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

__all__ = ["confine"]

_MAX_FILE_BYTES = 64 << 20
"""Of a file that it writes: what libraries complain of goes to a temporary file."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def confine(*, memory_mb: int, parent: int) -> None:
    """Limit this process for the rest of its life. CPU time is limited by who waits for answers.

    Args:
        memory_mb: MiB of private memory (`RLIMIT_DATA`; address space alone costs nothing and
            GPU libraries reserve much of it); 0: no limit.
        parent: process whose end ends this one at once, even while it hangs in a library; 0: none.
    """
    _limit(resource.RLIMIT_CORE, 0)  # a core holds what was decoded, and fills disks
    _limit(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    if sys.platform != "linux":
        return
    if memory_mb:
        _limit(resource.RLIMIT_DATA, memory_mb << 20)
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if parent:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent and os.getppid() != parent:  # it died before the kernel was told
        os._exit(0)


def _limit(what: int, most: int) -> None:
    """Lower a limit; a stricter one that is there already stays."""
    _, hard = resource.getrlimit(what)
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (allowed, allowed))
