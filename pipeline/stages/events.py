"""`events`: pseudo-events of a video from the features of its clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, PositiveFloat, model_validator

from data.errors import InputError
from data.store.types import Row, Schema, StreamSpec
from pipeline.events.parser import Method, parse
from pipeline.events.scorers import Pool, Similarity
from pipeline.events.scores import Edges, Taper
from pipeline.events.streams import compared, stream_of
from pipeline.stage import STAGES, Inputs, Item, RowStage, StageContext
from pipeline.stages.common import Configured, WorkerOptions

__all__ = ["EventsOptions", "EventsStage"]

_TRIAL = np.eye(2)
"""A video of two clips, on which options are tried."""


class EventsOptions(WorkerOptions):
    """Section `events` of pipeline.yaml. The parameters are those of `pipeline.events.parse`."""

    group_size: int = Field(32, ge=1, description="Videos that travel to a worker together.")
    streams: dict[str, PositiveFloat] = Field(
        default_factory=lambda: {"clip": 1.0},
        min_length=1,
        description="Stages or imports whose per-clip features are compared, with their weights.",
    )
    method: Method = Field(
        "rtp",
        description="`rtp` recursive, `kts` least squares, `oneshot` local maxima, `eatr-compat` "
        "as the public code of EaTR and LLMEPET, `uniform` a baseline.",
    )
    half_width_s: PositiveFloat = Field(
        4.0, description="Seconds that are compared on each side of a clip."
    )
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = Field(
        None, description="Several half widths in seconds, instead of `half_width_s`."
    )
    pool: Pool = Field(
        "max", description="How the scores of several scales become one: `max` or `mean`."
    )
    similarity: Similarity = Field(
        "cosine", description="Of two clips: `cosine`, `l2` or `sqeuclidean` (distances, negated)."
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
    settle: PositiveFloat | None = Field(
        None,
        description="`rtp`: set the cuts right together, each worth at least this price.",
    )
    max_events: int | None = Field(None, ge=1, description="At most so many events per video.")
    max_depth: int | None = Field(None, ge=0, description="At most so many nested splits.")
    penalty: float = Field(1.0, gt=0, description="What `kts` pays for a boundary, 1 in the paper.")
    padded_len: int | None = Field(
        None, ge=1, description="`eatr-compat`: clips of the padded batch that a video was in."
    )

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        """Options that exclude each other are told before any video is touched."""
        parse(_TRIAL, 1.0, float(len(_TRIAL)), **self.parameters)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The keyword arguments of `parse`."""
        return self.model_dump(exclude={*WorkerOptions.model_fields, "group_size", "streams"})


@STAGES.register("events")
class EventsStage(Configured, RowStage):
    """Boundaries, spans that partition `[0, D]`, and boundary scores, in seconds."""

    name = "events"
    Options: ClassVar[type[Any]] = EventsOptions
    options: EventsOptions

    def __init__(self, context: StageContext, options: EventsOptions) -> None:
        super().__init__(context, options)
        for stage in options.streams:
            stream_of(stage)  # told before any video is touched

    @property
    def upstream(self) -> tuple[str, ...]:
        """The stages of `streams`."""
        return tuple(sorted(self.options.streams))

    @property
    def group_size(self) -> int:
        """A video takes no longer than a call of a worker of Ray, so many travel together."""
        return self.options.group_size

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
        """All options that `parse` sees, and the streams."""
        return self.options.model_dump(
            mode="json", exclude={*WorkerOptions.model_fields, "group_size"}
        )

    def process(self, item: Item, inputs: Inputs) -> Row:
        """Parse the features of one video.

        Raises:
            InputError: `not-finite` features; `clip-positions` among them; `not-features`, an
                import of something else; `not-parsed`, a video too long for the options.
        """
        rows = {stage: inputs.row(stage) for stage in self.upstream}
        features, grid = compared(rows, self.options.streams)
        try:
            events = parse(features, grid.clip_len_s, grid.duration_s, **self.options.parameters)
        except ValueError as error:  # options that do not fit this video's length
            raise InputError("not-parsed", f"video {item.key.id}: {error}") from error
        arrays = {name: np.asarray(getattr(events, name)) for name in self.schema.arrays}
        arrays["scores"] = arrays["scores"].astype(np.float32)
        return Row(item.key, grid, arrays)
