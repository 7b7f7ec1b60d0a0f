"""What a captioner is: frames and a prompt in, a sentence or two out, with how it came about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data.registry import Registry

if TYPE_CHECKING:
    from models.captioners.limits import Work
    from models.weights import Checkpoint

__all__ = ["CAPTIONERS", "CaptionRequest", "CaptionResult", "Captioner", "Fit", "Sight", "Status"]

CAPTIONERS: Registry[type[Captioner]] = Registry("captioner")
"""All captioners by name. A module adds its class with `@CAPTIONERS.register("name")`."""

Status = Literal["ok", "flagged", "failed"]

Fit = Literal["scaled", "square", "padded", "cropped", "stretched", "within"]
"""How a frame becomes the picture that a captioner sees:

- `scaled`: short side `side`, by swscale, as features see it
- `square`: the same, and the square at its centre
- `padded`: the whole frame on a square of colour `background`, resized by PIL (bicubic with
  antialiasing) to `side`: LLaVA's `expand2square` and `CLIPImageProcessor`
- `cropped`: short side resized by PIL (bicubic, antialiased), and the square at its centre:
  torchvision's `Resize` and `CenterCrop` on a PIL picture
- `stretched`: the whole frame resized by PIL (bicubic, antialiased) to a square, whatever its
  shape: torchvision's `Resize((side, side))` on a PIL picture
- `within`: made smaller by PIL until the long side is at most `side`; never made larger
"""


@dataclass(frozen=True)
class Sight:
    """Which pixels a captioner wants to see. They are made where the video is decoded.

    Args:
        frames: k, frames of one request; 0 for one that looks at none.
        side: pixels; see `Fit`.
        fit: how a frame becomes that picture.
        background: RGB colour of what `padded` adds.
    """

    frames: int
    side: int
    fit: Fit = "scaled"
    background: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class CaptionRequest:
    """One caption that is wanted.

    Args:
        frames: uint8 RGB (k, H, W, 3) in time order; the last is the picture at the timestamp, or
            the frames are spread over a clip.
        prompt: what the captioner is asked; one that follows no instructions ignores it.
        time_s: timestamp in the video, or the start of the clip.
        key: names the request; sampling that is seeded by it does not depend on the batch.
        video: `video_id`.
        times_s: time of each frame (k,) in seconds from `time_s`, as it was asked for.
    """

    frames: NDArray[np.uint8]
    prompt: str
    time_s: float
    key: str
    video: str = ""
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class CaptionResult:
    """One caption and how it came about.

    Args:
        text: the caption; empty if it failed.
        status: "flagged" has flags, "failed" has no text and a reason.
        finish_reason: "stop", "length" (ran into the limit of tokens), or "error".
        flags: of `models.captioners.guards`.
        prompt_tokens: tokens that went in; 0 where the captioner has no tokens.
        new_tokens: tokens, or words, that came out, of the attempt that was taken.
        attempts: generations that it took.
        taken: which of them the text is from, counted from 1: the settings of each differ.
        raw: what was generated, where `text` is not all of it (a sentence that the limit of tokens
            cut off is left out of `text`); "" where they are the same.
        reason: why it failed; "" if it did not.
        end_s: end of what it describes, in seconds of the video, where the captioner knows it.
    """

    text: str
    status: Status
    finish_reason: str = "stop"
    flags: tuple[str, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0
    attempts: int = 1
    taken: int = 1
    raw: str = ""
    reason: str = ""
    end_s: float | None = None


class Captioner(ABC):
    """Describes frames in words. The constructor takes `(checkpoint=None, *, seed, device, …)`.

    Attributes:
        sight: which pixels it wants to see.
    """

    name: ClassVar[str]
    has_weights: ClassVar[bool] = True
    """False for one whose weights are not given by `checkpoint`: a rule, a server, a file."""
    own_times: ClassVar[bool] = False
    """True for one that says at which times of a video there are captions (`times_s`)."""
    follows_prompt: ClassVar[bool] = True
    """False for one that says what it says whatever it is asked: no recipe speaks of a prompt."""
    works_here: ClassVar[bool] = True
    """False for one whose captions come from elsewhere, a server or a file: what it does in a few
    seconds says nothing of its speed and may cost money, so that no plan tries it."""
    machine_options: ClassVar[frozenset[str]] = frozenset({"device"})
    """Options that change how fast captions come and not what they should be: not in the recipe.
    What the machine did to the last bit is told as provenance."""

    sight: Sight

    @classmethod
    def recipe(
        cls, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """Plain JSON that, with frames, prompt and weights, determines the text; known without
        building anything.

        Args:
            options: those that the user gave; all others are their defaults.
            checkpoint: for what it makes part of the weights beside itself; its own content is
                told by whoever asks.
        """
        from models.options import defaults_of

        del checkpoint
        every = {**defaults_of(cls), **options}
        left_out = cls.machine_options | {"seed"}  # the stage has a seed of its own
        return {key: value for key, value in every.items() if key not in left_out}

    @classmethod
    def gpus(cls, options: Mapping[str, Any]) -> float:
        """GPUs that it fills, where there are some: a whole one if it has weights, for it takes as
        many captions at once as fit into its memory.
        """
        del options
        return 1.0 if cls.has_weights else 0.0

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """What this machine lacks for it, known without building anything: a library, a server
        that answers, a file of the checkpoint. Asked where the workers run, before any decoding.

        Raises:
            UsageError: it cannot be built here.
        """
        del checkpoint, options

    @classmethod
    def notice(cls, options: Mapping[str, Any]) -> str:
        """What a user should know before the first frame: that frames leave this machine. "" if
        there is nothing.
        """
        del options
        return ""

    @classmethod
    def work(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> Work | None:
        """What one caption costs a GPU, known without building anything; None if nobody knows."""
        del checkpoint, options
        return None

    def times_s(self, video: str) -> NDArray[np.float64]:
        """At which times there are captions of a video, for one with `own_times`."""
        raise ValueError(
            f"captioner {self.name} has no times of its own, asked for those of {video}"
        )

    def offsets_s(
        self, *, clip_len_s: float | None, gap_s: float, fps: float
    ) -> NDArray[np.float64]:
        """When the frames of one request are, (k,), in seconds from its time.

        Args:
            clip_len_s: length of the clip that is described: frames are the centres of k equal
                pieces of it. None for a timestamp: the frames end at it, `gap_s` apart.
            gap_s: seconds between the frames of a timestamp.
            fps: frames per second of the video.
        """
        del fps
        frame = np.arange(self.sight.frames, dtype=np.float64)
        if clip_len_s is not None:
            return (frame + 0.5) * (clip_len_s / max(self.sight.frames, 1))
        return (frame - (self.sight.frames - 1)) * gap_s

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Plain JSON of what was built, for provenance: model, numbers, library, device."""

    @abstractmethod
    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        """One result per request, in order; a request that fails does not spoil the others.

        Raises:
            UsageError: what no request can do anything about (no such model at the server).
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release engines, connections and memory of the GPU."""
