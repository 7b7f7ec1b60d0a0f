"""Toy stages with an input for every way to die or to lie; `python poison_stage.py run ...`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.config import Group
from data.store import Row, Schema, StreamSpec
from pipeline.stage import Inputs, Item, RowStage

__all__ = ["POISON", "PROGRAM", "PoisonStage"]

PROGRAM = Path("tests") / "torture" / "poison_program.py"
"""The `pipeline` command with this stage, relative to the checkout."""

_HOG_BYTES = 2 << 30

POISON: Mapping[str, tuple[str, ...]] = {
    "segfault": ("crash",),
    "abort": ("crash",),
    "killed": ("killed", "crash"),
    "exits": ("killed", "crash"),
    "hangs": ("timeout",),
    "floods": ("exception",),
    "nan": ("exception",),
    "shape": ("exception",),
    "dtype": ("exception",),
    "missing": ("exception",),
    "other": ("exception",),
    "hog": ("exception", "out-of-memory", "killed", "crash"),
    "recursion": ("exception", "crash"),
}
"""Inputs that misbehave, and the reasons of which one must be in the quarantine."""


class PoisonStage(RowStage):
    """One vector per video, after the probe; what an id says is done first."""

    name: ClassVar[str] = "poison"
    reads: ClassVar[tuple[str, ...]] = ("probe",)

    class Options(Group):
        """None."""

    @property
    def schema(self) -> Schema:
        return Schema({"vector": StreamSpec((4,), "float32", "item")})

    def params(self) -> Mapping[str, Any]:
        return {}

    def process(self, item: Item, inputs: Inputs) -> Row:
        import toys

        del inputs
        vector = toys.expected(item.key.id)
        arrays = {"vector": vector}
        match item.key.id:
            case "segfault":
                ctypes.string_at(0)
            case "abort":
                os.abort()
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(1)
            case "hangs":
                time.sleep(3600)
            case "floods":
                raise RuntimeError("flood " * 1_700_000)
            case "nan":
                arrays = {"vector": vector * np.float32("nan")}
            case "shape":
                arrays = {"vector": vector[:, :2].copy()}
            case "dtype":
                arrays = {"vector": vector.astype(np.float64)}
            case "missing":
                arrays = {}
            case "other":
                return Row(type(item.key)("v00", item.key.content), arrays=arrays)
            case "hog":
                _eat_memory()
            case "recursion":
                sys.setrecursionlimit(1000)
                self.process(item, _NO_INPUTS)
        return Row(item.key, arrays=arrays)


_NO_INPUTS: Any = None


def _eat_memory() -> None:
    """More than this process is allowed; the limit stands for the size of the machine."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _HOG_BYTES // 4, before[1]))
    try:
        bytearray(_HOG_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
