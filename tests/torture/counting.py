"""A captioner that counts its own captions, in the real captions stage; here and on Ray workers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from models.captioners import CAPTIONERS, Captioner, CaptionRequest, CaptionResult, Sight
from pipeline.stages.captions import CaptionsStage

if TYPE_CHECKING:
    from models.weights import Checkpoint

__all__ = ["PROGRAM", "Counting", "CountingCaptions"]

PROGRAM = Path("tests") / "torture" / "counting_program.py"
"""The `pipeline` command with this captioner, relative to the checkout."""


class Counting(Captioner):
    """Says how bright a picture is, and writes a line for each caption before it makes it.

    Args:
        log: file of these lines: the key of the request, by a write that no kill can tear.
        pause_s: how long a caption takes.
    """

    name = "counting"
    has_weights = False
    machine_options: ClassVar[frozenset[str]] = frozenset({"device", "log", "pause_s"})

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        log: str = "",
        pause_s: float = 0.0,
    ) -> None:
        del checkpoint, seed, device
        self.sight = Sight(frames=1, side=32)
        self._log, self._pause_s = log, pause_s

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return {"captioner": self.name}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        """See `Captioner.caption`."""
        return [self._one(request) for request in requests]

    def _one(self, request: CaptionRequest) -> CaptionResult:
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{os.getpid()} {request.key}\n".encode())
        finally:
            os.close(descriptor)
        time.sleep(self._pause_s)
        text = f"A picture of brightness {request.frames.mean():.3f} at {request.time_s:g} s."
        return CaptionResult(text, "ok", new_tokens=len(text.split()))


if Counting.name not in CAPTIONERS:
    CAPTIONERS.register(Counting.name)(Counting)


class CountingCaptions(CaptionsStage):
    """The real stage. Workers that unpickle it import this file, and so know the captioner."""
