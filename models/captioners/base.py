"""What a captioner is: frames and a prompt in, a sentence or two out, with how it came about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data.registry import Registry

__all__ = ["CAPTIONERS", "CaptionRequest", "CaptionResult", "Captioner"]

CAPTIONERS: Registry[type[Captioner]] = Registry("captioner")
"""All captioners by name. A module adds its class with `@CAPTIONERS.register("name")`."""


@dataclass(frozen=True)
class CaptionRequest:
    """One caption that is wanted.

    Args:
        frames: uint8 RGB (k, H, W, 3) in time order; the last is the picture at the timestamp, or
            the frames are spread over a clip.
        prompt: what the captioner is asked; one that follows no instructions ignores it.
        time_s: timestamp in the video.
        key: names the request; sampling that is seeded by it does not depend on the batch.
    """

    frames: NDArray[np.uint8]
    prompt: str
    time_s: float
    key: str


@dataclass(frozen=True)
class CaptionResult:
    """One caption and how it came about.

    Args:
        text: what the captioner gave, never edited; empty if it failed.
        status: "flagged" has flags, "failed" has no text.
        finish_reason: "stop", "length" (ran into the limit of tokens), or why it failed.
        flags: of `models.captioners.guards`.
        prompt_tokens: tokens that went in; 0 where the captioner has no tokens.
        new_tokens: tokens, or words, that came out.
        attempts: generations that it took.
    """

    text: str
    status: Literal["ok", "flagged", "failed"]
    finish_reason: str = "stop"
    flags: tuple[str, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0
    attempts: int = 1


class Captioner(ABC):
    """Describes frames in words.

    Attributes:
        frames: k, frames of one request.
        short_side: pixels that the short side of a frame is scaled to.
        crop: whether frames are cropped to a square at the centre.
    """

    name: ClassVar[str]
    has_weights: ClassVar[bool] = True
    """False for a captioner that is a rule, so that recipes do not speak of random weights."""
    frames: int
    short_side: int
    crop: bool

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Plain JSON that, with frames and prompt, determines the text: the recipe."""

    @abstractmethod
    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        """One result per request, in order; a request that fails does not spoil the others."""
