"""What a backbone is: frames of a clip in, one feature vector out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.registry import Registry
from models.calibration import CALIBRATION_CLIPS, Standardise, calibrated_weights, moving_shapes
from models.weights import (
    Checkpoint,
    Layout,
    Weights,
    fill_seeded,
    load_strictly,
    tensors_sha256,
)

__all__ = ["BACKBONES", "Backbone", "channels_first", "he_uniform"]

BACKBONES: Registry[type[Backbone]] = Registry("backbone")
"""All backbones by name. A module adds its class with `@BACKBONES.register("name")`."""


class Backbone(nn.Module, ABC):
    """A frozen network that turns the frames of a clip into one vector.

    Random weights may be *calibrated*: the features of an untrained network differ far less between
    pictures than between dimensions, so the outputs are standardised per dimension by constants
    that are measured once, in the constructor, on seeded drawings (DESIGN §8). The constants are
    weights: buffers of the module, part of `weights.sha256`.

    Attributes:
        net: the network itself, (preprocessed batch) -> (B, dim), under its public tensor names.
        dim: D, length of the feature vector.
        frames: k, frames per clip; where the window grows with the clip (I3D), the smallest.
        size: edge in pixels of the square pictures that the network sees.
        short_side: pixels that the short side of a frame is scaled to before the centre crop.
        weights: where the weights come from.
    """

    name: ClassVar[str]
    takes: ClassVar[Literal["frames", "sound"]] = "frames"
    """What `encode` is given: pictures, or float32 sound (B, samples)."""
    PRECISIONS: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    """What `models.backbones.machine.prepared` may compute the network in."""
    crop: bool = True
    """Whether the decoder crops at the centre; False: whole pictures (`data.video.View`)."""
    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    """Named sets of constructor options; `full` is the published architecture."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        dim: int,
        frames: int,
        size: int,
        short_side: int | None = None,
    ) -> None:
        super().__init__()
        # torch's own initialisation would move the caller's random state.
        with torch.random.fork_rng(devices=[]):
            self.net = build()
        self.dim, self.frames, self.size = dim, frames, size
        self.short_side = size if short_side is None else short_side
        self.output: nn.Module = nn.Identity()
        self.weights: Weights

    def _fill(
        self,
        checkpoint: Checkpoint | None,
        layouts: Sequence[Layout],
        seed: int,
        scale: Callable[[str, Tensor], tuple[float, float]],
        adapt: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> Weights:
        """Fill the network from a checkpoint in one of `layouts`, or from a seed."""
        if checkpoint is not None:
            what = f"{self.name} ({self.dim}-d)"
            return load_strictly(self.net, checkpoint, layouts, what, adapt)
        fill_seeded(self.net, seed, scale)
        return Weights("random", tensors_sha256(self.net), f"seed {seed}")

    def _settle(self, weights: Weights, seed: int, calibrated: bool) -> None:
        """Freeze; calibrate random weights if asked. The last thing that a constructor does."""
        self.net.eval().requires_grad_(False)
        if weights.kind == "random" and calibrated:
            with torch.inference_mode():
                raw = self.net(self.preprocess(self.examples(seed)))
            self.output = Standardise.measured(raw)
            weights = calibrated_weights(weights, seed, self.frames, self.size)
        self.weights = weights
        self.eval()

    def examples(self, seed: int) -> Tensor:
        """What random weights are calibrated on, as `preprocess` takes it: seeded drawings."""
        return torch.from_numpy(moving_shapes(seed, CALIBRATION_CLIPS, self.frames, self.size))

    def clip_times(
        self,
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        *,
        native_fps: float | None = None,
        duration_s: float | None = None,
    ) -> NDArray[np.float64]:
        """When to look for the frames of each clip: here the centres of its `frames` equal parts.

        Args:
            starts_s: start of each clip in seconds, shape (N,).
            clip_len_s: length of a clip in seconds.
            native_fps: average frame rate of the file; only some sampling rules need it.
            duration_s: length of the video in seconds; only some sampling rules need it.

        Returns:
            Seconds, shape (N, k). The frame wanted is the last one *before* the time
            (`FrameRequest(inclusive=False)`), or the first of the video if there is none: frame j
            of ffmpeg's `fps=F` filter is the one for `(j + 1/2) / F`.
        """
        del native_fps, duration_s
        within = (np.arange(self.frames) + 0.5) * (clip_len_s / self.frames)
        times: NDArray[np.float64] = np.asarray(starts_s, dtype=np.float64)[:, None] + within
        return times

    @abstractmethod
    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, k, H, W, 3) RGB to the float batch that `forward` takes, on the same device.

        Frames larger than `size` are cropped at the centre; smaller ones are a ValueError.
        """

    def forward(self, batch: Tensor) -> Tensor:
        """Preprocessed float batch, (B, 3, H, W) or (B, 3, T, H, W), to features (B, dim)."""
        out: Tensor = self.output(self.net(batch))
        return out

    def seen(self, window: NDArray[Any]) -> NDArray[Any]:
        """The part of one window that `preprocess` looks at: only this travels to the device."""
        if self.takes != "frames":
            return window
        top, left, size = *self._corner(window.shape), self.size
        return window[..., top : top + size, left : left + size, :]

    def split(self) -> tuple[nn.Module, nn.Module]:
        """`net` as a body that may compute in low precision, and last layers that stay float32.

        May take `net` apart: `models.backbones.machine.prepared` calls it on a copy.
        """
        return self.net, nn.Identity()

    @torch.inference_mode()
    def encode(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """uint8 frames (B, k, H, W, 3), or float32 sound (B, samples), to features (B, dim).

        The plain way, for one batch; stages use `models.backbones.machine`.
        """
        device = next(self.net.parameters()).device
        batch = self.preprocess(torch.from_numpy(np.ascontiguousarray(frames)).to(device))
        out: NDArray[np.float32] = self(batch).float().cpu().numpy()
        return out

    def params(self) -> dict[str, Any]:
        """Plain JSON that determines the features of given frames, and which frames: the recipe."""
        return {
            "backbone": self.name,
            "dim": self.dim,
            "size": self.size,
            "short_side": self.short_side,
            "weights": self.weights.recipe(),
            "calibrated": isinstance(self.output, Standardise),
        }

    @staticmethod
    def _centred_times(
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        rate_fps: float,
        count: int,
        stride: int = 1,
    ) -> NDArray[np.float64]:
        """Times (N, count) of every `stride`-th of `count * stride` frames around clip centres."""
        centre = (np.asarray(starts_s, dtype=np.float64) + clip_len_s / 2) * rate_fps
        first = np.floor(centre - count * stride / 2 + 0.5)
        index = first[:, None] + stride * np.arange(count)
        return (np.maximum(index, 0) + 0.5) / rate_fps

    def _cropped(self, frames: Tensor) -> Tensor:
        top, left = self._corner(frames.shape)
        return frames[..., top : top + self.size, left : left + self.size, :]

    def _corner(self, shape: Sequence[int]) -> tuple[int, int]:
        """Top and left of the centre crop of frames (..., H, W, 3)."""
        height, width = shape[-3:-1]
        if min(height, width) < self.size:
            raise ValueError(
                f"{self.name} needs frames of at least {self.size} pixels, got {height}x{width}"
            )
        return (height - self.size) // 2, (width - self.size) // 2


def channels_first(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) to float32 (B, 3, T, H, W).

    In memory the channels stay last, as the decoder gave them: the layout that convolutions like
    best on both kinds of machine, and no pass over the pixels is spent on turning them.
    """
    return frames.permute(0, 4, 1, 2, 3).float()


def he_uniform(name: str, tensor: Tensor) -> tuple[float, float]:
    """Offset and amplitude for random convolutional networks with ReLU (He et al. 2015).

    The offset of batch norm keeps most units open: a linear probe for the direction of motion on
    I3D rose from 0.71 to 0.84 (5 classes) with it.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var" or (leaf == "weight" and tensor.ndim < 2):
        return 1.0, 0.0
    if tensor.ndim < 2:
        return (0.5 if leaf == "bias" else 0.0), 0.0
    return 0.0, float((6 / tensor[0].numel()) ** 0.5)
