"""I3D on optical flow: the second of its two streams.

The network is `I3D` with two input channels. The flow of each frame to the next is computed on
whole frames at the short side 256, before the crop, as google-deepmind/kinetics-i3d and
v-iashin/video_features do; then it is cropped and scaled (`models.flow.SCALINGS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.identity import digest
from models.backbones.base import BACKBONES
from models.backbones.i3d import I3D
from models.calibration import Standardise, moving_shapes
from models.flow import SCALINGS, create_flow
from models.weights import Checkpoint

__all__ = ["I3DFlow"]

_CALIBRATION_CLIPS = 24


@BACKBONES.register("i3d_flow")
class I3DFlow(I3D):
    """I3D features of the optical flow of a window, which takes one frame more than the window.

    `encode` and `preprocess` take frames; `forward` takes scaled flow (B, 2, T, H, W), also such
    as a caller has prepared (`flow="none"`).

    Args:
        checkpoint: weights of the flow network, e.g. piergiaj's `flow_imagenet.pt` or hassony2's
            `model_flow.pth`; None for seeded random ones.
        flow: name of the optical flow (`models.flow.FLOWS`).
        flow_checkpoint: weights of the flow, where it is a network.
        flow_options: of the flow's constructor.
        scaling: from pixels to the input of the network (`models.flow.SCALINGS`): "deepmind", or
            "v-iashin" for features like those of that repository.
        divisor, classes, size, short_side, rate_fps, windows, window_frames, rows_per_window, seed,
            calibrated: as `I3D`.
    """

    name = "i3d_flow"
    crop = False
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = I3D.PRESETS | {
        "tiny": I3D.PRESETS["tiny"]
        | {
            "flow_options": {"scales": 3, "warps": 1, "outer": 1, "inner": 10, "median": 3},
        },
    }

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        flow: str = "tvl1-torch",
        flow_checkpoint: Checkpoint | None = None,
        flow_options: Mapping[str, Any] | None = None,
        scaling: str = "deepmind",
        divisor: int = 1,
        classes: int | None = None,
        size: int = 224,
        short_side: int = 256,
        rate_fps: float = 25.0,
        windows: str = "centred",
        window_frames: int = 16,
        rows_per_window: int = 1,
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        # What costs nothing to check comes before what takes seconds to build.
        scale, fields = (
            SCALINGS.get(scaling),
            create_flow(flow, flow_checkpoint, **flow_options or {}),
        )
        super().__init__(
            checkpoint,
            in_channels=2,
            divisor=divisor,
            classes=classes,
            size=size,
            short_side=short_side,
            rate_fps=rate_fps,
            windows=windows,
            window_frames=window_frames,
            rows_per_window=rows_per_window,
            seed=seed,
        )
        self.flow, self._scale, self.scaling = fields, scale, scaling
        self.frames += 1
        self._settle(self.weights, seed, calibrated)
        if isinstance(self.output, Standardise):
            # The constants come from flow, so another flow is another network.
            told = {
                "weights": self.weights.sha256,
                "flow": fields.params(),
                "scaling": scaling,
                "clips": _CALIBRATION_CLIPS,
            }
            self.weights = replace(self.weights, sha256=digest(told))

    def examples(self, seed: int) -> Tensor:
        """Fewer drawings than for RGB, as long: their flow is what a constructor waits for.

        Shorter ones would not do: on 9 frames, where all is border in time, the constants are wrong
        for 16 by a factor of a hundred.
        """
        return torch.from_numpy(moving_shapes(seed, _CALIBRATION_CLIPS, self.frames, self.size))

    def clip_times(
        self,
        starts_s: NDArray[np.float64],
        clip_len_s: float,
        *,
        native_fps: float | None = None,
        duration_s: float | None = None,
    ) -> NDArray[np.float64]:
        """Times of the window and of the frame after it; see `I3D.clip_times`."""
        del native_fps
        return self.windows.times(starts_s, clip_len_s, duration_s, extra=1)

    def seen(self, window: NDArray[Any]) -> NDArray[Any]:
        """All of it: what moves outside the crop tells where things in it come from."""
        return window

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, T + 1, H, W, 3) to scaled flow, float (B, 2, T, size, size)."""
        top, left = self._corner(frames.shape)
        with torch.inference_mode():
            flow = self.flow(frames)
        flow = flow[..., top : top + self.size, left : left + self.size]
        return self._scale(flow)

    def params(self) -> dict[str, Any]:
        """See `Backbone.params`."""
        return super().params() | {"flow": self.flow.params(), "scaling": self.scaling}
