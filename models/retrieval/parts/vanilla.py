"""DETR's decoder: learned query places, no anchors (Moment-DETR)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.retrieval.flow import Decoded, Memory, Queries
from models.retrieval.parts.attention import Attention, FeedForward, xavier
from models.retrieval.stages import Decoder

__all__ = ["VanillaDecoder", "VanillaLayer"]


class VanillaLayer(nn.Module):
    """Queries read each other, then the memory, then a feed-forward; the norms after the residuals.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forward.
        dropout: everywhere.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feedforward = FeedForward(width, hidden, dropout, "relu")
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, place: Tensor, kv: Tensor, kv_pos: Tensor, mask: Tensor) -> Tensor:
        """(B, Q, d) states after this layer.

        Args:
            x: (B, Q, d) states.
            place: (B, Q, d) of the queries.
            kv: (B, S, d).
            kv_pos: (B, S, d).
            mask: (B, S) bool.
        """
        everyone = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        placed = x + place
        x = self.norm1(x + self.dropout(self.self_attention(placed, placed, x, everyone)))
        found = self.cross_attention(x + place, kv + kv_pos, kv, mask)
        x = self.norm2(x + self.dropout(found))
        return self.norm3(x + self.dropout(self.feedforward(x)))  # type: ignore[no-any-return]


class VanillaDecoder(Decoder):
    """Queries with learned places and zero content; nothing is refined between layers.

    Since the first content is zero, layer 0 averages equal values when the queries read each
    other; the public layout has its projections, so they are here.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forwards.
        layers: decoder layers.
        queries: Q.
        dropout: everywhere.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, layers: int, queries: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            VanillaLayer(width, heads, hidden, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        xavier(self)
        self.places = nn.Embedding(queries, width)

    def start(self, memory: Memory) -> Queries:
        """Zero content at the learned places, the same for every sample."""
        place = self.places.weight.expand(len(memory.kv), -1, -1)
        return Queries(torch.zeros_like(place), place=place)

    def run(self, memory: Memory, queries: Queries) -> Decoded:
        """States (ℓ, B, Q, d) without references."""
        assert queries.place is not None
        x, states = queries.content, []
        for layer in self.layers:
            x = layer(x, queries.place, memory.kv, memory.kv_pos, memory.kv_mask)
            states.append(self.norm(x))
        return Decoded(torch.stack(states))
