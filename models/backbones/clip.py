"""CLIP image features: one frame per clip, the projected and un-normalised embedding.

Preprocessing as in openai/CLIP and HERO_Video_Feature_Extractor (specs/feature_extractors.md §2.1).
The frame is the one that ffmpeg's `fps=1/L` filter selects, near the centre of the clip.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.base import BACKBONES, Backbone, channels_first
from models.clip import DEFAULT_MODEL, TINY_MODEL, build_clip
from models.weights import Checkpoint

__all__ = ["Clip"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@BACKBONES.register("clip")
class Clip(Backbone):
    """The picture side of a CLIP.

    Args:
        checkpoint: see `models.clip.build_clip`; None for seeded random weights.
        model: a model name of open_clip, or "tiny".
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
        model: str = DEFAULT_MODEL,
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        net, weights = build_clip(model, checkpoint, seed)
        # The text side would only take memory; the hash covers both sides.
        visual: Any = net.visual
        super().__init__(
            lambda: visual,
            dim=int(visual.output_dim),
            frames=1,
            size=int(np.max(visual.image_size)),
        )
        self.model = model
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self._settle(weights, seed, calibrated)

    def clip_times(
        self,
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        *,
        native_fps: float | None = None,
        duration_s: float | None = None,
    ) -> NDArray[np.float64]:
        """The centre of each clip, shape (N, 1); see `Backbone.clip_times`."""
        del native_fps, duration_s
        return (np.asarray(starts_s, dtype=np.float64) + clip_len_s / 2)[:, None]

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, 1, H, W, 3) to float (B, 3, size, size), normalised with CLIP's constants."""
        batch = channels_first(self._cropped(frames)).squeeze(2)
        out: Tensor = (batch / 255.0 - self.mean) / self.std
        return out

    def params(self) -> dict[str, Any]:
        """See `Backbone.params`."""
        return super().params() | {"model": self.model}
