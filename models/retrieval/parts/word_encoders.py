"""Clips and words of the span bases: one linear layer each, sine places for both."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UsageError
from models.retrieval.flow import Tokens
from models.retrieval.parts.clip_pooling import Pooling, to_clips, to_grid
from models.retrieval.parts.context_query import Pointwise
from models.retrieval.stages import Encoders
from models.retrieval.types import Batch

__all__ = ["WordEncoders", "WordTable", "place_code"]


def place_code(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sine code of whole places 0 … count − 1, (count, width) float32 (Vaswani et al., 2017).

    In the public code's order of operations, so that the numbers are the same.

    Args:
        count: places.
        width: features, even.
        device: of the result.
    """
    even = torch.arange(0, width, 2, device=device).float()
    rate = torch.exp(even * -(math.log(10000.0) / width))
    angle = torch.arange(count, device=device).float().unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class WordTable(nn.Module):
    """Vectors by word id: 0 is padding, 1 an unknown word and learned, the others are frozen.

    Args:
        words: rows with those two.
        width: features of a vector.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.register_buffer("pad", torch.zeros(1, width))
        self.register_buffer("known", torch.zeros(words - 2, width))
        self.unknown = nn.Parameter(torch.empty(1, width))
        nn.init.xavier_uniform_(self.unknown)
        self.pad: Tensor
        self.known: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T, width) of (B, T) int64."""
        return functional.embedding(ids, torch.cat([self.pad, self.unknown, self.known]))


class WordEncoders(Encoders):
    """Dropout and one linear layer for clips and for words.

    A long video is pooled first (`clip_pooling`); every clip then carries the features and the
    place of the grid that it lies on, so that side streams still meet clips.

    Args:
        video_dim: features of a clip that are read; further ones, the place at their end, are not.
        text_dim: features of a word vector.
        width: features that go out.
        dropout: on what goes in.
        size: most places of the grid.
        pooling: of longer videos; None refuses them.
        table: for batches of word ids; None for batches of vectors.
    """

    def __init__(
        self,
        video_dim: int,
        text_dim: int,
        width: int,
        *,
        dropout: float,
        size: int,
        pooling: Pooling | None,
        table: WordTable | None = None,
    ) -> None:
        super().__init__()
        self.video = Pointwise(video_dim, width)
        self.text = Pointwise(text_dim, width)
        self.words = table
        self.dropout = nn.Dropout(dropout)
        self.width, self.size, self.pooling = width, size, pooling
        self.video_dim = video_dim

    def forward(self, batch: Batch) -> Tokens:
        """Tokens of width `width`; padding is projected too and masked by what reads it.

        Raises:
            UsageError: a video is longer than the grid and is not to be pooled, or the batch has
                word ids and the model no table.
        """
        mask, text = batch.video_mask, self.encode_text(batch.text)
        clips = mask.shape[1]
        if clips > self.size and self.pooling is None:
            raise UsageError(
                f"a video has {clips} clips and this model at most {self.size}; build it with "
                "pooling: mean or with more max_clips, or give it longer clips"
            )
        grid = to_grid(batch.video[..., : self.video_dim], mask, self.size, self.pooling or "mean")
        place = place_code(grid.shape[1], self.width, mask.device).expand(len(mask), -1, -1)
        return Tokens(
            video=to_clips(self.video(self.dropout(grid)), mask),
            video_mask=mask,
            video_pos=to_clips(place, mask),
            text=text,
            text_mask=batch.text_mask,
            text_pos=self.text_places(text),
        )

    def encode_text(self, x: Tensor) -> Tensor:
        """(…, text_dim) vectors as (…, width); with a table also (B, T) ids.

        Raises:
            UsageError: ids without a table.
        """
        if not x.is_floating_point():
            if self.words is None:
                raise UsageError(
                    "the batch holds word ids, and this model reads word vectors; give it "
                    "vectors (the text encoder 'glove'), or build it with words: ids"
                )
            x = self.words(x)
        return self.text(self.dropout(x))  # type: ignore[no-any-return]

    def text_places(self, text: Tensor) -> Tensor:
        """Sine places of the words."""
        return place_code(text.shape[1], self.width, text.device).expand_as(text)
