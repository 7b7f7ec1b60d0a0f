"""VGG16 fc7: pictures to the 4096-d vector before the classifier.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015, https://arxiv.org/abs/1409.1556. Tensor names are those of torchvision's `vgg16`, so its
checkpoints (`vgg16-397923af.pth`) load strictly; torchvision itself is not needed. The feature is
taken after fc7 and its ReLU, in evaluation mode.

What differs from torchvision's own transform: frames are scaled by the decoder's bicubic filter,
not by an antialiased bilinear one, before the same centre crop.

The VGG features that are published for Charades-STA cannot be made with these weights: they come
from a two-stream network that was trained on Charades, one vector per 4 frames at 24 fps
(specs/feature_extractors.md §2.5). `pipeline import` brings such files into a store.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UsageError
from models.backbones.base import BACKBONES, Backbone, channels_first, he_uniform
from models.backbones.classifier import fit_classes
from models.weights import Checkpoint, own_layout

__all__ = ["Vgg", "VggNet"]

PUBLISHED_CLASSES = (1000,)

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POOL = 0
_WIDTHS = (64, 64, _POOL, 128, 128, _POOL, *(256,) * 3, _POOL, *(512,) * 3, _POOL, *(512,) * 3)
"""Channels of the convolutions up to the last pool ("configuration D" of the paper)."""
_FC7 = 5
"""Modules of `classifier` up to the ReLU of fc7."""


class VggNet(nn.Module):
    """The network under torchvision's names.

    Args:
        divisor: divides the channel counts and the width of fc6 and fc7.
        classes: of the classifier; 0 for none.
    """

    def __init__(self, divisor: int = 1, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 3
        for width in (*_WIDTHS, _POOL):
            if width == _POOL:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width_in, width // divisor, 3, padding=1), nn.ReLU()]
                width_in = width // divisor
        self.dim = 4096 // divisor
        self.features = nn.Sequential(*layers)
        last = [nn.Linear(self.dim, classes)] if classes else []
        self.classifier = nn.Sequential(
            nn.Linear(width_in * 7 * 7, self.dim),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(self.dim, self.dim),
            nn.ReLU(),
            nn.Dropout(),
            *last,
        )

    def forward(self, batch: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), or (B, 3, T, H, W) whose mean is taken, to features (B, dim)."""
        if batch.ndim == 5:
            pictures = batch.transpose(1, 2).flatten(0, 1)
            each: Tensor = self(pictures)
            return each.reshape(len(batch), -1, self.dim).mean(dim=1)
        pooled = functional.adaptive_avg_pool2d(self.features(batch), 7)
        out: Tensor = self.classifier[:_FC7](pooled.flatten(1))
        return out

    def logits(self, feature: Tensor) -> Tensor:
        """Features (B, dim) to scores of the classes (B, classes)."""
        out: Tensor = self.classifier[_FC7:](feature)
        return out


_LAYOUTS = (own_layout("torchvision", "features.0.weight"),)


@BACKBONES.register("vgg")
class Vgg(Backbone):
    """fc7 features of VGG16.

    Args:
        checkpoint: torchvision's weights; None for seeded random ones.
        divisor: divides all widths.
        classes: of the checkpoint's classifier; 0 for none, None for the 1000 of ImageNet.
        frames: frames per clip, evenly spread (those of ffmpeg's `fps=frames/L`); the feature is
            the mean of theirs. One frame is the one at the centre.
        size: edge of the square pictures in pixels.
        short_side: pixels of a frame's short side before the centre crop; 224 shares the pictures
            of CLIP and SlowFast.
        seed: of the random weights.
        calibrated: standardise the outputs of random weights (`Backbone`).
    """

    name = "vgg"
    mean: Tensor
    std: Tensor
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "tiny": {"divisor": 16, "classes": 0, "size": 64, "short_side": 64, "calibrated": True},
    }

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        divisor: int = 1,
        classes: int | None = None,
        frames: int = 1,
        size: int = 224,
        short_side: int = 256,
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        if frames < 1 or not 32 <= size <= short_side:
            raise UsageError(
                f"vgg: frames {frames}, size {size}, short_side {short_side}; it needs at least 1 "
                "frame, a size of at least 32 pixels (five poolings by two) and a short_side that "
                "is not below the size"
            )
        built = PUBLISHED_CLASSES[0] if classes is None else classes
        super().__init__(
            lambda: VggNet(divisor, built),
            dim=4096 // divisor,
            frames=frames,
            size=size,
            short_side=short_side,
        )
        self._architecture = {"divisor": divisor, "frames": frames}
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1, 1), persistent=False)
        adapt = fit_classes(self.name, "classifier.6.weight", classes, PUBLISHED_CLASSES)
        self._settle(self._fill(checkpoint, _LAYOUTS, seed, he_uniform, adapt), seed, calibrated)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, k, H, W, 3) to float (B, 3, size, size), or (B, 3, k, size, size) for k > 1."""
        batch: Tensor = (channels_first(self._cropped(frames)) / 255.0 - self.mean) / self.std
        return batch.squeeze(2) if self.frames == 1 else batch

    def params(self) -> dict[str, Any]:
        """See `Backbone.params`."""
        return super().params() | self._architecture
