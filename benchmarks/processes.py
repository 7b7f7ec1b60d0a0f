"""CPU seconds and memory of this process and all that it started (Linux: `/proc`)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

__all__ = ["PeakMemory", "tree_cpu_s"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root: int | None = None) -> float:
    """User and system seconds of a process tree, those of its ended and awaited children too."""
    return sum(_cpu_s(pid) for pid in _tree(root or os.getpid()))


class PeakMemory:
    """The most memory that a process tree had at one time while this context was open.

    Pages that several processes share count once (PSS), which `ru_maxrss` and RSS do not do.

    Args:
        root: process; None: this one.
        every_s: time between looks.
    """

    def __init__(self, root: int | None = None, every_s: float = 0.1) -> None:
        self.peak_mb = 0.0
        self._root = root or os.getpid()
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._every_s):
            self.peak_mb = max(self.peak_mb, sum(_pss_mb(pid) for pid in _tree(self._root)))


def _tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {int(each.name): _parent(int(each.name)) for each in _processes()}
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def _processes() -> list[Path]:
    return [each for each in Path("/proc").iterdir() if each.name.isdecimal()]


def _fields(pid: int) -> list[str]:
    """Fields of `/proc/PID/stat` after the name, which may hold blanks; [] if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def _cpu_s(pid: int) -> float:
    fields = _fields(pid)
    return sum(map(int, fields[11:15])) * _TICK_S if fields else 0.0


def _pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:") / 1024
