"""Heads of bases that give distributions over the first and the last clip of a moment."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.retrieval.flow import Decoded, Memory
from models.retrieval.parts.clip_pooling import to_clips
from models.retrieval.parts.proposals import ProposalScorer
from models.retrieval.parts.span_predictor import SpanPredictor, top_spans
from models.retrieval.stages import Head

__all__ = ["ProposalHead", "SpanHead", "TopSpansHead"]


class SpanHead(Head):
    """Highlight, first and last clip.

    Args:
        width: features.
    """

    requires = frozenset({"kv"})
    provides = frozenset({"saliency", "highlight_logits", "start_logits", "end_logits"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.predictor = SpanPredictor(width)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`saliency` (B, L) in [0, 1], and the logits (B, N) on the grid, very small at padding
        except those of the highlight; all float32."""
        highlight, start, end = self.predictor(memory.kv, memory.kv_mask)
        score = torch.where(memory.kv_mask, highlight.sigmoid(), 0)
        return {
            "saliency": to_clips(score, memory.clip_mask),
            "highlight_logits": highlight,
            "start_logits": start,
            "end_logits": end,
        }


class ProposalHead(Head):
    """Scores of the map of proposals.

    Args:
        width: features.
        layers: convolutions.
    """

    requires = frozenset({"proposal_features"})
    provides = frozenset({"proposal_logits"})

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.scorer = ProposalScorer(width, layers)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`proposal_logits` (B, P), and `proposals` and `proposal_mask` as the fuser left them."""
        mask = memory.extras["proposal_mask"]
        return {
            "proposal_logits": self.scorer(memory.extras["proposal_features"], mask),
            "proposal_mask": mask,
            "proposals": memory.extras["proposals"],
        }


class TopSpansHead(Head):
    """The best spans of the two distributions.

    Args:
        count: of spans.
    """

    requires = frozenset({"start_logits", "end_logits"})
    provides = frozenset({"logits", "spans"})

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`logits` and `spans` (1, B, Q, 2) and `query_mask` (B, Q), as `top_spans`."""
        logits, spans, real = top_spans(
            found["start_logits"], found["end_logits"], memory.kv_mask, self.count
        )
        return {"logits": logits[None], "spans": spans[None], "query_mask": real}
