"""LLMEPET's position regulation: clips of one pseudo-event get similar position codes.

Jiang et al., ACM MM 2024, https://arxiv.org/abs/2407.15051, Eq. 10:
`L_pos = Σ_e exp((1/N) 1ᵀ |P_e − p_e 1ᵀ| 1)`, P_e the codes of an event's frames, p_e that of its
centre frame, weight 0.001. The public code (fletcherjiang/LLMEPET, commit e33af23) applies it to
fixed sines, which nothing can train, in a function that is never added to the loss. Here the codes
are learned, and fixed sines are refused.

What the equation leaves open:

places: what the codes are. `learned`, a table with a row for every clip index; `sine_mlp`, a
    trained matrix over the sines, for videos of any length. Both start as sines.
position_reduction: `mean` over clips and features, as the public code. `sum` over features and mean
    over clips, the equation as printed, whose exponent reaches 27 for an event of a whole video.
The constant 1 that an event of equal codes costs has no gradient and is left out (expm1), so that
the value in the log is not the number of events. An event of one clip or none costs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.build import PLUGINS, Blueprint, Dims, Options, Plugin
from models.retrieval.flow import Outcome, Tokens
from models.retrieval.parts.projection import clip_position
from models.retrieval.plugins.event_regulation import events_of
from models.retrieval.stages import Encoders, LossTerm, Merge
from models.retrieval.types import Batch

__all__ = ["LearnedPlaces", "PositionOptions", "PositionTerm", "SinePlaces", "apply", "members"]


class PositionOptions(Options):
    """Options of the position regulation.

    Args:
        places: see the module; `sine` leaves the base's codes and needs weight 0.
        max_clips: rows of a learned table.
        position_coef: weight of the loss.
        position_reduction: see the module.
        max_exponent: the exponent is held below it; what is above has no gradient.
    """

    places: Literal["learned", "sine_mlp", "sine"] = "learned"
    max_clips: int = Field(75, ge=1)
    position_coef: float = Field(0.001, ge=0)
    position_reduction: Literal["mean", "sum"] = "mean"
    max_exponent: float = Field(10.0, gt=0, le=80)

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if self.places == "sine" and self.position_coef > 0:
            raise ValueError(
                f"position_coef {self.position_coef} with places: sine has nothing to train, "
                "sines are fixed; set places to learned or sine_mlp, or position_coef to 0"
            )
        return self


class LearnedPlaces(Merge):
    """Position codes of clips from a table; the row of a clip is its index.

    Args:
        clips: rows; the last is at the place of the last clip of a video that long.
        width: features, even.
    """

    provides = frozenset({"places"})

    def __init__(self, clips: int, width: int) -> None:
        super().__init__()
        sines = clip_position(torch.ones(1, clips, dtype=torch.bool), width)
        self.table = nn.Parameter(sines[0])

    def forward(self, tokens: Tokens, batch: Batch, encoders: Encoders) -> Tokens:
        """Tokens with codes of the table, which are also the extra `places` (B, L, d).

        Raises:
            UsageError: a video of more clips than the table has rows.
        """
        count, clips, rows = (*tokens.video_mask.shape, len(self.table))
        if clips > rows:
            raise UsageError(
                f"a video has {clips} clips and the table of places {rows}; set max_clips to at "
                "least as many, or places to sine_mlp"
            )
        return _placed(tokens, self.table[:clips].expand(count, -1, -1))


class SinePlaces(Merge):
    """Position codes that a trained matrix makes of the base's.

    Args:
        width: features.
    """

    provides = frozenset({"places"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tokens, batch: Batch, encoders: Encoders) -> Tokens:
        """Tokens with the codes made of theirs, which are also the extra `places` (B, L, d)."""
        return _placed(tokens, self.linear(tokens.video_pos))


def _placed(tokens: Tokens, places: Tensor) -> Tokens:
    # apart from `video_pos`, which a later merge may move into the clips
    return replace(tokens, video_pos=places, extras={**tokens.extras, "places": places})


class PositionTerm(LossTerm):
    """Distance of the position codes of an event's clips from that of its centre.

    Args:
        options: of the plug-in.
    """

    name = "position"
    requires = frozenset({"places", "events"})

    def __init__(self, options: PositionOptions) -> None:
        super().__init__(options.position_coef)
        self.options = options

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar: sum over the events of a sample, mean over samples."""
        tokens = outcome.trace.tokens
        events, mask = events_of(outcome.batch, "position regulation")
        inside = members(events, mask, tokens.video_mask)
        places = tokens.extras["places"].float()
        exponent = _spread(places, inside, self.options.position_reduction)
        return exponent.clamp(max=self.options.max_exponent).expm1().sum(-1).mean()


def members(events: Tensor, mask: Tensor, clips: Tensor) -> Tensor:
    """Which clips lie in which event: those whose middle does.

    Args:
        events: (B, E, 2) as (start, end) of each sample's own grid.
        mask: (B, E) bool.
        clips: (B, L) bool, clips that exist.

    Returns:
        (B, E, L) bool.
    """
    place = (torch.arange(clips.shape[1], device=clips.device) + 0.5) / clips.sum(1, keepdim=True)
    place = place.unsqueeze(1)
    inside = (place >= events[..., :1]) & (place < events[..., 1:])
    return inside & mask.unsqueeze(-1) & clips.unsqueeze(1)


def _spread(places: Tensor, inside: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """(B, E): mean over an event's clips of the distance of their codes from their middle one's.

    Args:
        places: (B, L, d).
        inside: (B, E, L) bool.
        reduction: over the features.
    """
    rank = inside.cumsum(-1)
    count = rank[..., -1:]
    centre = (inside & (rank == (count + 1) // 2)).int().argmax(-1)
    index = centre.unsqueeze(-1).expand(*centre.shape, places.shape[-1])
    distance = torch.cdist(places.gather(1, index), places, p=1.0)
    if reduction == "mean":
        distance = distance / places.shape[-1]
    return torch.where(inside, distance, 0).sum(-1) / count.squeeze(-1).clamp(min=1)


def apply(blueprint: Blueprint, dims: Dims, options: PositionOptions) -> Blueprint:
    """The model with learned places and the loss over them; unchanged with `places: sine`."""
    if options.places == "sine":
        return blueprint
    width, parts = blueprint.width, blueprint.parts
    learned = options.places == "learned"
    merge = LearnedPlaces(options.max_clips, width) if learned else SinePlaces(width)
    # before merges that read the places, whichever plug-in is named first
    parts = replace(parts, merges=(merge, *parts.merges))
    return replace(blueprint, parts=replace(parts, terms=(*parts.terms, PositionTerm(options))))


PLUGINS.register("position_regulation")(
    Plugin(
        stage="merge",
        requires=frozenset({"video", "events"}),
        options=PositionOptions,
        apply=apply,
        off={"places": "sine", "position_coef": 0.0},
        conflicts={"llmepet": "it is built with this one; set its own options (position_*, …)"},
    )
)
