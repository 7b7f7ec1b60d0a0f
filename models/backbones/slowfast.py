"""SlowFast 8x8 R50.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019,
https://arxiv.org/abs/1812.03982. Parameter names are those of facebookresearch/SlowFast, so its
checkpoints load one to one; the Caffe2 and PyTorchVideo names follow from them by rule.

The feature is the pooled 2304-d vector (slow 2048 | fast 256) before dropout and projection, as in
HERO_Video_Feature_Extractor, whose features VMR papers use. What differs from it: frames are
sampled `centered` on the clip and independent of the file's frame rate, unless `sampling="hero"`
asks for HERO's rule; pooling is global, which is the same at 224 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UsageError
from models.backbones.base import BACKBONES, Backbone, channels_first, he_uniform
from models.backbones.classifier import fit_classes
from models.weights import Checkpoint, own_layout, renaming_layout

__all__ = ["SlowFast", "SlowFastNet", "caffe2_name", "pytorchvideo_name"]

FRAMES = 32
RATE_FPS = 30.0
SLOW_INDICES = (0, 4, 8, 13, 17, 22, 26, 31)
"""`linspace(0, 31, 8)` truncated, as PySlowFast packs the slow pathway (not stride 4)."""

_DEPTHS = (3, 4, 6, 3)
_SLOW_KERNELS = (1, 1, 3, 3)
_FAST_KERNELS = (3, 3, 3, 3)
_ALPHA = 4
_MEAN, _STD = 0.45, 0.225

PUBLISHED_CLASSES = (400,)
"""Kinetics-400, in all three layouts."""


class _Stem(nn.Module):
    NORM_AFTER: ClassVar[dict[str, str]] = {"conv": "bn"}

    def __init__(self, width: int, kernel_t: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            3, width, (kernel_t, 7, 7), (1, 2, 2), (kernel_t // 2, 3, 3), bias=False
        )
        self.bn = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool3d(
            functional.relu(self.bn(self.conv(x)), inplace=True), (1, 3, 3), (1, 2, 2), (0, 1, 1)
        )


class _Bottleneck(nn.Module):
    """`branch2` of a residual block; the stride is on the 3x3 convolution."""

    NORM_AFTER: ClassVar[dict[str, str]] = {"a": "a_bn", "b": "b_bn", "c": "c_bn"}

    def __init__(self, width_in: int, width: int, kernel_t: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv3d(
            width_in, width, (kernel_t, 1, 1), padding=(kernel_t // 2, 0, 0), bias=False
        )
        self.a_bn = nn.BatchNorm3d(width)
        self.b = nn.Conv3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.b_bn = nn.BatchNorm3d(width)
        self.c = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.c_bn = nn.BatchNorm3d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a_bn(self.a(x)), inplace=True)
        x = functional.relu(self.b_bn(self.b(x)), inplace=True)
        out: Tensor = self.c_bn(self.c(x))
        return out


class _Residual(nn.Module):
    NORM_AFTER: ClassVar[dict[str, str]] = {"branch1": "branch1_bn"}

    def __init__(self, width_in: int, width: int, kernel_t: int, stride: int) -> None:
        super().__init__()
        if width_in != 4 * width or stride != 1:
            self.branch1 = nn.Conv3d(width_in, 4 * width, 1, (1, stride, stride), bias=False)
            self.branch1_bn = nn.BatchNorm3d(4 * width)
        self.branch2 = _Bottleneck(width_in, width, kernel_t, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.branch1_bn(self.branch1(x)) if hasattr(self, "branch1") else x
        return functional.relu(shortcut + self.branch2(x), inplace=True)


class _FuseFastToSlow(nn.Module):
    NORM_AFTER: ClassVar[dict[str, str]] = {"conv_f2s": "bn"}

    def __init__(self, fast_width: int) -> None:
        super().__init__()
        self.conv_f2s = nn.Conv3d(
            fast_width, 2 * fast_width, (7, 1, 1), (_ALPHA, 1, 1), (3, 0, 0), bias=False
        )
        self.bn = nn.BatchNorm3d(2 * fast_width)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        lateral = functional.relu(self.bn(self.conv_f2s(fast)), inplace=True)
        return torch.cat([slow, lateral], dim=1)


class _Head(nn.Module):
    """Holds the classifier so that official checkpoints load strictly; features do not use it."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.projection(feature)
        return logits


class SlowFastNet(nn.Module):
    """The network under PySlowFast's names.

    Args:
        width: channels of the slow stem (64 in the paper).
        fast_width: channels of the fast stem (8 in the paper: `width / beta_inv`).
        classes: of the classifier; 0 for none.
    """

    slow_indices: Tensor

    def __init__(self, width: int = 64, fast_width: int = 8, classes: int = 400) -> None:
        super().__init__()
        self.dim = 32 * (width + fast_width)
        # On the device, and no part of the state: a list would be copied there at every call.
        self.register_buffer("slow_indices", torch.tensor(SLOW_INDICES), persistent=False)
        self.s1 = nn.ModuleDict(
            {"pathway0_stem": _Stem(width, 1), "pathway1_stem": _Stem(fast_width, 5)}
        )
        self.s1_fuse = _FuseFastToSlow(fast_width)
        slow_in, fast_in = width + 2 * fast_width, fast_width
        for index, depth in enumerate(_DEPTHS):
            slow, fast = width * 2**index, fast_width * 2**index
            stage = nn.ModuleDict()
            for pathway, width_in, inner, kernel_t in (
                (0, slow_in, slow, _SLOW_KERNELS[index]),
                (1, fast_in, fast, _FAST_KERNELS[index]),
            ):
                for block in range(depth):
                    stride = 2 if index > 0 and block == 0 else 1
                    stage[f"pathway{pathway}_res{block}"] = _Residual(
                        width_in if block == 0 else 4 * inner, inner, kernel_t, stride
                    )
            setattr(self, f"s{index + 2}", stage)
            if index < 3:
                setattr(self, f"s{index + 2}_fuse", _FuseFastToSlow(4 * fast))
            slow_in, fast_in = 4 * slow + 8 * fast, 4 * fast
        if classes:
            self.head = _Head(self.dim, classes)

    def endpoints(self, x: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, slow and fast maps after every stage and fusion for (B, 3, 32, H, W), in order.

        Raises:
            ValueError: another number of frames.
        """
        if x.shape[2] != FRAMES:
            raise ValueError(f"slowfast takes {FRAMES} frames in a clip, got {x.shape[2]}")
        slow = self.s1["pathway0_stem"](x.index_select(2, self.slow_indices))
        fast = self.s1["pathway1_stem"](x)
        yield "s1", slow, fast
        slow = self.s1_fuse(slow, fast)
        yield "s1_fuse", slow, fast
        for index, depth in enumerate(_DEPTHS):
            stage = getattr(self, f"s{index + 2}")
            for block in range(depth):
                slow = stage[f"pathway0_res{block}"](slow)
                fast = stage[f"pathway1_res{block}"](fast)
            yield f"s{index + 2}", slow, fast
            if index < 3:
                slow = getattr(self, f"s{index + 2}_fuse")(slow, fast)
                yield f"s{index + 2}_fuse", slow, fast

    def forward(self, x: Tensor) -> Tensor:
        """Frames (B, 3, 32, H, W) to pooled features (B, dim).

        Pooled in float32, whatever the layers compute in.

        Raises:
            ValueError: another number of frames.
        """
        for _, slow, fast in self.endpoints(x):  # noqa: B007 - the last ones are used
            pass
        return torch.cat([_pooled(slow), _pooled(fast)], dim=1)

    def classify(self, x: Tensor) -> Tensor:
        """Frames (B, 3, 32, H, W) to the logits of the classes (B, classes), without softmax."""
        logits: Tensor = self.head(self(x))
        return logits


def _pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3, 4), dtype=torch.promote_types(x.dtype, torch.float32))


_LEAVES = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def caffe2_name(name: str) -> str:
    """The Caffe2 blob that holds the tensor `name` of this network ("" for batch counters)."""
    module, leaf = name.rsplit(".", 1)
    if leaf == "num_batches_tracked":
        return ""
    if module == "head.projection":
        return "pred_w" if leaf == "weight" else "pred_b"
    norm = module.endswith("bn")
    suffix = f"_bn_{_LEAVES[leaf]}" if norm else "_w"
    if found := re.match(r"s1\.pathway(\d)_stem", module):
        fast = "t_" if found[1] == "1" else ""
        return f"{fast}res_conv1{suffix}" if norm else f"{fast}conv1_w"
    if found := re.match(r"s(\d)_fuse", module):
        stage = int(found[1])
        last = "pool1" if stage == 1 else f"res{stage}_{_DEPTHS[stage - 2] - 1}_branch2c_bn"
        return f"t_{last}_subsample{suffix}"
    block = re.match(r"s(\d)\.pathway(\d)_res(\d+)\.(branch1|branch2\.([abc]))", module)
    assert block is not None
    fast = "t_" if block[2] == "1" else ""
    return f"{fast}res{block[1]}_{block[3]}_{block[4].replace('.', '')}{suffix}"


def pytorchvideo_name(name: str) -> str:
    """The PyTorchVideo name (`create_slowfast`) of the tensor `name` of this network."""
    module, leaf = name.rsplit(".", 1)
    if module == "head.projection":
        return f"blocks.6.proj.{leaf}"
    stage = int(module[1]) - 1
    kind = "norm" if module.endswith("bn") else "conv"
    if "_fuse" in module:
        part = "norm" if kind == "norm" else "conv_fast_to_slow"
        return f"blocks.{stage}.multipathway_fusion.{part}.{leaf}"
    found = re.match(r"s\d\.pathway(\d)_(?:stem|res(\d+))(?:\.(branch\d)(?:\.([abc]))?)?", module)
    assert found is not None
    path = f"blocks.{stage}.multipathway_blocks.{found[1]}"
    if found[2] is None:
        return f"{path}.{kind}.{leaf}"
    part = f"branch1_{kind}" if found[4] is None else f"branch2.{kind}_{found[4]}"
    return f"{path}.res_blocks.{found[2]}.{part}.{leaf}"


_LAYOUTS = (
    own_layout("PySlowFast", "s1.pathway0_stem.conv.weight"),
    renaming_layout(
        "Caffe2",
        "conv1_w",
        caffe2_name,
        ignored=lambda name: bool(re.search(r"momentum|^lr$|model_iter", name)),
    ),
    renaming_layout(
        "PyTorchVideo", "blocks.0.multipathway_blocks.0.conv.weight", pytorchvideo_name
    ),
)


def _scale(name: str, tensor: Tensor) -> tuple[float, float]:
    """As `he_uniform`, with weak residual branches, so that depth does not wash out the picture.

    A linear probe for 8 colours rose from 0.60 to 0.80 with it.
    """
    return (0.15, 0.0) if name.endswith("c_bn.weight") else he_uniform(name, tensor)


@BACKBONES.register("slowfast")
class SlowFast(Backbone):
    """SlowFast features of 32 frames per clip.

    Args:
        checkpoint: PySlowFast, Caffe2 or PyTorchVideo weights; None for seeded random ones.
        divisor: divides all channel counts.
        beta_inv: ratio of slow to fast channels.
        classes: of the checkpoint's classifier; 0 for none, None for the 400 of Kinetics.
        size: edge of the square pictures in pixels.
        sampling: "centered" takes 32 frames at stride 2 of the 30 fps sequence around the clip's
            centre; "hero" does what HERO_Video_Feature_Extractor does, and needs the file's own
            frame rate.
        seed: of the random weights.
        calibrated: standardise the outputs of random weights (`Backbone`).
    """

    name = "slowfast"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "tiny": {"divisor": 8, "beta_inv": 2, "classes": 0, "size": 64, "calibrated": True},
    }

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        divisor: int = 1,
        beta_inv: int = 8,
        classes: int | None = None,
        size: int = 224,
        sampling: Literal["centered", "hero"] = "centered",
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        if sampling not in {"centered", "hero"}:
            raise UsageError(f"slowfast: sampling '{sampling}'; allowed: centered, hero")
        width = 64 // divisor
        super().__init__(
            lambda: SlowFastNet(
                width,
                max(1, width // beta_inv),
                PUBLISHED_CLASSES[0] if classes is None else classes,
            ),
            dim=32 * (width + max(1, width // beta_inv)),
            frames=FRAMES,
            size=size,
        )
        self.sampling = sampling
        self._architecture = {"divisor": divisor, "beta_inv": beta_inv}
        adapt = fit_classes(self.name, "head.projection.weight", classes, PUBLISHED_CLASSES)
        self._settle(self._fill(checkpoint, _LAYOUTS, seed, _scale, adapt), seed, calibrated)

    def clip_times(
        self,
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        *,
        native_fps: float | None = None,
        duration_s: float | None = None,
    ) -> NDArray[np.float64]:
        """Times of the 32 frames of each clip, shape (N, 32); see `Backbone.clip_times`."""
        if self.sampling == "centered":
            return self._centred_times(starts_s, clip_len_s, RATE_FPS, FRAMES, stride=2)
        if native_fps is None or duration_s is None:
            raise UsageError(
                "slowfast: sampling 'hero' depends on the file's own frame rate and duration; give "
                "native_fps and duration_s, or use sampling 'centered'"
            )
        return _hero_times(starts_s, clip_len_s, native_fps, duration_s)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, 32, H, W, 3) to float (B, 3, 32, size, size), `(x / 255 - 0.45) / 0.225`."""
        return (channels_first(self._cropped(frames)) / 255.0 - _MEAN) / _STD

    def params(self) -> dict[str, Any]:
        """See `Backbone.params`."""
        return super().params() | self._architecture | {"sampling": self.sampling}


def _hero_times(
    starts_s: NDArray[np.float64], clip_len_s: float, native_fps: float, duration_s: float
) -> NDArray[np.float64]:
    """HERO's frames: a span that depends on the native rate, tail padded by repeating a second.

    The public extractor resamples to 30 fps, pads with the last frame to whole seconds, then to
    whole clips with the last second, and spreads 32 indices over `64 * floor(fps) / 30` frames of a
    clip although the frames are already at 30 fps (specs/feature_extractors.md §2.2).
    """
    per_clip = round(RATE_FPS * clip_len_s)
    span = 2 * FRAMES * np.floor(native_fps) / RATE_FPS - 1
    within = torch.linspace(0, float(span), FRAMES).clamp(0, per_clip - 1).long().numpy()
    first = np.floor(starts_s * RATE_FPS + 0.5).astype(np.int64)
    index = first[:, None] + within
    total = max(1, int(np.floor(duration_s * RATE_FPS + 0.5)))
    seconds = -(-total // 30) * 30
    index = np.where(index < seconds, index, seconds - 30 + (index - seconds) % 30)
    times: NDArray[np.float64] = (np.minimum(index, total - 1) + 0.5) / RATE_FPS
    return times
