"""TEA: the narrative of a video joins its clips before they meet the query.

Cai et al., "MLLM as video narrator: Mitigating modality imbalance in video moment retrieval",
Pattern Recognition 166 (2025), https://doi.org/10.1016/j.patcog.2025.111670, Eq. 4–5 and Table 9;
there is no public code. The narrative is a side stream with one embedded paragraph per clip. After
the input projections a clip `v` with narrative `c` becomes `MLP([v ∥ W c])`; a clip that the
narrative does not cover stays as it was.

On EMB the paper's clips and narratives already hold their places when they meet (§3.2): `place:
added` says so, and `tea_paragraph` adds the branch of paragraph and query. TEA as its text has it:

    create_model(
        "emb", preset="paper", side_dims={"narrative": 300}, video_dim=1024, text_dim=300,
        plugins={"tea": {"place": "added"}, "tea_paragraph": {"similarity": "scaled_dot"}},
    )

The paper leaves open the depth of the MLP (here Linear, ReLU, dropout 0.2, Linear) and whether W
is the projection of the query ("the same semantic space": here it is, or `separate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.build import PLUGINS, Blueprint, Dims, Options, Plugin
from models.retrieval.flow import Tokens
from models.retrieval.parts.attention import Attention
from models.retrieval.parts.projection import MLP, FeatureProjection
from models.retrieval.stages import Encoders, Merge
from models.retrieval.types import Batch, Side

__all__ = [
    "NarrativeMerge",
    "TEAOptions",
    "check_heads",
    "narrative_of",
    "own_projection",
]


class TEAOptions(Options):
    """Options of the narrative merge.

    Args:
        merge: `concat` is the paper's; `add` and `attention` are its Table 5; `none` leaves the
            model as it is without the plug-in.
        projection: `shared` projects the narrative as the query; `separate` gives it its own.
        place: `apart` merges what clips and narrative hold, and leaves the places of the clips to
            the fuser; `added` adds them to both before.
        side: name of the side stream.
        dropout: inside the merge.
        heads: of `attention`.
    """

    merge: Literal["concat", "add", "attention", "none"] = "concat"
    projection: Literal["shared", "separate"] = "shared"
    place: Literal["apart", "added"] = "apart"
    side: str = "narrative"
    dropout: float = Field(0.2, ge=0, lt=1)
    heads: int = Field(8, gt=0)


class Concatenation(nn.Module):
    """`MLP([v ∥ c])` with two layers.

    Args:
        width: features of a clip.
        dropout: between the layers.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, video: Tensor, narrative: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d) from clips, narrative and places (B, L, d) and coverage (B, L) bool."""
        return self.layers(torch.cat([video, narrative], dim=-1))  # type: ignore[no-any-return]


class Addition(nn.Module):
    """`v + c`."""

    def forward(self, video: Tensor, narrative: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        """Shapes as `Concatenation`."""
        return video + narrative


class CrossAttention(nn.Module):
    """Clips attend to the covered part of the narrative (attention unit of TEA, Eq. 6).

    Args:
        width: features of a clip.
        heads: attention heads.
        dropout: everywhere.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.mlp = MLP(width, width, width, 2)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, video: Tensor, narrative: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        """Shapes as `Concatenation`; the places keep the two streams aligned in time."""
        found = self.attention(video + place, narrative + place, narrative, mask)
        x = self.norm1(video + self.dropout(found))
        return self.norm2(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]


class NarrativeMerge(Merge):
    """Brings the narrative into the clips it covers.

    Args:
        side: name of the side stream.
        unit: how a clip and its narrative become one.
        projection: of the narrative; None for the projection of the query.
        added: whether places are added before the merge; afterwards clips then have none.
    """

    def __init__(
        self, side: str, unit: nn.Module, projection: nn.Module | None, *, added: bool = False
    ) -> None:
        super().__init__()
        self.side, self.added = side, added
        self.requires = frozenset({"video", "text", f"side.{side}"})
        self.unit = unit
        self.projection = projection

    def forward(self, tokens: Tokens, batch: Batch, encoders: Encoders) -> Tokens:
        """Tokens whose covered clips hold the narrative.

        Raises:
            UsageError: the batch has no such side stream.
        """
        stream = narrative_of(batch, self.side)
        project = encoders.encode_text if self.projection is None else self.projection
        video, narrative, place = tokens.video, project(stream.x), tokens.video_pos
        if self.added:
            video, narrative, place = video + place, narrative + place, torch.zeros_like(place)
        merged = self.unit(video, narrative, place, stream.mask)
        video = torch.where(stream.mask.unsqueeze(-1), merged, video)
        return replace(tokens, video=video, video_pos=place)


def narrative_of(batch: Batch, side: str) -> Side:
    """The side stream of a batch.

    Raises:
        UsageError: the batch has no such side stream.
    """
    if side not in batch.side:
        raise UsageError(
            f"the narrative merge reads the side stream '{side}', and this batch carries "
            f"{', '.join(sorted(batch.side)) or 'none'}; {_REMEDY}"
        )
    return batch.side[side]


_REMEDY = (
    "load narratives with the trainer's `data.narratives=true` (`pipeline run --stage narratives` "
    "writes them), or leave the plug-in out of `model.plugins`"
)


_UNITS: dict[str, Callable[[int, TEAOptions], nn.Module]] = {
    "concat": lambda width, options: Concatenation(width, options.dropout),
    "add": lambda width, options: Addition(),
    "attention": lambda width, options: CrossAttention(width, options.heads, options.dropout),
}


def own_projection(
    plugin: str, dims: Dims, width: int, side: str, projection: Literal["shared", "separate"]
) -> nn.Module | None:
    """The narrative's own projection; None if it has the query's.

    Args:
        plugin: whose option it is, for the error message.
        dims: widths of what comes in.
        width: features that go out.
        side: name of the side stream.
        projection: the option.

    Raises:
        UsageError: the data have no such stream, or it is not as wide as the query.
    """
    if side not in dims.sides:
        raise UsageError(
            f"plug-in '{plugin}' reads the side stream '{side}', and the data give "
            f"{', '.join(sorted(dims.sides)) or 'none'}; {_REMEDY}"
        )
    found = dims.sides[side]
    if projection == "shared" and found != dims.text:
        raise UsageError(
            f"plug-in '{plugin}' cannot project the '{side}' stream ({found} features) as the "
            f"query ({dims.text} features); embed both with one text encoder or set "
            "projection: separate"
        )
    return FeatureProjection(found, width) if projection == "separate" else None


def check_heads(plugin: str, width: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width."""
    if width % heads:
        raise UsageError(
            f"plug-in '{plugin}' cannot divide {width} features among {heads} heads; "
            f"set heads to a divisor of {width}"
        )


def apply(blueprint: Blueprint, dims: Dims, options: TEAOptions) -> Blueprint:
    """The model with the merge as its last one; the same model if `merge` is `none`."""
    if options.merge == "none":
        return blueprint
    width = blueprint.width
    own = own_projection("tea", dims, width, options.side, options.projection)
    if options.merge == "attention":
        check_heads("tea", width, options.heads)
    unit = _UNITS[options.merge](width, options)
    merge = NarrativeMerge(options.side, unit, own, added=options.place == "added")
    parts = replace(blueprint.parts, merges=(*blueprint.parts.merges, merge))
    return replace(blueprint, parts=parts)


PLUGINS.register("tea")(
    Plugin(
        stage="merge",
        requires=frozenset({"video", "text", "side.narrative"}),
        options=TEAOptions,
        apply=apply,
        off={"merge": "none"},
    )
)
