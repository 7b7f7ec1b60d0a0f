"""Means of clips or words, and what flows between clips and means (UVCOM §3.2–3.3).

Both work in float32 under autocast too: small systems are solved, and the choice among nearly
equal means hangs on the last digits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["expectation_means", "most_alike", "random_walk", "unit"]


def expectation_means(
    means: Tensor, x: Tensor, mask: Tensor, *, rounds: int, bandwidth: float = 1.2
) -> Tensor:
    """Expectation maximisation with a radial kernel between unit vectors (`EM_RBF`).

    Every round gives each row to the means in parts, `softmax_k(−‖μ̂_k − x̂‖² / 2σ²)`, and moves a
    mean to the weighted mean of its rows.

    Args:
        means: (B, K, d) to start from.
        x: (B, N, d) rows.
        mask: (B, N) bool, rows that count.
        rounds: how often.
        bandwidth: σ.

    Returns:
        (B, K, d) float32; zero if no row counts.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, means = x.float(), means.float()
        unit = functional.normalize(x, dim=-1, eps=1e-9)
        for _ in range(rounds):
            centre = functional.normalize(means, dim=-1, eps=1e-9)
            # ‖a − b‖² = |a|² + |b|² − 2ab, and |b|² is the same for all means.
            near = centre @ unit.transpose(1, 2) - centre.square().sum(-1, keepdim=True) / 2
            share = (near / bandwidth**2).softmax(1) * mask.unsqueeze(1)
            means = share / (share.sum(-1, keepdim=True) + 1e-9) @ x
    return means


def random_walk(
    x: Tensor, means: Tensor, mask: Tensor, *, weight: float = 0.5, sharpness: float = 5.0
) -> Tensor:
    """A walk between rows and means that never ends, in closed form (`BMRW`).

    With Z the softmax over the means of their similarity with a row, and Ẑ the same divided by its
    sum over rows, this is `(1 − w) (I − w² Zᵀ Ẑ)⁻¹ (w Zᵀ y + x)`. Zᵀ Ẑ has rank K, so by Woodbury's
    identity `(I_N − w² Zᵀ Ẑ)⁻¹ = I_N + w² Zᵀ (I_K − w² Ẑ Zᵀ)⁻¹ Ẑ`: a system of K unknowns instead
    of N.

    Args:
        x: (B, N, d) rows.
        means: (B, K, d), y.
        mask: (B, N) bool, rows that the walk passes.
        weight: w, chance of another step.
        sharpness: factor of the similarity.

    Returns:
        (B, N, d) float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, means = x.float(), means.float()
        near = functional.normalize(means, dim=-1, eps=1e-9) @ functional.normalize(
            x, dim=-1, eps=1e-9
        ).transpose(1, 2)
        there = (near * sharpness).softmax(1)
        back = there * mask.unsqueeze(1)
        back = back / (back.sum(-1, keepdim=True) + 1e-9)
        arrived = weight * there.transpose(1, 2) @ means + x
        one = torch.eye(means.shape[1], device=x.device)
        # Rows of Ẑ Zᵀ sum to 1 or 0, so the system is never singular and needs no check, which
        # would wait for the device.
        inner, _ = torch.linalg.solve_ex(
            one - weight**2 * back @ there.transpose(1, 2), back @ arrived
        )
        walked: Tensor = arrived + weight**2 * there.transpose(1, 2) @ inner
        return (1 - weight) * walked


def most_alike(means: Tensor, others: Tensor) -> Tensor:
    """(B, 1, d): of `means` (B, K, d) the one with the highest mean cosine with `others`."""
    alike = unit(means) @ unit(others).transpose(1, 2)
    index = alike.mean(-1).argmax(1)[:, None, None].expand(-1, 1, means.shape[-1])
    return means.gather(1, index)


def unit(x: Tensor) -> Tensor:
    """(…, d) of length 1, float32 under autocast too; zero stays zero."""
    return functional.normalize(x.float(), dim=-1)
