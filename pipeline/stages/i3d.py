"""`i3d`, `i3d_flow`: the two streams of I3D, of RGB frames and of their optical flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from data.errors import UsageError
from data.store.types import Row
from pipeline.stage import STAGES, Item, StageContext
from pipeline.stages.common import built, weights_params
from pipeline.stages.features import BackboneOptions, BackboneStage

__all__ = ["I3DFlowOptions", "I3DFlowStage", "I3DOptions", "I3DStage"]

_OF_MACHINE = frozenset({"chunk", "threads"})
"""Options of flows that change no result: they stay out of recipes."""

_FLOW: Literal["tvl1-torch"] = "tvl1-torch"


class I3DOptions(BackboneOptions):
    """Section `i3d` of pipeline.yaml."""

    # A wider choice than that of the other networks, which pydantic allows and mypy does not.
    preset: Literal["tiny", "full", "grid", "vslnet"] = Field(  # type: ignore[assignment]
        "tiny",
        description="`full`, `grid`: one window about each clip; `vslnet`: windows as VSLNet lays "
        "them, for clips of 0.5 s; `tiny`: narrow.",
    )


class I3DFlowOptions(I3DOptions):
    """Section `i3d_flow` of pipeline.yaml."""

    flow: Literal["tvl1", "tvl1-torch", "raft"] = Field(
        _FLOW,
        description="Optical flow: `tvl1` of OpenCV, on CPUs; `tvl1-torch`, the same on the "
        "device; `raft`, a network.",
    )
    flow_checkpoint: Path | None = Field(
        None, description="Weights of `raft`; null: random ones from `flow_options: {seed: …}`."
    )
    flow_options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the flow."
    )
    scaling: Literal["deepmind", "v-iashin"] = Field(
        "deepmind", description="How pixels of flow become the input of the network."
    )

    @property
    def params(self) -> dict[str, Any]:
        """What determines network and flow: plain JSON for the recipe."""
        flow: dict[str, Any] = {
            "flow": self.flow,
            "options": {k: v for k, v in self.flow_options.items() if k not in _OF_MACHINE},
            "scaling": self.scaling,
        }
        if self.flow == "raft":
            seed = self.flow_options.get("seed", 0)
            flow["weights"] = weights_params(self.flow_checkpoint, seed)
        elif self.flow_checkpoint is not None:
            raise UsageError(
                f"stage i3d_flow: flow '{self.flow}' is no network and takes no "
                f"`flow_checkpoint`, got '{self.flow_checkpoint}'; leave it out, or say flow: raft"
            )
        return super().params | {"flow": flow}

    @property
    def arguments(self) -> dict[str, Any]:
        """See `BackboneOptions.arguments`."""
        mine: dict[str, Any] = {
            "flow": self.flow,
            "scaling": self.scaling,
            "flow_checkpoint": self.flow_checkpoint,
        }
        if self.flow_options or self.flow != _FLOW:  # else those of the preset, which are for it
            mine["flow_options"] = self.flow_options
        return {**mine, **super().arguments}


class _I3DStage(BackboneStage):
    """What both streams have in common: windows that may give several rows."""

    dims: ClassVar[Mapping[str, int]] = {"full": 1024, "grid": 1024, "vslnet": 1024, "tiny": 128}
    options: I3DOptions

    def __init__(self, context: StageContext, options: I3DOptions) -> None:
        super().__init__(context, options)
        if options.preset == "vslnet" or options.options:
            self._check_windows()

    def _check_windows(self) -> None:
        """Clips of another length than the windows make are a mistake of the whole run.

        Imports torch, which a plan with usual options does without.
        """
        from models.backbones import BACKBONES
        from models.backbones.i3d import laid_windows

        kind: Any = BACKBONES.get(self.name)
        windows = laid_windows(self.name, kind.PRESETS[self.options.preset] | self.options.options)
        windows.check(self.context.clip_len_s)


@STAGES.register("i3d")
class I3DStage(_I3DStage):
    """I3D features of the RGB frames of each clip."""

    name = "i3d"
    stream = "i3d"
    Options = I3DOptions


@STAGES.register("i3d_flow")
class I3DFlowStage(_I3DStage):
    """I3D features of the optical flow of each clip."""

    name = "i3d_flow"
    stream = "i3d_flow"
    Options = I3DFlowOptions
    options: I3DFlowOptions

    def __init__(self, context: StageContext, options: I3DFlowOptions) -> None:
        super().__init__(context, options)
        if options.flow_options or options.flow != _FLOW:
            self._check_flow()

    def _check_flow(self) -> None:
        """Options that the flow does not have, and frames that are too small for it."""
        from models.backbones import BACKBONES
        from models.flow import FLOWS
        from models.options import check_options

        flow, kind = self.options.flow, FLOWS.get(self.options.flow)
        check_options(f"stage i3d_flow: flow {flow}", kind, self.options.flow_options)
        presets: Any = BACKBONES.get(self.name)
        network = presets.PRESETS[self.options.preset] | self.options.options
        seen = [network.get("short_side", 256)]
        seen += [network.get("size", 224)] if network.get("calibrated") else []
        smallest = min(seen)
        if smallest < kind.min_side:
            raise UsageError(
                f"stage i3d_flow: flow '{flow}' needs frames of at least {kind.min_side} pixels, "
                f"preset '{self.options.preset}' has {smallest}; say preset: grid, or flow: {_FLOW}"
            )

    def check_machine(self) -> None:
        """See `Stage.check_machine`; also the library of the flow."""
        super().check_machine()
        if self.options.flow == "tvl1":
            from models.flow import create_flow

            create_flow(self.options.flow)

    def finish(self, item: Item, results: Sequence[Any]) -> Row:
        """The row; its facts say which flow was really computed."""
        row = super().finish(item, results)
        backbone: Any = built(self._backbone, self.name)
        return replace(row, facts={**row.facts, "flow": backbone.flow.params()})
