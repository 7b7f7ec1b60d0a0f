"""What an optical flow is: consecutive frames in, displacements in pixels out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data.errors import UsageError
from data.registry import Registry

__all__ = ["FLOWS", "Flow", "PreparedFlow"]

FLOWS: Registry[type[Flow]] = Registry("optical flow")
"""All flows by name. A module adds its class with `@FLOWS.register("name")`."""

CHUNK = 32
"""Pairs of frames that are worked on together: memory depends neither on clips nor on batches."""


class Flow(nn.Module, ABC):
    """Optical flow between each frame of a clip and the next.

    Attributes:
        min_side: the smallest edge in pixels that a frame may have.
        chunk: pairs of frames that are worked on together. It changes no result.
    """

    name: ClassVar[str]
    is_network: ClassVar[bool] = False
    """Whether it takes a checkpoint."""
    compiles: ClassVar[bool] = False
    """Loops of its own: `compile: true` is about the network (`models.backbones.machine`)."""
    min_side: ClassVar[int] = 1

    def __init__(self, chunk: int = CHUNK) -> None:
        super().__init__()
        if chunk < 1:
            raise UsageError(f"flow {self.name}: chunk {chunk}; give 1 or more pairs of frames")
        self.chunk = chunk

    @abstractmethod
    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """uint8 RGB (P, H, W, 3) twice to float32 (P, 2, H, W), on the same device."""

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Plain JSON that determines the flow of given frames: for recipes and reports."""

    @torch.inference_mode()
    def forward(self, frames: Tensor) -> Tensor:
        """The flow of clips.

        Args:
            frames: uint8 RGB, shape (B, T + 1, H, W, 3).

        Returns:
            float32, shape (B, 2, T, H, W), on the device of the frames: at [b, :, t, y, x] the
            displacement in pixels, first to the right, then down, of what frame t shows at (x, y).

        Raises:
            ValueError: frames of another shape or dtype, or smaller than `min_side`.
        """
        self._check(frames)
        clips, count, height, width = frames.shape[:4]
        first = frames[:, :-1].reshape(-1, height, width, 3)
        second = frames[:, 1:].reshape(-1, height, width, 3)
        flow = torch.cat(
            [
                self.between(first[at : at + self.chunk], second[at : at + self.chunk])
                for at in range(0, len(first), self.chunk)
            ]
        )
        return flow.reshape(clips, count - 1, 2, height, width).transpose(1, 2)

    def _check(self, frames: Tensor) -> None:
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
            raise ValueError(
                f"flow {self.name} needs uint8 RGB frames (B, T + 1, H, W, 3), "
                f"got {frames.dtype} {tuple(frames.shape)}"
            )
        if frames.shape[1] < 2:
            raise ValueError(f"flow {self.name} needs two frames or more, got {frames.shape[1]}")
        height, width = frames.shape[2:4]
        if min(height, width) < self.min_side:
            raise ValueError(
                f"flow {self.name} needs frames of at least {self.min_side} pixels, "
                f"got {height}x{width}; ask for a larger short side or for another flow"
            )


@FLOWS.register("none")
class PreparedFlow(Flow):
    """No flow: for those who give prepared batches to `forward` of the backbone."""

    name = "none"

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Always a UsageError: there is nothing that computes flow."""
        others = ", ".join(name for name in FLOWS.names() if name != self.name)
        raise UsageError(
            "flow 'none' takes batches of flow that you prepared yourself, (B, 2, T, H, W) in "
            f"[-1, 1]; to have flow computed from frames, say one of: {others}"
        )

    def params(self) -> dict[str, Any]:
        """See `Flow.params`."""
        return {"flow": self.name}
