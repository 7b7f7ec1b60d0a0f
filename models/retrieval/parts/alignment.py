"""Losses that bring video and text near each other before they meet (TR-DETR's LGMA)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.retrieval.flow import Outcome, Tokens
from models.retrieval.stages import LossTerm

__all__ = [
    "TEMPERATURE",
    "ClipTextTerm",
    "Pooling",
    "VideoTextTerm",
    "clip_text_loss",
    "globals_of",
    "video_text_loss",
]

TEMPERATURE = 0.07

Pooling = Literal["real", "padded"]
"""Which rows a mean is over: the real ones, or as the public codes also those of padding, so that
it depends on the other samples of the batch."""


def globals_of(tokens: Tokens, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Mean clip and mean word of every sample, each (B, d) float32 of length 1; zeros for a text
    without words."""
    pairs = ((tokens.video, tokens.video_mask), (tokens.text, tokens.text_mask))
    video, text = (_mean(x.float(), mask, pooling) for x, mask in pairs)
    return functional.normalize(video, dim=-1), functional.normalize(text, dim=-1)


def _mean(x: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """(B, N, d) as (B, d)."""
    if pooling == "padded":
        return x.mean(1)
    return (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def video_text_loss(video: Tensor, text: Tensor) -> Tensor:
    """Symmetric InfoNCE within the batch (TR-DETR's VTC).

    Args:
        video: (B, d), of length 1.
        text: (B, d), of length 1.

    Returns:
        Scalar.
    """
    with torch.autocast(video.device.type, enabled=False):
        scores = text @ video.T / TEMPERATURE
    same = torch.arange(len(scores), device=scores.device)
    there, back = functional.cross_entropy(scores, same), functional.cross_entropy(scores.T, same)
    return (there + back) / 2


def clip_text_loss(
    video: Tensor, text: Tensor, text_mask: Tensor, inside: Tensor, counted: Tensor
) -> Tensor:
    """Clips of the moment resemble the sentence, the others do not (TR-DETR's CTC).

    Args:
        video: (B, L, d); a clip of zeros scores 0.
        text: (B, T, d).
        text_mask: (B, T) bool.
        inside: (B, L) bool, clips of a moment.
        counted: (B, L) bool, clips that the mean is over.

    Returns:
        Scalar.
    """
    words = functional.normalize(text.float(), dim=-1) * text_mask.unsqueeze(-1)
    sentence = words.sum(1) / text_mask.sum(1, keepdim=True).clamp(min=1)
    clips = functional.normalize(video.float(), dim=-1)
    scores = (clips * sentence.unsqueeze(1)).sum(-1) / TEMPERATURE
    loss = functional.binary_cross_entropy_with_logits(scores, inside.float(), reduction="none")
    return torch.where(counted, loss, 0).sum() / counted.sum().clamp(min=1)


class VideoTextTerm(LossTerm):
    """`video_text_loss` of the encoded video and text.

    Args:
        weight: factor in the sum.
        pooling: of clips and words.
    """

    name = "video_text"
    requires = frozenset({"video", "text"})

    def __init__(self, weight: float, *, pooling: Pooling) -> None:
        super().__init__(weight)
        self.pooling: Pooling = pooling

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        return video_text_loss(*globals_of(outcome.trace.tokens, self.pooling))


class ClipTextTerm(LossTerm):
    """`clip_text_loss` of the encoded clips and words, for samples whose moments are known.

    Args:
        weight: factor in the sum.
        clips: the mean is over the `real` clips, or as released over the `padded` ones too, each
            of which adds log 2.
    """

    name = "clip_text"
    requires = frozenset({"video", "text"})

    def __init__(self, weight: float, *, clips: Pooling) -> None:
        super().__init__(weight)
        self.clips: Pooling = clips

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        tokens, targets = outcome.trace.tokens, outcome.targets
        real = tokens.video_mask
        counted = real if self.clips == "real" else torch.ones_like(real)
        if targets.has_moments is not None:
            counted = counted & targets.has_moments.unsqueeze(1)
        video = tokens.video * real.unsqueeze(-1)
        return clip_text_loss(video, tokens.text, tokens.text_mask, targets.in_moment, counted)
