"""`panns`: the sound of each clip by PANNs Cnn14, and which clips have sound.

The public extractor (lighthouse) cuts whole clips from the start of the sound and drops the rest,
so its features may be shorter than those of the pictures. Here every clip of the grid has a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data.store.types import Row, Schema, StreamSpec
from data.video.types import SoundRequest, SoundWindow
from pipeline.stage import STAGES, Item, SoundStage
from pipeline.stages.common import Configured, NetworkOptions, built, explaining_preset, grid_of

if TYPE_CHECKING:
    from torch import Tensor

    from models.backbones.machine import Machine
    from models.backbones.panns import Panns

__all__ = ["PannsOptions", "PannsStage"]


class PannsOptions(NetworkOptions):
    """Section `panns` of pipeline.yaml."""

    batch_size: int = Field(32, ge=1, description="Clips that go through the network together.")
    min_heard: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Share of a clip that must have sound for a feature; below it the row is zeros "
        "and its mask 0. The last clip of a grid has at least half of its length in the video.",
    )


@STAGES.register("panns")
class PannsStage(Configured, SoundStage):
    """Sound of each clip to one un-normalised float16 vector and a mask, N rows per video.

    A clip without sound has zeros and mask 0. A video without sound has them for all of its clips,
    and is no error.
    """

    name = "panns"
    stream: ClassVar[str] = "panns"
    dims: ClassVar[Mapping[str, int]] = {"full": 2048, "tiny": 128}
    Options = PannsOptions
    options: PannsOptions
    _backbone: Panns | None = None
    _machine: Machine | None = None

    @property
    def schema(self) -> Schema:
        """Features and mask per clip."""
        return Schema(
            {
                "panns": StreamSpec((self._dim(),), "float16", "clip"),
                "panns_mask": StreamSpec((), "uint8", "clip"),
            }
        )

    def params(self) -> Mapping[str, Any]:
        """Architecture, weights, and what counts as sound."""
        return {**self.options.params, "min_heard": self.options.min_heard}

    @property
    def by_content(self) -> bool:
        """Sound and nothing else."""
        return True

    @property
    def batch_size(self) -> int:
        """Clips per call of `encode`."""
        return self.options.batch_size

    def setup(self) -> None:
        """Build the network and bring it to the device."""
        from models.backbones.machine import Machine

        backbone = _build(self.options)
        if backbone.dim != self._dim():
            raise ValueError(
                f"backbone panns {self.options.preset} has {backbone.dim}-d features, "
                f"the stage declares {self._dim()}"
            )
        self._machine = Machine(backbone, device=self.context.device, batch_size=self.batch_size)
        # Only the copy that computes is kept: the weights are there once.
        ready: Any = self._machine.backbone
        self._backbone = ready

    def close(self) -> None:
        """Give the network's memory back."""
        self._machine = self._backbone = None

    def request(self, item: Item) -> SoundRequest:
        """The sound of every clip of the grid."""
        backbone = built(self._backbone, self.name)
        grid = grid_of(item, self.context)
        starts_s, length_s = backbone.windows(grid.starts_s, self.context.clip_len_s)
        return SoundRequest(self.name, starts_s, length_s, backbone.rate_hz)

    def encode(self, item: Item, windows: Sequence[SoundWindow]) -> Sequence[Tensor | None]:
        """One vector (D,) per window with sound, None for the others."""
        del item
        heard = [window.heard >= self.options.min_heard for window in windows]
        samples = [
            window.samples for window, is_heard in zip(windows, heard, strict=True) if is_heard
        ]
        if not samples:
            return [None] * len(windows)
        features = iter(built(self._machine, self.name).encode(samples))
        return [next(features) if is_heard else None for is_heard in heard]

    def finish(self, item: Item, results: Sequence[Tensor | NDArray[np.float32] | None]) -> Row:
        """The row; its facts say which weights were used and how many clips have sound."""
        from models.backbones.machine import on_host

        grid = grid_of(item, self.context)
        if len(results) not in (0, grid.n):
            raise ValueError(
                f"{len(results)} features for the {grid.n} clips of video {item.key.id}"
            )
        features = np.zeros((grid.n, self._dim()), np.float16)
        mask = np.zeros(grid.n, np.uint8)
        heard = [index for index, result in enumerate(results) if result is not None]
        if heard:
            with np.errstate(over="ignore"):
                features[heard] = on_host([results[index] for index in heard])
            mask[heard] = 1
        if not np.isfinite(features).all():
            raise ValueError(
                f"features of video {item.key.id} are not finite in float16; "
                "the weights do not fit the network"
            )
        weights = built(self._backbone, self.name).weights.recipe()
        facts = {"weights": weights, "clips_with_sound": int(mask.sum())}
        return Row(item.key, grid, {"panns": features, "panns_mask": mask}, facts=facts)

    def _dim(self) -> int:
        """Length of the vector; only unusual options make it necessary to build the network."""
        if not self.options.options:
            return self.dims[self.options.preset]
        return _built_dim(self.options.network_json)


def _build(options: PannsOptions) -> Panns:
    from models.backbones import create

    arguments = {"seed": options.seed, **options.options}
    with explaining_preset(options):
        backbone: Any = create("panns", options.checkpoint, preset=options.preset, **arguments)
    made: Panns = backbone
    return made


@lru_cache
def _built_dim(options: str) -> int:
    return _build(PannsOptions.model_validate_json(options)).dim
