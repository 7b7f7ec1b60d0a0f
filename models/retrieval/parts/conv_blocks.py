"""Convolutions over the clips: residual ones whose batch norms know what is padding (LD-DETR), and
plain ones (UVCOM)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["ConvBlock", "ConvMask", "MaskedBatchNorm", "NeighbourConvs"]

ConvMask = Literal["zero", "none"]
"""`zero` keeps padding at zero before every convolution and out of the statistics; `none` treats it
as clips, as released."""


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are over the real clips of the batch, in float32."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, d, L) normalised.

        Args:
            input: (B, d, L).
            mask: (B, L) bool; None: all clips count.
        """
        if not self.training:
            return super().forward(input)
        real = torch.ones_like(input[:, :1]) if mask is None else mask.unsqueeze(1).float()
        x, count = input.float(), real.sum().clamp(min=1)
        mean = (x * real).sum((0, 2), keepdim=True) / count
        var = ((x - mean).square() * real).sum((0, 2), keepdim=True) / count
        self._follow(mean.flatten(), var.flatten() * count / (count - 1).clamp(min=1))
        assert self.weight is not None
        found = (x - mean) * (var + self.eps).rsqrt()
        return found * self.weight.unsqueeze(-1) + self.bias.unsqueeze(-1)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics, with the unbiased variance as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.num_batches_tracked.add_(1)


class ConvBlock(nn.Module):
    """`ReLU(x + BN(Conv(ReLU(BN(Conv(x))))))` along time, three clips wide (LD-DETR, Eq. 26).

    Args:
        width: features.
        mask: see `ConvMask`.
        bias: whether the convolutions have one, which the batch norms take away again.
    """

    def __init__(self, width: int, *, mask: ConvMask = "zero", bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=1, bias=bias)
        self.norm1 = MaskedBatchNorm(width)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1, bias=bias)
        self.norm2 = MaskedBatchNorm(width)
        self.mask: ConvMask = mask

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d) from (B, L, d) and its (B, L) bool mask."""
        real = mask if self.mask == "zero" else None
        x = self._real(clips.transpose(1, 2), real)
        found = self.norm1(self.conv1(x), real).relu()
        found = self.norm2(self.conv2(self._real(found, real)), real)
        return (x + found).relu().transpose(1, 2)  # type: ignore[no-any-return]

    def _real(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if mask is None else x * mask.unsqueeze(1)


class NeighbourConvs(nn.ModuleList):
    """Convolutions over one, three and one clips (UVCOM's local module).

    Args:
        width: features.
        masked: whether padded clips are masked again after the first convolution, whose bias
            fills them, so that the second does not read them as neighbours.
    """

    def __init__(self, width: int, *, masked: bool) -> None:
        super().__init__(nn.Conv1d(width, width, size, padding=size // 2) for size in (1, 3, 1))
        self.masked = masked

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d) from (B, L, d) and (B, L) bool."""
        keep = mask.unsqueeze(1)
        first, wide, last = self
        x = first(clips.transpose(1, 2) * keep)
        x = x * keep if self.masked else x
        return last(wide(x)).transpose(1, 2)  # type: ignore[no-any-return]
