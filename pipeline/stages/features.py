"""`clip`, `slowfast`, `i3d`: one vector per clip of the grid from a frozen backbone.

The networks are those of `models.backbones`; here is only what makes a backbone a stage. Nothing
of torch is imported before `setup`, so that planning a run costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data.store.types import Row, Schema, StreamSpec
from data.video.types import FrameRequest, View, Window
from pipeline.stage import STAGES, FrameStage, Item
from pipeline.stages.common import (
    Configured,
    NetworkOptions,
    built,
    facts_of,
    grid_of,
    pixels_params,
)

if TYPE_CHECKING:
    from models.backbones import Backbone

__all__ = [
    "BackboneOptions",
    "BackboneStage",
    "ClipOptions",
    "ClipStage",
    "I3DStage",
    "SlowFastStage",
]


class BackboneOptions(NetworkOptions):
    """Section of a backbone stage in pipeline.yaml."""

    batch_size: int = Field(8, ge=1, description="Clips that go through the network together.")


class BackboneStage(Configured, FrameStage):
    """Frames of each clip to one un-normalised float16 vector, exactly N rows per video."""

    stream: ClassVar[str]
    """Name of the array that is written: per-clip features."""
    dims: ClassVar[Mapping[str, int]]
    """Length of the vector by preset: known here so that a plan needs no network."""
    Options: ClassVar[type[Any]] = BackboneOptions
    options: BackboneOptions
    _backbone: Backbone | None = None

    @property
    def schema(self) -> Schema:
        """One array, named as the stage."""
        return Schema({self.stream: StreamSpec((self._dim(),), "float16", "clip")})

    def params(self) -> Mapping[str, Any]:
        """Architecture, weights, and how pixels were made where that is not the exact way."""
        return {**self.options.params, **pixels_params(self.context)}

    @property
    def batch_size(self) -> int:
        """Clips per call of `encode`."""
        return self.options.batch_size

    def setup(self) -> None:
        """Build the network on the device."""
        backbone = _build(self.name, self.options, self.context.device)
        if backbone.dim != self._dim():
            raise ValueError(
                f"backbone {self.name} {self.options.preset} has {backbone.dim}-d features, "
                f"the stage declares {self._dim()}"
            )
        self._backbone = backbone

    def request(self, item: Item) -> FrameRequest:
        """The frames that the backbone wants of every clip of the grid."""
        facts = facts_of(item)
        backbone = built(self._backbone, self.name)
        times = backbone.clip_times(
            grid_of(item, self.context).starts_s,
            self.context.clip_len_s,
            native_fps=facts.fps,
            duration_s=facts.duration_s,
        )
        view = View(backbone.short_side, mode=self.context.decode_mode)
        return FrameRequest(self.name, times, view)

    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[NDArray[np.float32]]:
        """One vector (D,) per window."""
        del item
        return list(
            built(self._backbone, self.name).encode(np.stack([window.frames for window in windows]))
        )

    def finish(self, item: Item, results: Sequence[NDArray[np.float32]]) -> Row:
        """The row; its facts say which weights were really used."""
        grid = grid_of(item, self.context)
        if len(results) != grid.n:
            raise ValueError(
                f"{len(results)} features for the {grid.n} clips of video {item.key.id}"
            )
        with np.errstate(over="ignore"):
            features = np.stack(results).astype(np.float16)
        if not np.isfinite(features).all():
            raise ValueError(
                f"features of video {item.key.id} are not finite in float16; "
                "the weights do not fit the network"
            )
        facts = {"weights": built(self._backbone, self.name).weights.recipe()}
        return Row(item.key, grid, {self.stream: features}, facts=facts)

    def _dim(self) -> int:
        """Length of the vector; only unusual options make it necessary to build the network."""
        if not self.options.options:
            return self.dims[self.options.preset]
        return _built_dim(self.name, self.options.network_json)


class ClipOptions(BackboneOptions):
    """Section `clip` of pipeline.yaml."""

    batch_size: int = Field(64, ge=1, description="Frames that go through the network together.")


@STAGES.register("clip")
class ClipStage(BackboneStage):
    """Image features of CLIP for the frame at the centre of each clip, un-normalised."""

    name = "clip"
    stream = "clip"
    dims: ClassVar[Mapping[str, int]] = {"full": 512, "tiny": 128}
    Options = ClipOptions


@STAGES.register("slowfast")
class SlowFastStage(BackboneStage):
    """SlowFast R50 8x8 features of the 32 frames around each clip's centre."""

    name = "slowfast"
    stream = "slowfast"
    dims: ClassVar[Mapping[str, int]] = {"full": 2304, "tiny": 384}


@STAGES.register("i3d")
class I3DStage(BackboneStage):
    """I3D (RGB) features of the frames of each clip."""

    name = "i3d"
    stream = "i3d"
    dims: ClassVar[Mapping[str, int]] = {"full": 1024, "tiny": 128}


def _build(name: str, options: BackboneOptions, device: str) -> Backbone:
    from models.backbones import create

    arguments = {"seed": options.seed, **options.options}
    return create(name, options.checkpoint, preset=options.preset, device=device, **arguments)


@lru_cache
def _built_dim(name: str, options: str) -> int:
    return _build(name, BackboneOptions.model_validate_json(options), "cpu").dim
