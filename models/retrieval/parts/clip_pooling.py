"""Long videos on a grid of at most N places, and what was found there back on the clips.

EMB and VSLNet's `visual_feature_sampling`: place i of N holds clips `round(i n/N)` to
`round((i+1) n/N) − 1` of a video of n > N clips. A video that fits is left as it is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Pooling", "clip_places", "grid_mask", "pooled", "to_clips", "to_grid"]

Pooling = Literal["mean", "max", "released"]
"""`released` is `mean` without the video's last clip, which the public code's rule loses."""


def clip_places(mask: Tensor, size: int) -> Tensor:
    """Place of every clip on the grid.

    Args:
        mask: (B, L) bool.
        size: N.

    Returns:
        (B, L) int64 in [0, N); padded clips get the last place.
    """
    clip = torch.arange(mask.shape[1], device=mask.device)
    count = mask.sum(1, keepdim=True).double()
    edges = (torch.arange(1, size, device=mask.device) * count / size).round()
    long = (clip[None, :, None] >= edges.unsqueeze(1)).sum(-1)
    return torch.where(count > size, long, clip.clamp(max=size - 1))


def to_grid(x: Tensor, mask: Tensor, size: int, how: Pooling = "mean") -> Tensor:
    """Clips on the grid.

    Args:
        x: (B, L, d).
        mask: (B, L) bool.
        size: N; with L ≤ N nothing is pooled.
        how: what stands for the clips of a place.

    Returns:
        (B, N, d), zero where a video has no clips; `x` itself if L ≤ N.
    """
    if mask.shape[1] <= size:
        return x
    place = clip_places(mask, size)
    member = (place.unsqueeze(1) == torch.arange(size, device=x.device)[:, None]) & mask[:, None]
    if how == "max":
        index = torch.where(mask, place, size).unsqueeze(-1).expand_as(x)
        start = x.new_zeros(len(x), size + 1, x.shape[-1])
        return start.scatter_reduce(1, index, x, "amax", include_self=False)[:, :size]
    if how == "released":
        last = torch.arange(mask.shape[1], device=x.device) == mask.sum(1, keepdim=True) - 1
        lost = last.unsqueeze(1) & (member.sum(-1, keepdim=True) > 1)
        member = member & ~(lost & (mask.sum(1) > size)[:, None, None])
    weight = member.float()
    return (weight / weight.sum(-1, keepdim=True).clamp(min=1)) @ x.float()


def grid_mask(mask: Tensor, size: int) -> Tensor:
    """(B, N) bool, places that hold clips; `mask` itself if L ≤ N."""
    if mask.shape[1] <= size:
        return mask
    return torch.arange(size, device=mask.device) < mask.sum(1, keepdim=True)


def to_clips(x: Tensor, mask: Tensor) -> Tensor:
    """What was found on the grid (B, N, …) for every clip, (B, L, …).

    Args:
        x: `x` itself comes back if N = L.
        mask: (B, L) bool, of the clips.
    """
    size = x.shape[1]
    if size == mask.shape[1]:
        return x
    index = clip_places(mask, size)
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def pooled(x: Tensor, mask: Tensor, size: int, how: Pooling) -> Tensor:
    """Every clip replaced by what stands for its place, (B, L, d)."""
    return to_clips(to_grid(x, mask, size, how), mask)
