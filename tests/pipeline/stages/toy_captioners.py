"""Captioners whose words can be foreseen, for tests of the stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from models.captioners import CAPTIONERS, CaptionRequest, CaptionResult, Sight
from models.captioners.base import Captioner

DOWN: set[float] = set()
"""Times at which the toy cannot be asked, as with a server that fails."""
ASKED: list[CaptionRequest] = []
"""Every request that a toy got."""


class Toy(Captioner):
    """Says the brightness of the last frame and what it was asked.

    Args:
        seed, device: taken and not used.
        style: word that it begins with.
        speed: of the machine, not in the recipe.
    """

    name = "toy"
    has_weights = False
    machine_options = Captioner.machine_options | {"speed"}

    def __init__(
        self,
        checkpoint: Any = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        style: str = "Level",
        speed: int | None = None,
    ) -> None:
        self._style = style
        self.sight = Sight(2, 16)

    def params(self) -> dict[str, Any]:
        return {"captioner": self.name, "version": 7}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        ASKED.extend(requests)
        return [self._one(each) for each in requests]

    def _one(self, request: CaptionRequest) -> CaptionResult:
        if request.time_s in DOWN:
            return CaptionResult("", "failed", "error", attempts=4, reason="HTTP 503, four times")
        text = f"{self._style} {request.frames[-1].mean():.0f}: {request.prompt}"
        return CaptionResult(text, "ok", prompt_tokens=11, new_tokens=5)


class Teller(Captioner):
    """Has captions of its own of the video `known`."""

    name = "teller"
    has_weights = False
    follows_prompt = False
    own_times = True

    def __init__(self, checkpoint: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        self.sight = Sight(0, 0)

    def params(self) -> dict[str, Any]:
        return {"captioner": self.name}

    def times_s(self, video: str) -> Any:
        return np.array([0.5, 1.75, 4.0] if video == "known" else [], dtype=np.float64)

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        return [
            CaptionResult(f"{each.video} at {each.time_s:g}", "ok", end_s=each.time_s + 1)
            for each in requests
        ]


@contextmanager
def toys_registered() -> Iterator[None]:
    """The toys are captioners like all others; nothing is left of earlier tests."""
    DOWN.clear()
    ASKED.clear()
    with pytest.MonkeyPatch.context() as patch:
        for toy in (Toy, Teller):
            patch.setitem(CAPTIONERS._things, toy.name, toy)
        yield
