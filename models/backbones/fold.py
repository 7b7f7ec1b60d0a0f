"""Batch norm written into the convolution before it: the same function with half the passes.

A module of ours that applies a norm right after a convolution says so in its class attribute
`NORM_AFTER`, from the name of the convolution to the name of the norm:

    class _Stem(nn.Module):
        NORM_AFTER = {"conv": "bn"}

Tracing would find the pairs, too, but not say why one was missed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["fold_norms"]


def fold_norms(net: nn.Module) -> int:
    """Fold the batch norms of `net` that `NORM_AFTER` names, in place; returns how many.

    The constants are computed in float64 and rounded once, so the outputs change by the rounding
    of float32 only. The net loses its public tensor names: fold a copy.

    Raises:
        ValueError: a norm in training mode, whose statistics are those of the next batch.
    """
    count = 0
    for module in net.modules():
        pairs: Mapping[str, str] = getattr(module, "NORM_AFTER", {})
        for conv_name, norm_name in pairs.items():
            conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
            if isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm):
                _fold(conv, norm)
                setattr(module, norm_name, nn.Identity())
                count += 1
    return count


def _fold(conv: _ConvNd, norm: _BatchNorm) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        raise ValueError("only a batch norm in evaluation mode, with statistics, can be folded")
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    before = 0.0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (before - mean.double()) * scale
    weight = conv.weight.double() * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    conv.weight, conv.bias = _constant(weight, conv.weight), _constant(bias, conv.weight)


def _constant(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)
