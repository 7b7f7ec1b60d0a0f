"""`clip`, `slowfast`, `i3d`: one vector per clip of the grid from a frozen backbone.

The networks are those of `models.backbones`; here is only what makes a backbone a stage. Nothing
of torch is imported before `setup`, so that planning a run costs nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data.errors import UsageError
from data.store.types import Row, Schema, StreamSpec
from data.video.types import FrameRequest, View, Window
from pipeline.stage import STAGES, FrameStage, Item
from pipeline.stages.clip_dims import clip_dims
from pipeline.stages.common import (
    Configured,
    NetworkOptions,
    built,
    explaining_preset,
    facts_of,
    grid_of,
    pixels_params,
)

if TYPE_CHECKING:
    from torch import Tensor

    from models.backbones import Backbone
    from models.backbones.machine import Machine

__all__ = [
    "BackboneOptions",
    "BackboneStage",
    "ClipOptions",
    "ClipStage",
    "SlowFastStage",
]


class BackboneOptions(NetworkOptions):
    """Section of a backbone stage in pipeline.yaml."""

    batch_size: int = Field(8, ge=1, description="Clips that go through the network together.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What the network computes in; bfloat16 is faster and gives other features.",
    )
    compile: bool = Field(
        False,
        description="Compile the network (torch.compile) when a worker starts: about a minute, "
        "needs a C++ compiler or Triton, changes features by rounding only.",
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the backbone, besides checkpoint, preset and device."""
        return {"seed": self.seed, **self.options}

    @property
    def precision_params(self) -> dict[str, str]:
        """What a recipe says about precision; nothing for the exact one."""
        return {} if self.precision == "float32" else {"precision": self.precision}


class BackboneStage(Configured, FrameStage):
    """Frames of each clip to one un-normalised float16 vector, exactly N rows per video."""

    stream: ClassVar[str]
    """Name of the array that is written: per-clip features."""
    dims: ClassVar[Mapping[str, int]]
    """Length of the vector by preset: known here so that a plan needs no network."""
    Options: ClassVar[type[Any]] = BackboneOptions
    options: BackboneOptions
    _backbone: Backbone | None = None
    _machine: Machine | None = None

    @property
    def schema(self) -> Schema:
        """One array, named as the stage."""
        return Schema({self.stream: StreamSpec((self._dim(),), "float16", "clip")})

    def params(self) -> Mapping[str, Any]:
        """Architecture, weights, and precision and pixels where they are not the exact ones."""
        options = self.options
        return {**options.params, **options.precision_params, **pixels_params(self.context)}

    @property
    def by_content(self) -> bool:
        """Frames and nothing else."""
        return True

    @property
    def batch_size(self) -> int:
        """Clips per call of `encode`."""
        return self.options.batch_size

    def check_machine(self) -> None:
        """See `Stage.check_machine`."""
        device = self.context.device
        if self.options.compile and device == "cpu" and (which := _missing_compiler()):
            raise UsageError(
                f"`compile: true` needs a C++ compiler and there is no '{which}' here; install it, "
                "name another in CXX, or set `compile: false`, which gives the same features"
            )
        super().check_machine()

    def setup(self) -> None:
        """Build the network and bring it to the device."""
        from models.backbones.machine import Machine

        backbone = _build(self.name, self.options)
        if backbone.dim != self._dim():
            raise ValueError(
                f"backbone {self.name} {self.options.preset} has {backbone.dim}-d features, "
                f"the stage declares {self._dim()}"
            )
        machine = Machine(
            backbone,
            device=self.context.device,
            batch_size=self.batch_size,
            precision=self.options.precision,
            compile=self.options.compile,
        )
        if self.options.compile:
            machine.warm(self._window_shape(backbone))
        # Only the copy that computes is kept: the weights are there once.
        self._machine, self._backbone = machine, machine.backbone

    def close(self) -> None:
        """Give the network's memory back."""
        self._machine = self._backbone = None

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
        view = View(backbone.short_side, crop=backbone.crop, mode=self.context.decode_mode)
        return FrameRequest(self.name, times, view)

    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[Tensor]:
        """One vector (D,), or (rows, D), per window; on a GPU it may still be in the making."""
        del item
        frames = [window.frames for window in windows]
        return built(self._machine, self.name).encode(frames).unbind()

    def finish(self, item: Item, results: Sequence[Tensor | NDArray[np.float32]]) -> Row:
        """The row; its facts say which weights were really used."""
        from models.backbones.machine import on_host

        grid = grid_of(item, self.context)
        rows_each = int(results[0].shape[0]) if results and results[0].ndim > 1 else 1
        if len(results) != -(-grid.n // rows_each):
            raise ValueError(
                f"{len(results)} features for the {grid.n} clips of video {item.key.id}"
            )
        vectors = on_host(results)
        with np.errstate(over="ignore"):
            features = vectors.reshape(-1, vectors.shape[-1])[: grid.n].astype(np.float16)
        if not np.isfinite(features).all():
            raise ValueError(
                f"features of video {item.key.id} are not finite in float16; "
                "the weights do not fit the network"
            )
        facts = {"weights": built(self._backbone, self.name).weights.recipe()}
        return Row(item.key, grid, {self.stream: features}, facts=facts)

    def _window_shape(self, backbone: Backbone) -> tuple[int, ...]:
        clip_len_s = self.context.clip_len_s
        times = backbone.clip_times(np.zeros(1), clip_len_s, native_fps=30.0, duration_s=clip_len_s)
        return times.shape[1], backbone.short_side, backbone.short_side, 3

    def _dim(self) -> int:
        """Length of the vector; only unusual options make it necessary to build the network."""
        if not self.options.options:
            return self.dims[self.options.preset]
        return _built_dim(self.name, type(self.options), self.options.network_json)


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

    def _dim(self) -> int:
        """Told by the model's name, or by the shapes in the checkpoint; no network is built."""
        options = self.options
        if options.preset == "tiny" or (options.checkpoint is None and not options.options):
            return super()._dim()
        return clip_dims(options)[1]


@STAGES.register("slowfast")
class SlowFastStage(BackboneStage):
    """SlowFast R50 8x8 features of the 32 frames around each clip's centre."""

    name = "slowfast"
    stream = "slowfast"
    dims: ClassVar[Mapping[str, int]] = {"full": 2304, "tiny": 384}


def _missing_compiler() -> str:
    """The compiler that torch would call and that is not here; "" if it is."""
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return "" if shutil.which(wanted) else wanted


def _build(name: str, options: BackboneOptions) -> Backbone:
    from models.backbones import create

    with explaining_preset(options):
        return create(name, options.checkpoint, preset=options.preset, **options.arguments)


@lru_cache
def _built_dim(name: str, kind: type[BackboneOptions], options: str) -> int:
    return _build(name, kind.model_validate_json(options)).dim
