"""The encoders that the DETR bases share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.flow import Tokens
from models.retrieval.parts.projection import (
    FeatureProjection,
    LearnedTextPosition,
    clip_position,
)
from models.retrieval.stages import Encoders
from models.retrieval.types import Batch

__all__ = ["ProjectionEncoders"]


class ProjectionEncoders(Encoders):
    """Video and text features projected to one width; sine places for clips.

    Args:
        video_dim: features of a clip, with TEF.
        text_dim: features of a word.
        width: features that go out.
        depth: layers of each projection; the last has no ReLU.
        video_depth: layers of the projection of video, if others; which has no ReLU stays.
        dropout: before every Linear of the projections.
        text_position: learned places of the words; None for none.
        token_types: whether a learned vector tells clips (row 1) from words (row 0).
    """

    def __init__(
        self,
        video_dim: int,
        text_dim: int,
        width: int,
        *,
        depth: int = 2,
        video_depth: int | None = None,
        dropout: float = 0.5,
        text_position: LearnedTextPosition | None = None,
        token_types: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.video = FeatureProjection(
            video_dim, width, depth=video_depth or depth, dropout=dropout, plain=depth - 1
        )
        self.text = FeatureProjection(text_dim, width, depth=depth, dropout=dropout)
        self.text_position: nn.Module | None = text_position
        self.types = nn.Embedding(2, width) if token_types else None
        if self.types is not None:
            nn.init.normal_(self.types.weight, std=0.02)

    def forward(self, batch: Batch) -> Tokens:
        """Tokens of width `width`; padding is projected too and masked by what reads it."""
        text = self.encode_text(batch.text)
        video = self.video(batch.video)
        return Tokens(
            video=video if self.types is None else video + self.types.weight[1],
            video_mask=batch.video_mask,
            video_pos=clip_position(batch.video_mask, self.width),
            text=text,
            text_mask=batch.text_mask,
            text_pos=self.text_places(text),
        )

    def encode_text(self, x: Tensor) -> Tensor:
        """(…, text_dim) as (…, width).

        Raises:
            UsageError: word ids.
        """
        if not x.is_floating_point():
            raise UsageError(
                f"the batch's text is {x.dtype}, ids of words or tokens, and this model reads what "
                "a text encoder made of them: (B, T, text_dim) floats, the stage `queries`"
            )
        text: Tensor = self.text(x)
        return text if self.types is None else text + self.types.weight[0]

    def text_places(self, text: Tensor) -> Tensor:
        """Learned places of the words, zero without a table."""
        if self.text_position is None:
            return torch.zeros_like(text)
        return self.text_position(text)  # type: ignore[no-any-return]
