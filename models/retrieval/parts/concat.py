"""Clips and words in one sequence that reads itself (Moment-DETR, EaTR, UniVTG, BM-DETR)."""

from __future__ import annotations

import torch
from torch import nn

from models.retrieval.flow import Memory, Tokens
from models.retrieval.parts.attention import Activation, EncoderLayer, xavier
from models.retrieval.parts.projection import MLP
from models.retrieval.stages import Fuser

__all__ = ["ConcatFuser"]


class ConcatFuser(Fuser):
    """Clips, then words, as one sequence under self-attention.

    `kv` are all rows, which the decoder attends to; `clip` are the rows of the clips, and the
    extra `words` (B, T, d) those of the words.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forwards.
        layers: encoder layers.
        dropout: everywhere.
        activation: of the feed-forwards.
        drop_path: chance that a sample loses a branch, instead of dropout on the branches.
        scaled_places: whether every layer scales the position codes by a small network of its
            input (BM-DETR), one network for all layers.
    """

    provides = frozenset({"clip", "kv", "words"})

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        layers: int,
        dropout: float,
        activation: Activation = "relu",
        drop_path: float | None = None,
        scaled_places: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, activation=activation, drop_path=drop_path)
            for _ in range(layers)
        )
        self.place_scale = MLP(width, width, width, 2) if scaled_places else None
        xavier(self)

    def forward(self, tokens: Tokens) -> Memory:
        """Memory whose `kv` is (B, L + T, d), clips first."""
        x = torch.cat([tokens.video, tokens.text], dim=1)
        pos = torch.cat([tokens.video_pos, tokens.text_pos], dim=1)
        mask = torch.cat([tokens.video_mask, tokens.text_mask], dim=1)
        for layer in self.layers:
            x = layer(x, pos if self.place_scale is None else pos * self.place_scale(x), mask)
        clips, words = x.tensor_split([tokens.video.shape[1]], dim=1)
        return Memory(
            clips, tokens.video_mask, tokens.video_pos, x, mask, pos, extras={"words": words}
        )
