"""How alike video, clips and text are: the wrong text that it chooses, and its losses (UVCOM §3.4).

A fuser that provides `similar` gives unit vectors of one space in the extras of its memory:
`similar_video` (B, d), `similar_clips` (B, L, d), `similar_text` (B, d).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.retrieval.flow import Memory, Outcome, Tokens
from models.retrieval.parts.attention import masked_mean
from models.retrieval.parts.losses import mean_known
from models.retrieval.parts.negatives import WrongText, other_samples
from models.retrieval.parts.slots import SlotPadding
from models.retrieval.parts.spans import start_end
from models.retrieval.stages import Encoders, LossTerm
from models.retrieval.types import Batch, StepContext, Targets

__all__ = [
    "ChosenText",
    "LikeClipsTerm",
    "LikeVideoTerm",
    "likeness",
    "rows_that_count",
]


def rows_that_count(mask: Tensor, padding: SlotPadding) -> Tensor:
    """Rows that a mean is over: those of the mask, or as released all; (B, N) bool."""
    return mask if padding == "masked" else torch.ones_like(mask)


def likeness(memory: Memory) -> tuple[Tensor, Tensor]:
    """Cosine of every video with every text (B, B), and of every clip with its text (B, L);
    float32 under autocast too."""
    found = memory.extras
    text = found["similar_text"]
    with torch.autocast(text.device.type, enabled=False):
        clips = (found["similar_clips"] @ text.unsqueeze(-1)).squeeze(-1)
        return found["similar_video"] @ text.T, clips


class ChosenText(WrongText):
    """A wrong text that from some epoch on is chosen by its likeness with the video.

    Args:
        choice: as `WrongText`; `roll` chooses among all texts of the batch.
        chosen: `least` or `most` like the video.
        from_epoch: first epoch of the choice.
        padding: whether padded clips count for the likeness.
        places: as `WrongText`.
    """

    def __init__(
        self,
        choice: Literal["roll", "roll_other_video"],
        *,
        chosen: Literal["least", "most"],
        from_epoch: float,
        padding: SlotPadding,
        places: Literal["own", "right"] = "own",
    ) -> None:
        super().__init__(choice, places=places)
        self.chosen, self.from_epoch, self.padding = chosen, from_epoch, padding
        self.requires = self.requires | {"similar"}

    def waits(self, context: StepContext) -> bool:
        """From `from_epoch` on."""
        return context.epoch >= self.from_epoch

    @torch.no_grad()
    def _like(self, memory: Memory) -> Tensor:
        """(B, B), mean of what the whole video and what its clips say, softmax over texts."""
        clips = masked_mean(
            memory.extras["similar_clips"], rows_that_count(memory.clip_mask, self.padding)
        )
        whole = likeness(memory)[0]
        return (whole.softmax(-1) + (clips @ memory.extras["similar_text"].T).softmax(-1)) / 2

    def change_after(
        self,
        memory: Memory,
        tokens: Tokens,
        batch: Batch,
        encoders: Encoders,
        context: StepContext,
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Tokens with the chosen text, and `negative_mask` (B,) bool."""
        if batch.wrong_text is not None:
            return self.change(tokens, batch, encoders, context)
        like = self._like(memory)
        allowed = torch.ones_like(like, dtype=torch.bool)
        if self.choice == "roll_other_video":
            allowed = other_samples(batch)
        like = -like if self.chosen == "least" else like
        partner = like.masked_fill(~allowed, -torch.inf).argmax(1)
        return self.exchanged(tokens, partner), {"negative_mask": allowed.any(1)}


class LikeVideoTerm(LossTerm):
    """Every video is most like its own text, and every text like its own video."""

    name = "video_text"
    requires = frozenset({"similar"})

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        whole, _ = likeness(outcome.trace.memory)
        right = whole.log_softmax(0).diagonal() + whole.log_softmax(1).diagonal()
        return -right.mean() / 2


class LikeClipsTerm(LossTerm):
    """Of all its clips, a video's clips inside the moments are the most like the text.

    Args:
        weight: factor in the sum.
        windows: `all` moments, or the `first` cut to whole clips as released.
        padding: whether padded clips are among the clips compared and in the mean.
    """

    name = "clip_text"
    requires = frozenset({"similar"})

    def __init__(
        self, weight: float, *, windows: Literal["all", "first"], padding: SlotPadding
    ) -> None:
        super().__init__(weight)
        self.windows, self.padding = windows, padding

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar, mean over clips and samples."""
        mask, targets = outcome.batch.video_mask, outcome.targets
        counted = rows_that_count(mask, self.padding)
        _, clips = likeness(outcome.trace.memory)
        log_p = clips.masked_fill(~counted, -1e4).log_softmax(-1)
        inside = targets.in_moment if self.windows == "all" else _first_window(targets, mask)
        sample = -torch.where(inside & mask, log_p, 0).sum(1) / counted.sum(1).clamp(min=1)
        return mean_known(sample, targets.has_moments)


def _first_window(targets: Targets, mask: Tensor) -> Tensor:
    """(B, L) bool, clips from that of the first moment's start to before that of its end."""
    edges = (start_end(targets.spans[:, :1]) * mask.sum(1)[:, None, None]).trunc()
    clip = torch.arange(mask.shape[1], device=mask.device)
    inside = (clip >= edges[..., :1]) & (clip < edges[..., 1:])
    return (inside & targets.span_mask[:, :1, None]).any(1)
