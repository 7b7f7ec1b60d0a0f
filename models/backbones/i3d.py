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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UsageError
from models.backbones.base import BACKBONES, Backbone, channels_first, he_uniform
from models.backbones.classifier import fit_classes
from models.backbones.windows import WINDOWS, Windows
from models.weights import Checkpoint, own_layout, renaming_layout

__all__ = ["I3D", "I3DNet", "hassony2_name", "laid_windows"]

MIN_FRAMES = 16
LEAST_FRAMES = 9
"""Eight shrink to one map, and the last pool takes two."""
_TIME_STRIDE = 8

PUBLISHED_CLASSES = (400, 157)
"""Kinetics (`rgb_imagenet.pt`, `flow_imagenet.pt`), Charades (`*_charades.pt`)."""

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


def _same(shape: Sequence[int], kernel: _Triple, stride: _Triple) -> tuple[_Triple, _Triple]:
    """TensorFlow's SAME padding of (T, H, W): zeros on both sides, and the odd one beyond."""
    totals = [
        max((math.ceil(size / s) - 1) * s + k - size, 0)
        for size, k, s in zip(shape, kernel, stride, strict=True)
    ]
    t, h, w = (total // 2 for total in totals)
    odd_t, odd_h, odd_w = (total % 2 for total in totals)
    return (t, h, w), (odd_t, odd_h, odd_w)


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    NORM_AFTER: ClassVar[dict[str, str]] = {"conv3d": "bn"}

    def __init__(self, width_in: int, width: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(width_in, width, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        near, odd = _same(x.shape[2:], self.kernel, self.stride)
        if any(odd):  # only then is a copy of the input needed
            x = functional.pad(x, (0, odd[2], 0, odd[1], 0, odd[0]))
        x = functional.conv3d(x, self.conv3d.weight, self.conv3d.bias, self.stride, near)
        return functional.relu(self.bn(x), inplace=True)


class _MaxPool(nn.Module):
    def __init__(self, kernel: _Triple, stride: _Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # torch pads with -inf, which equals zeros: the inputs are outputs of a ReLU. `ceil_mode`
        # is the odd one on the far side.
        near, _ = _same(x.shape[2:], self.kernel, self.stride)
        return functional.max_pool3d(x, self.kernel, self.stride, near, ceil_mode=True)


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
        rows: features per window: 1 is the mean over time, more must be all there are.
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 400, divisor: int = 1, rows: int = 1
    ) -> None:
        super().__init__()
        self.rows = rows
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

    def endpoints(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The output of every layer for (B, C, T, H, W), under its name, in order."""
        for name in self.order:
            x = getattr(self, name)(x)
            yield name, x

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to Mixed_5c, (B, dim, ceil(T/8), ceil(H/32), ceil(W/32))."""
        for name in self.order:
            x = getattr(self, name)(x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), T >= 9, to pooled maps (B, dim, T', h, w), h = w = 1 at 224.

        Pooled in float32, whatever the layers compute in.

        Raises:
            ValueError: fewer than 9 frames.
        """
        if x.shape[2] < LEAST_FRAMES:
            raise ValueError(f"i3d needs at least {LEAST_FRAMES} frames, got {x.shape[2]}")
        x = _at_least_float32(self.feature_map(x))
        return functional.avg_pool3d(x, (2, min(7, x.shape[3]), min(7, x.shape[4])), stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), T >= 9, to features (B, dim), or (B, rows, dim) for several rows.

        Raises:
            ValueError: T frames do not give `rows` maps.
        """
        maps = self.pooled(x)
        if self.rows == 1:
            return maps.mean((2, 3, 4))
        if maps.shape[2] != self.rows:
            raise ValueError(
                f"{x.shape[2]} frames give {maps.shape[2]} features over time, not {self.rows} rows"
            )
        return maps.mean((3, 4)).transpose(1, 2)

    def classify(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), T >= 9, to the logits of the classes over time, (B, classes, T')."""
        logits: Tensor = self.logits(self.pooled(x))
        return logits.mean((3, 4))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


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


def laid_windows(name: str, options: Mapping[str, Any]) -> Windows:
    """The windows that the options of a constructor of `I3D` ask for.

    Args:
        name: of the backbone, for messages.
        options: `windows`, `rate_fps`, `window_frames`, `rows_per_window`; others are ignored.

    Raises:
        UsageError: windows that do not exist or that the network cannot look through.
    """
    rate_fps, windows = options.get("rate_fps", 25.0), options.get("windows", "centred")
    frames, rows = options.get("window_frames", MIN_FRAMES), options.get("rows_per_window", 1)
    if not rate_fps > 0:
        raise UsageError(f"{name}: rate_fps {rate_fps}; give frames per second, more than 0")
    if frames < LEAST_FRAMES:
        raise UsageError(f"{name}: window_frames {frames}; at least {LEAST_FRAMES} are needed")
    maps = math.ceil(frames / _TIME_STRIDE) - 1
    if rows not in {1, maps}:
        raise UsageError(
            f"{name}: rows_per_window {rows}; {frames} frames give {maps} features over time, so "
            f"allowed: {' or '.join(str(each) for each in sorted({1, maps}))}"
        )
    return WINDOWS.get(windows)(rate_fps, frames, rows)


_LAYOUTS = (
    own_layout("piergiaj", "Conv3d_1a_7x7.conv3d.weight"),
    renaming_layout("hassony2", "conv3d_1a_7x7.conv3d.weight", hassony2_name),
)


@BACKBONES.register("i3d")
class I3D(Backbone):
    """I3D features of windows of frames.

    Presets: `full` and `grid` (the same) have one window of `max(16, 25 * clip_len_s)` frames at
    25 fps about the centre of each clip; `vslnet` has the windows of 26hzhang/VSLNet, 24 frames at
    24 fps, which give two rows of 0.5 s each; `tiny` is narrow.

    With several rows per window, `clip_times` has one line per window, and `forward` and `encode`
    give (B, rows, dim).

    Args:
        checkpoint: weights in the layout of piergiaj or hassony2; None for seeded random ones.
        in_channels: 3 for RGB; 2 (optical flow) for batches that the caller has prepared.
        divisor: divides all channel counts; 1, 2, 4 or 8.
        classes: of the checkpoint's classifier; 0 for none, None for what a published one has
            (400, or 157 for `*_charades.pt`).
        size: edge of the centre crop in pixels.
        short_side: pixels that the short side is scaled to before the crop.
        rate_fps: frames per second that the window is sampled at.
        windows: "centred" on the clips, or one after the other ("stride"); see
            `models.backbones.windows`.
        window_frames: frames of a window; of a centred one, the fewest.
        rows_per_window: rows of the grid that one window gives: 1 is the mean over time.
        seed: of the random weights.
        calibrated: standardise the outputs of random weights (`Backbone`).
    """

    name = "i3d"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "grid": {},
        "vslnet": {
            "rate_fps": 24.0,
            "windows": "stride",
            "window_frames": 24,
            "rows_per_window": 2,
        },
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
        classes: int | None = None,
        size: int = 224,
        short_side: int = 256,
        rate_fps: float = 25.0,
        windows: str = "centred",
        window_frames: int = MIN_FRAMES,
        rows_per_window: int = 1,
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        if divisor not in {1, 2, 4, 8}:
            raise UsageError(f"{self.name}: divisor {divisor}; allowed: 1, 2, 4, 8")
        laid = laid_windows(
            self.name,
            {
                "rate_fps": rate_fps,
                "windows": windows,
                "window_frames": window_frames,
                "rows_per_window": rows_per_window,
            },
        )
        super().__init__(
            lambda: I3DNet(
                in_channels,
                PUBLISHED_CLASSES[0] if classes is None else classes,
                divisor,
                rows_per_window,
            ),
            dim=1024 // divisor,
            frames=window_frames,
            size=size,
            short_side=short_side,
        )
        self.windows = laid
        self._architecture = {"divisor": divisor, "in_channels": in_channels}
        fit = fit_classes(
            self.name, "logits.conv3d.weight", classes, PUBLISHED_CLASSES, self._resize_classifier
        )

        def adapt(state: Mapping[str, Tensor]) -> None:
            self._check_stream(state, in_channels)
            fit(state)

        self._settle(self._fill(checkpoint, _LAYOUTS, seed, he_uniform, adapt), seed, calibrated)

    def _check_stream(self, state: Mapping[str, Tensor], wanted: int) -> None:
        """The two streams differ by one tensor, so the wrong one deserves a sentence."""
        first = state.get("Conv3d_1a_7x7.conv3d.weight")
        found = wanted if first is None or first.ndim != 5 else int(first.shape[1])
        streams = {2: "optical flow (backbone i3d_flow)", 3: "RGB (backbone i3d)"}
        if found != wanted and {found, wanted} <= streams.keys():
            raise UsageError(
                f"backbone {self.name}: the checkpoint has {found} input channels, expected "
                f"{wanted}: it is an I3D for {streams[found]}, not for {streams[wanted]}. Give the "
                f"file of the other stream, or in_channels={found} to `i3d` for batches that you "
                "prepare"
            )

    def _resize_classifier(self, classes: int) -> None:
        with torch.random.fork_rng(devices=[]):
            self.net.logits = _Logits(self.dim, classes)

    def clip_times(
        self,
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        *,
        native_fps: float | None = None,
        duration_s: float | None = None,
    ) -> NDArray[np.float64]:
        """Times of each window, shape (N, k), or (ceil(N / rows_per_window), k).

        Raises:
            UsageError: windows one after the other do not make clips of this length.
        """
        del native_fps
        return self.windows.times(starts_s, clip_len_s, duration_s)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) to float (B, 3, T, size, size) in [-1, 1]."""
        if self._architecture["in_channels"] != frames.shape[-1]:
            raise ValueError(
                f"{self.name} with in_channels {self._architecture['in_channels']} takes batches "
                "that you prepared, by `forward`; the backbone 'i3d_flow' makes flow from frames"
            )
        return channels_first(self._cropped(frames)) * (2 / 255.0) - 1

    def params(self) -> dict[str, Any]:
        """See `Backbone.params`."""
        return super().params() | self._architecture | self.windows.params()
