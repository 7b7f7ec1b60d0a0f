"""Moment-DETR, of QVHighlights: Detecting Moments and Highlights in Videos via Natural Language
Queries.

Lei et al., NeurIPS 2021, https://arxiv.org/abs/2107.09609; public code
https://github.com/jayleicn/moment_detr (commit b7e553a).

Clips and words are one sequence that an encoder reads. A plain DETR decoder with learned query
places gives ten moments, a linear layer of every encoded clip its saliency.

What differs from the public code, as options; `fixed` is the default, and the paper describes
nothing else:

decoding: `grid` reads spans in the unit in which they are trained. `released` reads them in units
    of the duration and rounds to whole clips (`Decoding.released`). release: released.
align: a contrast of queries and words that the public code has and its paper does not use; off
    everywhere, and without a weight of its own when on. Its third projection nothing reads.
align_words: `words` contrasts with the real words. `released` adds the padded ones, so that the
    loss of a sample depends on the longest query beside it. release: released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm
from models.retrieval.lineage import (
    PUBLIC_OPTIONS,
    LineageOptions,
    blueprint_of,
    encoders_of,
    moment_terms,
    public_options,
    unused_text_position,
)
from models.retrieval.official import LINEAGE_NAMES, OfficialLayout, Weights, encoder_names
from models.retrieval.parts.concat import ConcatFuser
from models.retrieval.parts.heads import LinearSaliency, MomentHead
from models.retrieval.parts.losses import contrastive_align
from models.retrieval.parts.vanilla import VanillaDecoder
from models.retrieval.stages import LossTerm, Outcome, Parts

__all__ = ["AlignTerm", "MomentDETROptions"]


class MomentDETROptions(LineageOptions):
    """Options of Moment-DETR beside those of the lineage.

    Args:
        align: whether the model can contrast queries with words.
        align_weight: of that loss; 0 leaves it out.
        align_width: features in which they are compared.
        align_temperature: τ.
        align_words: see the module.
    """

    align: bool = False
    align_weight: float = Field(0.0, ge=0)
    align_width: int = Field(64, gt=0)
    align_temperature: float = Field(0.07, gt=0)
    align_words: Literal["words", "released"] = "words"

    @model_validator(mode="after")
    def _weight_counts(self) -> Self:
        if self.align_weight and not self.align:
            raise ValueError(f"align_weight {self.align_weight} has no effect without align: true")
        return self


class AlignTerm(LossTerm):
    """Matched queries are nearer to the text than the others (`losses.contrastive_align`).

    Args:
        weight: factor in the sum.
        width: features of queries and words.
        inner: features in which they are compared.
        temperature: τ.
        words: `words` counts the real ones, `released` the padded ones too.
    """

    name = "align"
    requires = frozenset({"states", "words", "logits"})

    def __init__(
        self,
        weight: float,
        *,
        width: int,
        inner: int,
        temperature: float,
        words: Literal["words", "released"],
    ) -> None:
        super().__init__(weight)
        self.query, self.word = nn.Linear(width, inner), nn.Linear(width, inner)
        self.temperature, self.words = temperature, words

    def forward(self, outcome: Outcome) -> Tensor:
        """(ℓ,)."""
        decoded, mask = outcome.trace.decoded, outcome.batch.text_mask
        assert decoded is not None
        queries = self.query(decoded.states[-len(outcome.logits) :]).float()
        words = self.word(outcome.trace.memory.extras["words"]).float()
        return contrastive_align(
            functional.normalize(queries, dim=-1),
            functional.normalize(words, dim=-1),
            mask if self.words == "words" else torch.ones_like(mask),
            outcome.is_matched(),
            temperature=self.temperature,
        )


def build(dims: Dims, options: MomentDETROptions) -> Blueprint:
    """The parts of Moment-DETR."""
    o = options
    shape = (o.hidden, o.heads, o.feedforward)
    parts = Parts(
        encoders=encoders_of(dims, o),
        fuser=ConcatFuser(*shape, layers=o.encoder_layers, dropout=o.dropout),
        decoder=VanillaDecoder(
            *shape, layers=o.decoder_layers, queries=o.queries, dropout=o.dropout
        ),
        heads=(MomentHead(o.hidden), LinearSaliency(o.hidden)),
        terms=_terms(o),
    )
    return blueprint_of(parts, o)


def _terms(o: MomentDETROptions) -> tuple[LossTerm, ...]:
    terms = (*moment_terms(o), MarginTerm(o.saliency_weight, margin=o.margin))
    if not o.align:
        return terms
    align = AlignTerm(
        o.align_weight,
        width=o.hidden,
        inner=o.align_width,
        temperature=o.align_temperature,
        words=o.align_words,
    )
    return (*terms, align)


_LAYER = r"decoder\.layers\.(\d+)\."
_PUBLIC_LAYER = r"transformer.decoder.layers.\1"
_NAMES = (
    *encoder_names("fuser.layers", "transformer.encoder.layers"),
    (_LAYER + r"self_attention\.(.*)", _PUBLIC_LAYER + r".self_attn.\2"),
    (_LAYER + r"cross_attention\.(.*)", _PUBLIC_LAYER + r".multihead_attn.\2"),
    (_LAYER + r"feedforward\.(.*)", _PUBLIC_LAYER + r".\2"),
    (_LAYER + r"(norm\d\..*)", _PUBLIC_LAYER + r".\2"),
    (r"decoder\.(norm\..*)", r"transformer.decoder.\1"),
    (r"decoder\.places\.weight", "query_embed.weight"),
    *LINEAGE_NAMES,
    (r"heads\.1\.clip\.(.*)", r"saliency_proj.\1"),
    (r"criterion\.terms\.align\.query\.(.*)", r"contrastive_align_projection_query.\1"),
    (r"criterion\.terms\.align\.word\.(.*)", r"contrastive_align_projection_txt.\1"),
)

_PUBLIC_OPTIONS = {
    **PUBLIC_OPTIONS,
    "contrastive_align_loss": "align",
    "contrastive_align_loss_coef": "align_weight",
    "contrastive_hdim": "align_width",
    "temperature": "align_temperature",
}


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    options = public_options(public, weights, names=_PUBLIC_OPTIONS)
    if not options.get("align"):
        options["align_weight"] = 0.0  # the public code does not read it then
    return options


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    shapes = unused_text_position(recipe)
    if recipe["align"]:
        for name in ("vid",) if recipe["align_weight"] else ("vid", "txt", "query"):
            projection = f"contrastive_align_projection_{name}"
            shapes[f"{projection}.weight"] = (recipe["align_width"], recipe["hidden"])
            shapes[f"{projection}.bias"] = (recipe["align_width"],)
    return shapes


MODELS.register("moment_detr")(
    ModelFamily(
        options=MomentDETROptions,
        presets={"release": {"align_words": "released", "decoding": "released"}},
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused),
        # The first content is zero, so layer 0 averages equal values, whoever attends to whom; and
        # what is added to the saliency of all clips cancels in the hinge.
        inert=(r"decoder\.layers\.0\.self_attention\.in_proj_weight", r"heads\.1\.clip\.bias"),
    )
)
