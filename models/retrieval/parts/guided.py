"""Attention that is guided by what lies around a clip or at the ends of a proposal (EMB).

Huang et al., ECCV 2022, §3.2; public code Raymond-sci/EMB `model/encoder.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.parts.attention import attend
from models.retrieval.parts.context_query import Pointwise

__all__ = [
    "AttentionStack",
    "AttentionUnit",
    "Guide",
    "GuidedStack",
    "around",
    "at_ends",
    "block_max",
]

_EPS = 1e-6


class AttentionUnit(nn.Module):
    """Attention without an output projection and a two-layer mix, each with residual and norm.

    Args:
        width: features.
        heads: attention heads.
        dropout: on attention weights and both branches.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = Pointwise(width, width)
        self.key = Pointwise(width, width)
        self.value = Pointwise(width, width)
        self.mix1 = Pointwise(width, width)
        self.mix2 = Pointwise(width, width)
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.dropout = nn.Dropout(dropout)
        self.heads = heads

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        allowed: Tensor,
        *,
        asking: Tensor | None = None,
        silent: Tensor | None = None,
    ) -> Tensor:
        """(B, N, d) with what it found.

        Args:
            x: (B, N, d).
            source: (B, M, d) what is attended to.
            allowed: as `attend`.
            asking: (B, N, d) what the queries are made of, if not `x`; the residual is `x`.
            silent: (B, N) bool, rows that attend to everything alike.
        """
        query = self.query(x if asking is None else asking)
        if silent is not None:
            query = query.masked_fill(silent.unsqueeze(-1), 0)
        dropout = self.dropout.p if self.training else 0.0
        key, value = self.key(source), self.value(source)
        found = attend(query, key, value, heads=self.heads, allowed=allowed, dropout=dropout)
        x = self.norm1(x + self.dropout(found))
        return self.norm2(x + self.dropout(self.mix2(self.mix1(x).relu())))  # type: ignore[no-any-return]


class AttentionStack(nn.Module):
    """Units over one sequence, or of one sequence over another.

    Args:
        width: features.
        heads: attention heads.
        dropout: everywhere.
        layers: units.
    """

    def __init__(self, width: int, heads: int, dropout: float, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionUnit(width, heads, dropout) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor, source: Tensor | None = None) -> Tensor:
        """(B, N, d).

        Args:
            x: (B, N, d).
            mask: (B, M) bool of what is attended to.
            source: (B, M, d); None for `x` itself.
        """
        for layer in self.layers:
            x = layer(x, x if source is None else source, mask)
        return x


class Guide(nn.Module):
    """A row and its two guides as one row: depth-wise convolution, linear, dropout, norm, ReLU.

    Args:
        width: features.
        kernel: rows that the convolution sees.
        dropout: before the norm.
    """

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        padding = (kernel // 2, 0)
        self.depth = nn.Conv2d(width, width, (kernel, 3), padding=padding, groups=width, bias=False)
        self.point = nn.Conv2d(width, width, 1)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """(B, N, d) from rows and their guides, each (B, N, d)."""
        rows = torch.stack([left, right, x], dim=-1).transpose(1, 2)
        found = self.point(self.depth(rows)).squeeze(-1).transpose(1, 2)
        return self.norm(self.dropout(found)).relu()  # type: ignore[no-any-return]


class GuidedStack(nn.Module):
    """Units whose queries (over one sequence also keys and values) are guided.

    Args:
        width: features.
        heads: attention heads.
        dropout: everywhere.
        layers: units.
        kernel: rows that a guide sees.
    """

    def __init__(self, width: int, heads: int, dropout: float, layers: int, *, kernel: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(AttentionUnit(width, heads, dropout) for _ in range(layers))
        self.guides = nn.ModuleList(Guide(width, kernel, dropout) for _ in range(layers))

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
        *,
        ends: tuple[Tensor, Tensor] | None = None,
        padding_reads_all: bool = False,
    ) -> Tensor:
        """(B, N, d); padded rows hold numbers without meaning.

        Args:
            x: (B, N, d).
            mask: (B, N) bool.
            source: (B, M, d) what is attended to; None for `x` itself.
            source_mask: (B, M) bool.
            ends: the guides (B, N, d) of every row; None for `around` it.
            padding_reads_all: padded rows average all of the source, padding with it, as released.
        """
        allowed = mask if source_mask is None else source_mask
        silent = ~mask if padding_reads_all else None
        if silent is not None:
            allowed = allowed[:, None, None] | silent[:, None, :, None]
        for unit, guide in zip(self.units, self.guides, strict=True):
            x = x * mask.unsqueeze(-1)
            left, right = around(x, mask) if ends is None else ends
            asking = guide(x, left, right)
            keys = asking if source is None else source
            x = unit(x, keys, allowed, asking=asking, silent=silent)
        return x


def around(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over all real rows before, and over all after each row; zero where there are none.

    Args:
        x: (B, N, d).
        mask: (B, N) bool, real rows first.

    Returns:
        Two of (B, N, d).
    """
    order = mask.cumsum(1)
    before = mask & (order > 1)
    after = mask & (order < order[:, -1:])
    filled = x.masked_fill(~mask.unsqueeze(-1), torch.finfo(x.dtype).min)
    left = _running_max(filled).roll(1, 1)
    right = _running_max(filled.flip(1)).flip(1).roll(-1, 1)
    return left * before.unsqueeze(-1), right * after.unsqueeze(-1)


def _running_max(x: Tensor) -> Tensor:
    """Maximum over every row and those before it, by doubling: `cummax` adds gradients in any
    order on a GPU, which would make training differ from run to run."""
    step = 1
    while step < x.shape[1]:
        x = torch.cat([x[:, :step], torch.maximum(x[:, step:], x[:, :-step])], dim=1)
        step *= 2
    return x


def block_max(x: Tensor, mask: Tensor | None, size: int, *, tail: float | None = None) -> Tensor:
    """Maxima over blocks of `size` rows.

    Args:
        x: (B, N, d).
        mask: (B, N) bool, rows that count; None counts the padding too.
        size: rows of a block.
        tail: value of the rows that the last block lacks; None for the smallest there is.

    Returns:
        (B, ⌈N / size⌉, d); blocks without a row that counts hold a very small number, or `tail`.
    """
    low = torch.finfo(x.dtype).min
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), low)
    x = functional.pad(x, (0, 0, 0, -x.shape[1] % size), value=low if tail is None else tail)
    found: Tensor = x.reshape(len(x), -1, size, x.shape[-1]).max(2).values
    return found


def at_ends(blocks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features at the first and last block of every proposal, zero for those that are none.

    Args:
        blocks: (B, K, d).
        mask: (B, K·K) bool, proposals row by row of their first block.

    Returns:
        Two of (B, K·K, d).
    """
    count = blocks.shape[1]
    first = blocks.unsqueeze(2).expand(-1, -1, count, -1).flatten(1, 2)
    last = blocks.unsqueeze(1).expand(-1, count, -1, -1).flatten(1, 2)
    keep = mask.unsqueeze(-1)
    return torch.where(keep, first, 0), torch.where(keep, last, 0)
