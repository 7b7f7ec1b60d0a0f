"""Two-dimensional map of proposals: from block i to block j (2D-TAN, Zhang et al., AAAI 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.parts.guided import block_max

__all__ = ["ProposalMap", "ProposalScorer", "propose"]


@dataclass(frozen=True)
class ProposalMap:
    """All proposals of a batch, row by row of their first block. K blocks, P = K².

    Args:
        features: (B, P, d), zero for those that are none.
        mask: (B, P) bool, proposals that exist.
        bounds: (B, P, 2) int64, first and last clip, 0 for those that are none.
    """

    features: Tensor
    mask: Tensor
    bounds: Tensor


def propose(
    x: Tensor,
    mask: Tensor,
    size: int,
    *,
    tail: float | None = None,
    longest: int | None = None,
) -> ProposalMap:
    """Maxima of the clips over every run of blocks.

    Args:
        x: (B, N, d).
        mask: (B, N) bool, real clips first.
        size: clips of a block.
        tail: as `block_max`.
        longest: most blocks of a proposal; None for any number.
    """
    blocks = block_max(x, mask, size, tail=tail)
    count = blocks.shape[1]
    first = torch.arange(count, device=x.device)
    filled = functional.pad(mask, (0, -mask.shape[1] % size))
    exists = filled.reshape(len(x), count, size).any(2)
    further = first - first[:, None]
    inside = (further >= 0) & (further < (longest or count)) & exists.unsqueeze(1)
    running = torch.full_like(blocks, torch.finfo(x.dtype).min)
    columns = []
    for last in range(count):
        begun = (first <= last).unsqueeze(-1)
        running = torch.where(begun, torch.maximum(running, blocks[:, last : last + 1]), running)
        columns.append(running)
    features = torch.where(inside.unsqueeze(-1), torch.stack(columns, 2), 0)
    length = mask.sum(1)[:, None, None]
    start = (first[:, None] * size).expand(count, count)
    end = torch.minimum((first * size + size - 1).expand(count, count), length - 1)
    bounds = torch.stack([start.expand_as(end), end], dim=-1) * inside.unsqueeze(-1)
    return ProposalMap(features.flatten(1, 2), inside.flatten(1), bounds.flatten(1, 2))


class ProposalScorer(nn.Module):
    """Scores of the map by convolutions that count only proposals that exist.

    Args:
        width: features.
        layers: 3 × 3 convolutions.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(layers))
        self.score = nn.Conv2d(width, 1, 1)
        self.register_buffer("neighbours", torch.ones(1, 1, 3, 3), persistent=False)
        self.neighbours: Tensor

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, P) float32 logits from features (B, P, d) and (B, P) bool."""
        count = round(mask.shape[1] ** 0.5)
        square = mask.reshape(-1, 1, count, count).to(x.dtype)
        x = x.reshape(-1, count, count, x.shape[-1]).permute(0, 3, 1, 2)
        seen = functional.conv2d(square, self.neighbours.to(x.dtype), padding=1).round()
        share = torch.where(seen > 0, 1 / seen.clamp(min=1), 0)
        for layer in self.layers:
            x = layer(x * square).relu() * share
        return self.score(x).flatten(1).float()  # type: ignore[no-any-return]
