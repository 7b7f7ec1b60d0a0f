"""I3D: Inception-v1 inflated to three dimensions.

Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset",
CVPR 2017, https://arxiv.org/abs/1705.07750. Parameter names are those of piergiaj/pytorch-i3d; the
names of hassony2/kinetics_i3d_pytorch (and v-iashin/video_features) follow from them by rule.

As in the original (Sonnet), batch norm has eps 1e-3 and padding is TensorFlow's SAME, computed from
the size at run time. hassony2's port has PyTorch's eps 1e-5, which changes features by 0.4 %
(specs/feature_extractors.md §2.3). What differs from the public extractors: windows are centred on
the clips of the grid and may overlap, no tail is dropped.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UsageError
from models.backbones.base import BACKBONES, Backbone, channels_first, he_uniform
from models.weights import Checkpoint, own_layout, renaming_layout

__all__ = ["I3D", "I3DNet", "hassony2_name"]

MIN_FRAMES = 16

_Triple = tuple[int, int, int]
_POOL = "pool"
_LAYERS: tuple[tuple[str, Any], ...] = (
    ("Conv3d_1a_7x7", (64, 7, 2)),
    (_POOL, ((1, 3, 3), (1, 2, 2))),
    ("Conv3d_2b_1x1", (64, 1, 1)),
    ("Conv3d_2c_3x3", (192, 3, 1)),
    (_POOL, ((1, 3, 3), (1, 2, 2))),
    ("Mixed_3b", (64, 96, 128, 16, 32, 32)),
    ("Mixed_3c", (128, 128, 192, 32, 96, 64)),
    (_POOL, ((3, 3, 3), (2, 2, 2))),
    ("Mixed_4b", (192, 96, 208, 16, 48, 64)),
    ("Mixed_4c", (160, 112, 224, 24, 64, 64)),
    ("Mixed_4d", (128, 128, 256, 24, 64, 64)),
    ("Mixed_4e", (112, 144, 288, 32, 64, 64)),
    ("Mixed_4f", (256, 160, 320, 32, 128, 128)),
    (_POOL, ((2, 2, 2), (2, 2, 2))),
    ("Mixed_5b", (256, 160, 320, 32, 128, 128)),
    ("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)


def _pad_same(x: Tensor, kernel: _Triple, stride: _Triple) -> Tensor:
    """TensorFlow's SAME padding with zeros; the odd one goes to the far side."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, width_in: int, width: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(width_in, width, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv3d(_pad_same(x, self.kernel, self.stride))))


class _MaxPool(nn.Module):
    def __init__(self, kernel: _Triple, stride: _Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # Padding with zeros equals padding with -inf: the inputs are outputs of a ReLU.
        return functional.max_pool3d(
            _pad_same(x, self.kernel, self.stride), self.kernel, self.stride
        )


class _Mixed(nn.Module):
    """Four branches, concatenated: 1x1 | 1x1-3x3 | 1x1-3x3 | pool-1x1."""

    def __init__(self, width_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(width_in, widths[0])
        self.b1a = _Unit(width_in, widths[1])
        self.b1b = _Unit(widths[1], widths[2], 3)
        self.b2a = _Unit(width_in, widths[3])
        self.b2b = _Unit(widths[3], widths[4], 3)
        self.b3a = _MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = _Unit(width_in, widths[5])
        self.width = widths[0] + widths[2] + widths[4] + widths[5]

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


class _Logits(nn.Module):
    """Holds the classifier so that official checkpoints load strictly; features do not use it."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(width, classes, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.conv3d(pooled)
        return logits


class I3DNet(nn.Module):
    """The network under piergiaj's names.

    Args:
        in_channels: 3 for RGB, 2 for optical flow.
        classes: of the classifier; 0 for none.
        divisor: divides all channel counts; 1, 2, 4 or 8.
    """

    def __init__(self, in_channels: int = 3, classes: int = 400, divisor: int = 1) -> None:
        super().__init__()
        width = in_channels
        self.order: list[str] = []
        for index, (name, spec) in enumerate(_LAYERS):
            layer: nn.Module
            if name == _POOL:
                name, layer = f"pool_{index}", _MaxPool(*spec)
            elif name.startswith("Mixed"):
                layer = _Mixed(width, tuple(each // divisor for each in spec))
                width = layer.width
            else:
                layer = _Unit(width, spec[0] // divisor, spec[1], spec[2])
                width = spec[0] // divisor
            self.add_module(name, layer)
            self.order.append(name)
        self.dim = width
        if classes:
            self.logits = _Logits(width, classes)

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to Mixed_5c, (B, dim, ceil(T/8), ceil(H/32), ceil(W/32))."""
        for name in self.order:
            x = getattr(self, name)(x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), T >= 9, to pooled maps (B, dim, T', h, w), h = w = 1 at 224."""
        x = self.feature_map(x)
        return functional.avg_pool3d(x, (2, min(7, x.shape[3]), min(7, x.shape[4])), stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), T >= 9, to features (B, dim)."""
        return self.pooled(x).mean((2, 3, 4))


_HASSONY2_BRANCHES = {
    "b0": "branch_0",
    "b1a": "branch_1.0",
    "b1b": "branch_1.1",
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}


def hassony2_name(name: str) -> str:
    """The name in hassony2/kinetics_i3d_pytorch of the tensor `name` of this network."""
    if name.startswith("logits."):
        return name.replace("logits.", "conv3d_0c_1x1.")
    layer, *middle, kind, leaf = name.split(".")
    parts = [layer[0].lower() + layer[1:], *(_HASSONY2_BRANCHES[each] for each in middle)]
    return ".".join([*parts, kind.replace("bn", "batch3d"), leaf])


_LAYOUTS = (
    own_layout("piergiaj", "Conv3d_1a_7x7.conv3d.weight"),
    renaming_layout("hassony2", "conv3d_1a_7x7.conv3d.weight", hassony2_name),
)


@BACKBONES.register("i3d")
class I3D(Backbone):
    """I3D features of a window of `max(16, rate_fps * clip_len_s)` frames per clip.

    Args:
        checkpoint: weights in the layout of piergiaj or hassony2; None for seeded random ones.
        in_channels: 3 for RGB; 2 (optical flow) for batches that the caller has prepared.
        divisor: divides all channel counts; 1, 2, 4 or 8.
        classes: of the checkpoint's classifier (400, or 157 for `*_charades.pt`); 0 for none.
        size: edge of the centre crop in pixels.
        short_side: pixels that the short side is scaled to before the crop.
        rate_fps: frames per second that the window is sampled at.
        seed: of the random weights.
        calibrated: standardise the outputs of random weights (`Backbone`).
    """

    name = "i3d"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "tiny": {
            "divisor": 8,
            "classes": 0,
            "size": 64,
            "short_side": 64,
            "rate_fps": 8.0,
            "calibrated": True,
        },
    }

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        in_channels: int = 3,
        divisor: int = 1,
        classes: int = 400,
        size: int = 224,
        short_side: int = 256,
        rate_fps: float = 25.0,
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        if divisor not in {1, 2, 4, 8}:
            raise UsageError(f"i3d: divisor {divisor}; allowed: 1, 2, 4, 8")
        super().__init__(
            lambda: I3DNet(in_channels, classes, divisor),
            dim=1024 // divisor,
            frames=MIN_FRAMES,
            size=size,
            short_side=short_side,
        )
        self.rate_fps = rate_fps
        self._architecture = {"divisor": divisor, "in_channels": in_channels}
        self._settle(self._fill(checkpoint, _LAYOUTS, seed, he_uniform), seed, calibrated)

    def clip_times(
        self,
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        *,
        native_fps: float | None = None,
        duration_s: float | None = None,
    ) -> NDArray[np.float64]:
        """Times of the window of each clip, shape (N, k); see `Backbone.clip_times`."""
        del native_fps, duration_s
        count = max(MIN_FRAMES, round(self.rate_fps * clip_len_s))
        return self._centred_times(starts_s, clip_len_s, self.rate_fps, count)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) to float (B, 3, T, size, size) in [-1, 1]."""
        return channels_first(self._cropped(frames)) * (2 / 255.0) - 1

    def params(self) -> dict[str, Any]:
        """See `Backbone.params`."""
        return super().params() | self._architecture | {"rate_fps": self.rate_fps}
