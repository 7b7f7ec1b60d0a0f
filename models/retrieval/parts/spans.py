"""Moments as (centre, width) or (start, end), and how much two of them overlap."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centre_width", "inverse_sigmoid", "overlap", "pairwise_giou", "start_end"]


def start_end(spans: Tensor) -> Tensor:
    """(..., 2) of (centre, width) as (start, end), same unit."""
    centre, width = spans.unbind(-1)
    return torch.stack([centre - width / 2, centre + width / 2], dim=-1)


def centre_width(edges: Tensor) -> Tensor:
    """(..., 2) of (start, end) as (centre, width), same unit."""
    start, end = edges.unbind(-1)
    return torch.stack([(start + end) / 2, end - start], dim=-1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of moments that broadcast against each other.

    Args:
        a: (..., 2) of (start, end).
        b: (..., 2) of (start, end).

    Returns:
        IoU in [0, 1] and gIoU in [-1, 1], both with the broadcast leading shape. Two empty
        moments at one place have 0, not NaN; the public code asserts instead, and that assert
        is really its NaN detector.
    """
    inner = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    outer = (torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inner
    tiny = torch.finfo(union.dtype).tiny
    iou = inner / union.clamp(min=tiny)
    return iou, iou - (outer - union) / outer.clamp(min=tiny)


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """gIoU of every pair, (..., N, M) for (..., N, 2) and (..., M, 2) of (start, end)."""
    return overlap(a.unsqueeze(-2), b.unsqueeze(-3))[1]


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of `x` in [0, 1] with both ends held `eps` away from infinity."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
