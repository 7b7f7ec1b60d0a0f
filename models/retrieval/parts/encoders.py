"""The encoders that the DETR bases share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.retrieval.parts.projection import (
    FeatureProjection,
    LearnedTextPosition,
    clip_position,
)
from models.retrieval.stages import Encoders, Tokens
from models.retrieval.types import Batch

__all__ = ["ProjectionEncoders"]


class ProjectionEncoders(Encoders):
    """Video and text features projected to one width; sine places for clips.

    Args:
        video_dim: features of a clip, with TEF.
        text_dim: features of a word.
        width: features that go out.
        depth: layers of each projection.
        dropout: before every Linear of the projections.
        text_position: learned places of the words; None for none.
    """

    def __init__(
        self,
        video_dim: int,
        text_dim: int,
        width: int,
        *,
        depth: int = 2,
        dropout: float = 0.5,
        text_position: LearnedTextPosition | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.video = FeatureProjection(video_dim, width, depth=depth, dropout=dropout)
        self.text = FeatureProjection(text_dim, width, depth=depth, dropout=dropout)
        self.text_position: nn.Module | None = text_position

    def forward(self, batch: Batch) -> Tokens:
        """Tokens of width `width`; padding is projected too and masked by what reads it."""
        text = self.encode_text(batch.text)
        places = torch.zeros_like(text) if self.text_position is None else self.text_position(text)
        return Tokens(
            video=self.video(batch.video),
            video_mask=batch.video_mask,
            video_pos=clip_position(batch.video_mask, self.width),
            text=text,
            text_mask=batch.text_mask,
            text_pos=places,
        )

    def encode_text(self, x: Tensor) -> Tensor:
        """(…, text_dim) as (…, width)."""
        return self.text(x)  # type: ignore[no-any-return]
