"""From memory and decoder states to spans, foreground and saliency."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from models.retrieval.flow import Decoded, Memory
from models.retrieval.parts.projection import MLP
from models.retrieval.parts.spans import inverse_sigmoid
from models.retrieval.stages import Head

__all__ = ["AnchorMomentHead", "GlobalDotSaliency", "LinearSaliency", "MomentHead"]


class AnchorMomentHead(Head):
    """A moment for every query: foreground or not, and a span relative to its anchor.

    Args:
        width: features.
        span: network of the spans, if it is also another part's.
    """

    requires = frozenset({"states", "references"})
    provides = frozenset({"logits", "spans"})

    def __init__(self, width: int, span: MLP | None = None) -> None:
        super().__init__()
        self.label = nn.Linear(width, 2)
        self.span = span or MLP(width, width, 2, 3)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`logits` (ℓ, B, Q, 2), index 0 foreground; `spans` (ℓ, B, Q, 2) in [0, 1]."""
        assert decoded is not None
        assert decoded.references is not None
        offset = inverse_sigmoid(decoded.references)
        spans = (self.span(decoded.states) + offset).sigmoid()
        return {"logits": self.label(decoded.states), "spans": spans}


class MomentHead(Head):
    """A moment for every query: foreground or not, and a span by itself (Moment-DETR).

    Args:
        width: features.
    """

    requires = frozenset({"states"})
    provides = frozenset({"logits", "spans"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.label = nn.Linear(width, 2)
        self.span = MLP(width, width, 2, 3)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`logits` (ℓ, B, Q, 2), index 0 foreground; `spans` (ℓ, B, Q, 2) in [0, 1]."""
        assert decoded is not None
        return {
            "logits": self.label(decoded.states),
            "spans": self.span(decoded.states).float().sigmoid(),
        }


class LinearSaliency(Head):
    """Saliency of a clip: one linear layer of its memory (Moment-DETR).

    Args:
        width: features.
    """

    requires = frozenset({"clip"})
    provides = frozenset({"saliency"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.clip = nn.Linear(width, 1)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`saliency` (B, L) float32, unbounded."""
        return {"saliency": self.clip(memory.clip).squeeze(-1).float()}


class GlobalDotSaliency(Head):
    """Saliency of a clip: scaled dot product of the projected clip and global token.

    Args:
        width: features.
    """

    requires = frozenset({"clip", "global_token"})
    provides = frozenset({"saliency"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.clip = nn.Linear(width, width)
        self.whole = nn.Linear(width, width)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`saliency` (B, L) float32 under autocast too, unbounded."""
        assert memory.global_token is not None
        whole = self.whole(memory.global_token).unsqueeze(1).float()
        score = (self.clip(memory.clip).float() * whole).sum(-1)
        return {"saliency": score / math.sqrt(whole.shape[-1])}
