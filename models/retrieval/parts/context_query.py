"""Clips and words read each other, and every clip gets the whole query beside it.

VSLNet's context-query attention and concatenation (Zhang et al., ACL 2020, Eq. 3–5), which EMB,
TR-DETR and LD-DETR take over.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ContextQuery", "Pointwise", "ScaledDot", "Trilinear", "masked_softmax"]


class Pointwise(nn.Conv1d):
    """A linear layer over the last axis whose weight has the shape of a convolution of width 1,
    (outputs, inputs, 1), as in the public layouts.

    Args:
        inputs: features that come in.
        outputs: features that go out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(…, inputs) as (…, outputs)."""
        return functional.linear(input, self.weight.squeeze(-1), self.bias)


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax in float32 over what the mask leaves; zeros where it leaves nothing.

    Args:
        scores: any shape.
        mask: bool, broadcasts against `scores`.
        dim: axis of the sum.
    """
    found = scores.float().masked_fill(~mask, torch.finfo(torch.float32).min).softmax(dim)
    return found * mask.any(dim, keepdim=True)


class Trilinear(nn.Module):
    """`w_c·v_i + w_q·t_j + (v_i ⊙ w_b)·t_j`.

    Args:
        width: features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.empty(width, 1))
        self.query = nn.Parameter(torch.empty(width, 1))
        self.both = nn.Parameter(torch.empty(1, 1, width))
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, context: Tensor, query: Tensor) -> Tensor:
        """(B, N, T) from (B, N, d) and (B, T, d)."""
        alone = context @ self.context + (query @ self.query).transpose(1, 2)
        return alone + (context * self.both) @ query.transpose(1, 2)


class ScaledDot(nn.Module):
    """`(W_c v_i)·(W_q t_j) / √d` (TEA).

    Args:
        width: features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = Pointwise(width, width)
        self.query = Pointwise(width, width)

    def forward(self, context: Tensor, query: Tensor) -> Tensor:
        """(B, N, T) from (B, N, d) and (B, T, d)."""
        dots = self.context(context) @ self.query(query).transpose(1, 2)
        return dots / math.sqrt(context.shape[-1])  # type: ignore[no-any-return]


class ContextQuery(nn.Module):
    """Context (clips, proposals) with what it found in the query.

    Args:
        width: features.
        dropout: on what is compared, not on what is read.
        similarity: `trilinear` of the public code, or `scaled_dot` of TEA's text.
        relu: whether a ReLU ends it, as in the public codes; LD-DETR's text (Eq. 20) has none.
    """

    def __init__(
        self,
        width: int,
        dropout: float,
        similarity: Literal["trilinear", "scaled_dot"] = "trilinear",
        *,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.relu = relu
        self.similarity = Trilinear(width) if similarity == "trilinear" else ScaledDot(width)
        self.mix = Pointwise(4 * width, width)
        self.pool = nn.Parameter(torch.empty(width, 1))
        self.join = Pointwise(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        for weight in (self.mix.weight, self.pool, self.join.weight):
            nn.init.xavier_uniform_(weight)

    def forward(
        self, context: Tensor, query: Tensor, context_mask: Tensor, query_mask: Tensor
    ) -> Tensor:
        """(B, N, d) from context (B, N, d), query (B, T, d) and their bool masks (B, N), (B, T).

        Rows of padded context hold numbers without meaning; a query without words is read as 0.
        """
        scores = self.similarity(self.dropout(context), self.dropout(query))
        words = masked_softmax(scores, query_mask.unsqueeze(1), 2)
        rows = masked_softmax(scores, context_mask.unsqueeze(2), 1)
        found = words @ query
        again = words @ rows.transpose(1, 2) @ context
        mixed = self.mix(torch.cat([context, found, context * found, context * again], dim=-1))
        whole = masked_softmax(query @ self.pool, query_mask.unsqueeze(2), 1)
        pooled = (whole * query).sum(1, keepdim=True).expand_as(mixed)
        joined: Tensor = self.join(torch.cat([mixed, pooled], dim=-1))
        return joined.relu() if self.relu else joined
