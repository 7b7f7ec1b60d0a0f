"""CLIP image features: one frame per clip, the projected and un-normalised embedding.

Preprocessing as in openai/CLIP and HERO_Video_Feature_Extractor (specs/feature_extractors.md §2.1),
with the constants of the model at hand (SigLIP's are others). The frame is the one that ffmpeg's
`fps=1/L` filter selects, near the centre of the clip.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from data.errors import UsageError
from models.backbones.base import BACKBONES, Backbone, channels_first
from models.clip import TINY_MODEL, BuiltClip, build_clip
from models.weights import Checkpoint

__all__ = ["Clip"]


@BACKBONES.register("clip")
class Clip(Backbone):
    """The picture side of a CLIP.

    Args:
        checkpoint: see `models.clip.build_clip`; None for seeded random weights.
        model: a model name of open_clip, or "tiny"; None: what the checkpoint is, or
            `ViT-B-32-quickgelu`.
        tag: open_clip's name of the training ("openai"), where the file does not tell it.
        resize: "model" scales pictures as the model was trained with, or refuses a model for which
            that cannot be done; "shortest" takes the pictures of the public extractors (short side
            scaled, bicubic, centre cropped) for every model.
        seed: of the random weights.
        calibrated: standardise the outputs of random weights (`Backbone`).
    """

    name = "clip"
    mean: Tensor
    std: Tensor
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "tiny": {"model": TINY_MODEL, "calibrated": True},
    }

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        model: str | None = None,
        tag: str | None = None,
        resize: Literal["model", "shortest"] = "model",
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        clip = build_clip(model, checkpoint, seed, tag)
        # The text side would only take memory; the hash covers both sides.
        visual: Any = clip.net.visual
        super().__init__(
            lambda: visual, dim=int(clip.config["embed_dim"]), frames=1, size=_size(clip)
        )
        self.model = clip.model
        self._quick_gelu = clip.quick_gelu
        self.pictures = clip.pictures
        self.resize = _resize(clip, resize)
        self.crop = self.resize == "shortest"
        self.register_buffer("mean", _channels(clip.pictures.mean), persistent=False)
        self.register_buffer("std", _channels(clip.pictures.std), persistent=False)
        self._settle(clip.weights, seed, calibrated)

    def seen(self, window: NDArray[Any]) -> NDArray[Any]:
        """See `Backbone.seen`; a squashed picture has the size of the network from here on."""
        return super().seen(window) if self.crop else _squashed(window, self.size)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, 1, H, W, 3) to float (B, 3, size, size), with the model's mean and std."""
        if not self.crop and tuple(frames.shape[-3:-1]) != (self.size, self.size):
            squashed = _squashed(frames.cpu().numpy(), self.size)
            frames = torch.from_numpy(squashed).to(frames.device)
        batch = channels_first(self._cropped(frames)).squeeze(2)
        out: Tensor = (batch / 255.0 - self.mean) / self.std
        return out

    def split(self) -> tuple[nn.Module, nn.Module]:
        """The last projection stays float32, where the network has one of its own."""
        net: Any = self.net
        matrix = getattr(net, "proj", None)
        if not isinstance(matrix, nn.Parameter):
            return super().split()
        net.proj = None
        return net, _Projection(matrix)

    def params(self) -> dict[str, Any]:
        """See `Backbone.params`."""
        own = {"model": self.model, "quick_gelu": self._quick_gelu, "resize": self.resize}
        pixels = {"mean": list(self.pictures.mean), "std": list(self.pictures.std)}
        return super().params() | own | pixels


class _Projection(nn.Module):
    def __init__(self, matrix: nn.Parameter) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled @ self.matrix


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _size(clip: BuiltClip) -> int:
    visual: Any = clip.net.visual
    height, width = np.broadcast_to(np.asarray(visual.image_size), 2).tolist()
    if height != width:
        raise UsageError(
            f"CLIP '{clip.model}' looks at pictures of {height}x{width} pixels; only square ones "
            "are made here"
        )
    return int(height)


def _resize(clip: BuiltClip, wanted: str) -> str:
    """ "shortest" or "squash"."""
    if wanted not in ("model", "shortest"):
        raise UsageError(f"unknown resize '{wanted}'; allowed: model, shortest")
    pictures = clip.pictures
    if wanted == "shortest":
        return wanted
    if pictures.interpolation != "bicubic" or pictures.resize_mode not in ("shortest", "squash"):
        raise UsageError(
            f"CLIP '{clip.model}' wants pictures that are scaled {pictures.interpolation} by "
            f"resize mode '{pictures.resize_mode}'; here they are scaled bicubic, by 'shortest' or "
            "'squash'. To take short-side bicubic pictures knowing that the features differ from "
            "open_clip's, give the option resize: shortest"
        )
    return pictures.resize_mode


def _squashed(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 (..., H, W, 3) to (..., size, size, 3): the whole picture, its shape not kept.

    The decoder has scaled the short side to `size` already; bicubic and antialiased like PIL.
    """
    flat = torch.from_numpy(np.ascontiguousarray(frames.reshape(-1, *frames.shape[-3:])))
    pixels = flat.permute(0, 3, 1, 2).float()
    scaled = interpolate(pixels, (size, size), mode="bicubic", antialias=True, align_corners=False)
    made = scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return made.numpy().reshape(*frames.shape[:-3], size, size, 3)
