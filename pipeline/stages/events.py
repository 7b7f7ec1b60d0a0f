"""`events`: pseudo-events of a video from the features of its clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from data.errors import InputError, UsageError
from data.store.types import Row, Schema, StreamSpec
from pipeline.events.parser import Method, combine, parse
from pipeline.events.scores import Edges, Taper
from pipeline.stage import STAGES, Inputs, Item, RowStage, StageContext
from pipeline.stages.common import Configured, WorkerOptions

__all__ = ["EventsOptions", "EventsStage"]


class EventsOptions(WorkerOptions):
    """Section `events` of pipeline.yaml. The parameters are those of `pipeline.events.parse`."""

    streams: dict[str, PositiveFloat] = Field(
        default_factory=lambda: {"clip": 1.0},
        min_length=1,
        description="Stages whose per-clip features are compared, with their weights.",
    )
    method: Method = Field(
        "rtp", description="`rtp` recursive, `oneshot` local maxima, `uniform` a baseline."
    )
    half_width_s: PositiveFloat = Field(
        4.0, description="Seconds that are compared on each side of a clip."
    )
    taper: Taper = Field("box", description="Weight by distance: `box` or `gaussian`.")
    edges: Edges = Field(
        "normalized", description="Ends of segments: `normalized`, `margin` or `zero`."
    )
    min_len_s: float = Field(4.0, ge=0, description="Segments shorter than this are not split.")
    delta_rel: float = Field(
        0.4,
        ge=0,
        le=1,
        description="How much of the video's largest rise of the score a split must reach.",
    )
    max_events: int | None = Field(None, ge=1, description="At most so many events per video.")
    max_depth: int | None = Field(None, ge=0, description="At most so many nested splits.")


@STAGES.register("events")
class EventsStage(Configured, RowStage):
    """Boundaries, spans that partition `[0, D]`, and boundary scores, in seconds."""

    name = "events"
    Options: ClassVar[type[Any]] = EventsOptions
    options: EventsOptions

    def __init__(self, context: StageContext, options: EventsOptions) -> None:
        super().__init__(context, options)
        self._arrays = {stage: _stream_of(stage) for stage in sorted(options.streams)}

    @property
    def upstream(self) -> tuple[str, ...]:
        """The stages of `streams`."""
        return tuple(self._arrays)

    @property
    def schema(self) -> Schema:
        """N clips, K boundaries, E = K + 1 events."""
        return Schema(
            {
                "scores": StreamSpec((), "float32", "clip"),
                "boundaries_s": StreamSpec((), "float64", "item"),
                "strength": StreamSpec((), "float64", "item"),
                "boundary_depth": StreamSpec((), "int32", "item"),
                "boundary_parent": StreamSpec((), "int32", "item"),
                "spans_s": StreamSpec((2,), "float64", "item"),
                "depth": StreamSpec((), "int32", "item"),
            }
        )

    def params(self) -> Mapping[str, Any]:
        """All options that `parse` sees."""
        return self.options.model_dump(mode="json", exclude=set(WorkerOptions.model_fields))

    def process(self, item: Item, inputs: Inputs) -> Row:
        """Parse the features of one video.

        Raises:
            InputError: `not-finite` features.
        """
        rows = {stage: inputs.row(stage) for stage in self._arrays}
        grid = next(iter(rows.values())).grid
        if grid is None:
            raise ValueError(f"the features of {item.key.id} come without a grid")
        features = self._features({stage: row[self._arrays[stage]] for stage, row in rows.items()})
        if not np.isfinite(features).all():
            raise InputError(
                "not-finite",
                f"the features of video {item.key.id} ({', '.join(rows)}) hold values that are "
                "not finite numbers; compute them again",
            )
        how = {name: value for name, value in self.params().items() if name != "streams"}
        events = parse(features, grid.clip_len_s, grid.duration_s, **how)
        arrays = {name: np.asarray(getattr(events, name)) for name in self.schema.arrays}
        arrays["scores"] = arrays["scores"].astype(np.float32)
        return Row(item.key, grid, arrays)

    def _features(self, streams: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """One matrix (N, D), in float64 so that boundaries do not depend on the machine."""
        weights = self.options.streams
        if len(streams) == 1:
            return next(iter(streams.values())).astype(np.float64)
        return combine([(array, weights[stage]) for stage, array in streams.items()])


def _stream_of(stage: str) -> str:
    """Name of the per-clip features that a stage writes."""
    stream: str | None = getattr(STAGES.get(stage), "stream", None)
    if stream is None:
        allowed = [name for name in STAGES if hasattr(STAGES.get(name), "stream")]
        raise UsageError(
            f"events.streams: stage '{stage}' writes no features per clip; "
            f"allowed: {', '.join(allowed)}"
        )
    return stream
