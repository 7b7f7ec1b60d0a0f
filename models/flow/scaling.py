"""From flow in pixels to the numbers that a network was trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from data.registry import Registry

__all__ = ["SCALINGS"]

REACH = 20.0
"""Pixels per frame; both conventions hold longer displacements at this length."""

SCALINGS: Registry[Callable[[Tensor], Tensor]] = Registry("flow scaling")
"""Flow in pixels, any shape, to about [-1, 1]."""


@SCALINGS.register("deepmind")
def _deepmind(flow: Tensor) -> Tensor:
    """Clipped to 20 pixels, then divided by 20: README of google-deepmind/kinetics-i3d."""
    return flow.clamp(-REACH, REACH) / REACH


@SCALINGS.register("v-iashin")
def _v_iashin(flow: Tensor) -> Tensor:
    """As v-iashin/video_features: by way of 256 whole levels.

    No motion becomes 0.0039 (level 128) instead of 0, and the largest becomes 1.0078: level 256
    does not fit a byte, but the public code never stores one.
    """
    levels = torch.round(128 + 255 / (2 * REACH) * flow.clamp(-REACH, REACH))
    return 2 * levels / 255 - 1
