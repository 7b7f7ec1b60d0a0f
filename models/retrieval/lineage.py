"""What the bases that descend from Moment-DETR have in common: options, parts, public options.

Nine public repositories are forks of one (specs/retrieval_models.md §5.1); a base says here once
what it shares with the others, and its own file holds what is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from models.retrieval.build import Blueprint, Dims, Options
from models.retrieval.criterion import Criterion, LabelTerm, SpanGIoUTerm, SpanL1Term
from models.retrieval.decode import Decoding
from models.retrieval.official import Weights, projected_width, supported
from models.retrieval.parts.encoders import ProjectionEncoders
from models.retrieval.parts.matcher import Matcher
from models.retrieval.parts.projection import LearnedTextPosition
from models.retrieval.stages import LossTerm, Parts

__all__ = [
    "MOMENT_WEIGHTS",
    "PUBLIC_OPTIONS",
    "EncoderOptions",
    "LineageOptions",
    "blueprint_of",
    "encoders_of",
    "highlights_alone",
    "matcher_of",
    "moment_terms",
    "public_options",
    "unused_text_position",
]


class EncoderOptions(Options):
    """Options of the projections and of the encoder over the memory.

    Args:
        hidden: features between the parts, a multiple of 4 and of `heads`.
        heads: attention heads.
        feedforward: features inside the feed-forwards.
        encoder_layers: layers of the encoder over the memory.
        dropout: in attention and feed-forwards.
        input_dropout: in the projections of the features.
        projection_layers: layers of those projections.
        text_position: learned places for words, or none; LMR has none.
        max_words: size of that table.
    """

    hidden: int = Field(256, gt=0, multiple_of=4)
    heads: int = Field(8, gt=0)
    feedforward: int = Field(1024, gt=0)
    encoder_layers: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    input_dropout: float = Field(0.5, ge=0, lt=1)
    projection_layers: int = Field(2, ge=1)
    text_position: Literal["none", "learned"] = "none"
    max_words: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} must be a multiple of heads {self.heads}")
        return self


class LineageOptions(EncoderOptions):
    """Options that every base with a decoder has.

    Args:
        decoder_layers: decoder layers.
        queries: moments that are predicted.
        span_weight: of the L1 loss.
        giou_weight: of the gIoU loss.
        label_weight: of the foreground loss.
        saliency_weight: of the saliency losses.
        background_weight: of a query without a moment in the foreground loss.
        margin: of the saliency hinge.
        aux_loss: whether earlier decoder layers are trained too.
        cost_span: of the L1 distance in the matching.
        cost_giou: of the gIoU in the matching.
        cost_label: of the foreground probability in the matching.
        decoding: `grid` reads spans in the unit in which they are trained; `released` in units of
            the duration, rounded to whole clips (`Decoding.released`).
    """

    decoder_layers: int = Field(2, ge=1)
    queries: int = Field(10, ge=1)
    span_weight: float = Field(10.0, ge=0)
    giou_weight: float = Field(1.0, ge=0)
    label_weight: float = Field(4.0, ge=0)
    saliency_weight: float = Field(1.0, ge=0)
    background_weight: float = Field(0.1, ge=0)
    margin: float = Field(0.2, ge=0)
    aux_loss: bool = True
    cost_span: float = Field(10.0, ge=0)
    cost_giou: float = Field(1.0, ge=0)
    cost_label: float = Field(4.0, ge=0)
    decoding: Literal["grid", "released"] = "grid"


def encoders_of(
    dims: Dims, o: EncoderOptions, *, token_types: bool = False, video_depth: int | None = None
) -> ProjectionEncoders:
    """The projections of video and text, as `ProjectionEncoders` describes them."""
    words = (
        LearnedTextPosition(o.max_words, o.hidden, o.input_dropout)
        if o.text_position == "learned"
        else None
    )
    return ProjectionEncoders(
        dims.video,
        dims.text,
        o.hidden,
        depth=o.projection_layers,
        video_depth=video_depth,
        dropout=o.input_dropout,
        text_position=words,
        token_types=token_types,
    )


def matcher_of(o: LineageOptions) -> Matcher:
    """The matcher with the costs of the options."""
    return Matcher(span=o.cost_span, giou=o.cost_giou, label=o.cost_label)


MOMENT_WEIGHTS = ("span_weight", "giou_weight", "label_weight")
"""Options that weight `moment_terms`: 0 for a public checkpoint trained on highlights alone."""


def moment_terms(o: LineageOptions) -> tuple[LossTerm, ...]:
    """L1, gIoU and the cross entropy of foreground, of all decoder layers."""
    return (
        SpanL1Term(o.span_weight),
        SpanGIoUTerm(o.giou_weight),
        LabelTerm(o.label_weight, background=o.background_weight),
    )


def blueprint_of(
    parts: Parts,
    o: LineageOptions,
    criterion: Callable[[Parts], Criterion] | None = None,
) -> Blueprint:
    """The blueprint of the parts with the lineage's criterion and decoding.

    Args:
        parts: along the path.
        o: options.
        criterion: if not the lineage's.
    """
    matcher = matcher_of(o)
    return Blueprint(
        parts,
        criterion or (lambda final: Criterion(final.terms, matcher, every_layer=o.aux_loss)),
        Decoding.released() if o.decoding == "released" else Decoding(),
        o.hidden,
    )


PUBLIC_OPTIONS: Mapping[str, str] = {
    "hidden_dim": "hidden",
    "nheads": "heads",
    "dim_feedforward": "feedforward",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "num_queries": "queries",
    "dropout": "dropout",
    "input_dropout": "input_dropout",
    "n_input_proj": "projection_layers",
    "max_q_l": "max_words",
    "span_loss_coef": "span_weight",
    "giou_loss_coef": "giou_weight",
    "label_loss_coef": "label_weight",
    "lw_saliency": "saliency_weight",
    "eos_coef": "background_weight",
    "saliency_margin": "margin",
    "aux_loss": "aux_loss",
    "set_cost_span": "cost_span",
    "set_cost_giou": "cost_giou",
    "set_cost_class": "cost_label",
}
"""Our option of a public one, where the two mean the same."""


def public_options(
    public: Mapping[str, Any],
    weights: Weights,
    *,
    names: Mapping[str, str] = PUBLIC_OPTIONS,
    allowed: Mapping[str, tuple[Any, ...]] | None = None,
) -> dict[str, Any]:
    """Our options; the widths of the features come from the tensors themselves.

    Args:
        public: options under their public names.
        weights: tensors under their public names.
        names: our name of each public option that is read.
        allowed: further public options that only some values of are supported.

    Raises:
        UsageError: an option whose value this project has no part for.
    """
    supported(
        public,
        {
            "pre_norm": (False,),
            "position_embedding": ("sine",),
            "span_loss_type": ("l1",),
            **(allowed or {}),
        },
    )
    options = {ours: public[theirs] for theirs, ours in names.items() if theirs in public}
    if public.get("use_txt_pos"):
        options["text_position"] = "learned"
    return options | {
        "video_dim": projected_width(weights, "input_vid_proj"),
        "text_dim": projected_width(weights, "input_txt_proj"),
    }


def highlights_alone(public: Mapping[str, Any]) -> dict[str, float]:
    """What to change of options read from a checkpoint of TVSum, where the public codes match
    nothing."""
    return dict.fromkeys(MOMENT_WEIGHTS, 0.0) if public.get("dset_name") == "tvsum" else {}


def unused_text_position(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The table of word places, which every public checkpoint holds and few read."""
    if recipe["text_position"] == "learned":
        return {}
    d = recipe["hidden"]
    return {
        "txt_position_embed.position_embeddings.weight": (recipe["max_words"], d),
        "txt_position_embed.LayerNorm.weight": (d,),
        "txt_position_embed.LayerNorm.bias": (d,),
    }
