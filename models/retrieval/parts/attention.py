"""Attention and the encoder layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Activation",
    "Attention",
    "DropPath",
    "EncoderLayer",
    "FeedForward",
    "Layer",
    "TextToVideoLayer",
    "attend",
    "keys_allowed",
    "masked_mean",
    "with_first",
    "xavier",
]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    allowed: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention over `heads` heads.

    A query that may look at nothing gets zeros (an empty text is not a NaN).

    Args:
        query: (B, N, h·a).
        key: (B, M, h·a).
        value: (B, M, h·c).
        heads: h.
        allowed: bool, (B, M) for all queries alike, or (B, h or 1, N, M).
        dropout: on the attention weights.

    Returns:
        (B, N, h·c).
    """
    mask = allowed[:, None, None] if allowed.dim() == 2 else allowed
    some = mask.any(-1, keepdim=True)
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask | ~some, dropout_p=dropout
    )
    return (out * some).transpose(1, 2).flatten(-2)


def keys_allowed(
    query_mask: Tensor,
    key_mask: Tensor,
    *,
    heads: int,
    mask: Literal["keys", "released"],
    present: Tensor | None = None,
) -> Tensor:
    """Which keys of another sequence a query may read.

    QD-DETR's public code and its descendants also forbid padded queries the padded keys, which
    changes nothing, but lay that mask out head by head where the attention expects sample by
    sample: head h of sample b gets it from sample (b · heads + h) mod B, whose padding then hides
    real keys.

    Args:
        query_mask: (B, N) bool.
        key_mask: (B, M) bool.
        heads: attention heads.
        mask: `keys` allows all real keys, `released` is as above.
        present: (B,) bool, samples of which the public code makes the batch; None: all. What
            others are given has no meaning.

    Returns:
        (B, M), or as released (B, heads, N, M), bool; what `attend` takes.
    """
    if mask == "keys":
        return key_mask
    hidden = ~query_mask[:, :, None] & ~key_mask[:, None, :]
    if present is None:
        present = torch.ones_like(key_mask[:, 0])
    samples = present.logical_not().argsort(stable=True)
    row = (present.cumsum(0)[:, None] - 1) * heads + torch.arange(heads, device=hidden.device)
    return key_mask[:, None, None] & ~hidden[samples[row % present.sum().clamp(min=1)]]


class Attention(nn.Module):
    """Multi-head attention with the parameter layout of `nn.MultiheadAttention`.

    Args:
        width: features.
        heads: heads.
        dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        """(B, N, d) from queries (B, N, d), keys and values (B, M, d); `allowed` as `attend`."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = map(functional.linear, (query, key, value), weights, biases)
        dropout = self.dropout.p if self.training else 0.0
        out = attend(q, k, v, heads=self.heads, allowed=allowed, dropout=dropout)
        return self.out_proj(out)  # type: ignore[no-any-return]


class DropPath(nn.Dropout):
    """Stochastic depth: in training a sample loses the whole branch (Huang et al., 2016) with
    probability `p`; what stays is scaled up.

    Like all that is random in the family it is an `nn.Dropout`, so that one loop over the modules
    finds every probability.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) with whole samples set to zero."""
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.p
        return x * kept / (1 - self.p)


Activation = Literal["prelu", "relu", "gelu"]
"""`prelu` has one learned slope."""

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "prelu": nn.PReLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}


class FeedForward(nn.Module):
    """Linear, activation, dropout, Linear.

    Args:
        width: features outside.
        hidden: features inside.
        dropout: after the activation.
        activation: between the two.
    """

    def __init__(
        self, width: int, hidden: int, dropout: float, activation: Activation = "prelu"
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.activation = _ACTIVATIONS[activation]()
        self.linear2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) as (…, width), without the residual."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """The parameters of an encoder layer; subclasses say what attends to what.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forward.
        dropout: on attention weights, inside the feed-forward, and on both branches.
        activation: of the feed-forward.
        drop_path: chance that a sample loses a branch, instead of dropout on the branches.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        activation: Activation = "prelu",
        drop_path: float | None = None,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feedforward = FeedForward(width, hidden, dropout, activation)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout) if drop_path is None else DropPath(drop_path)


class EncoderLayer(Layer):
    """DETR's encoder layer with the norm after the residual; positions go to query and key."""

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """(B, N, d) from (B, N, d), its positions, and its (B, N) bool mask."""
        placed = x + pos
        x = self.norm1(x + self.dropout(self.attention(placed, placed, x, mask)))
        return self.norm2(x + self.dropout(self.feedforward(x)))  # type: ignore[no-any-return]


class TextToVideoLayer(Layer):
    """Clips attend to words (QD-DETR §3.2), same parameters as an encoder layer.

    The feed-forward's residual adds the un-normalised input of the norm before it, as released.
    """

    def forward(
        self, clips: Tensor, clip_pos: Tensor, words: Tensor, word_pos: Tensor, allowed: Tensor
    ) -> Tensor:
        """(B, L, d) clips from (B, L, d) clips and (B, T, d) words; `allowed` as `attend`."""
        found = self.attention(clips + clip_pos, words + word_pos, words, allowed)
        clips = clips + self.dropout(found)
        return self.norm2(  # type: ignore[no-any-return]
            clips + self.dropout(self.feedforward(self.norm1(clips)))
        )


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """(B, d) mean of the rows (B, N, d) where `mask` (B, N) bool; zero without any."""
    kept = mask.unsqueeze(-1)
    return torch.where(kept, rows, 0).sum(1) / kept.sum(1).clamp(min=1)


def with_first(token: Tensor, rows: Tensor) -> Tensor:
    """(B, 1 + N, d): a token, (d,) for all samples or (B, 1, d), before the rows (B, N, d)."""
    return torch.cat([token.expand(len(rows), 1, -1), rows], dim=1)


def xavier(module: nn.Module) -> None:
    """Give every matrix of a module Xavier's uniform weights, as the lineage does."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
