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
align: a contrast of queries and words that the public code has and its paper does not use
    (`query_words`); off everywhere.
align_words: `words` contrasts with the real words. `released` adds the padded ones, so that the
    loss of a sample depends on the longest query beside it. release: released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm
from models.retrieval.lineage import (
    PUBLIC_OPTIONS,
    blueprint_of,
    encoders_of,
    moment_terms,
    public_options,
    unused_text_position,
)
from models.retrieval.official import LINEAGE_NAMES, OfficialLayout, Weights, encoder_names
from models.retrieval.parts.concat import ConcatFuser
from models.retrieval.parts.heads import LinearSaliency, MomentHead
from models.retrieval.parts.vanilla import VanillaDecoder
from models.retrieval.query_words import (
    ALIGN_NAMES,
    ALIGN_OPTIONS,
    AlignOptions,
    align_terms,
    unread_align_weight,
    unused_align,
)
from models.retrieval.stages import Parts

__all__ = ["MomentDETROptions"]


class MomentDETROptions(AlignOptions):
    """Options of Moment-DETR: those of the lineage and of the contrast of queries and words."""


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
        terms=(
            *moment_terms(o),
            MarginTerm(o.saliency_weight, margin=o.margin),
            *align_terms(o, every_layer=True),
        ),
    )
    return blueprint_of(parts, o)


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
    *ALIGN_NAMES,
)


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    options = public_options(public, weights, names={**PUBLIC_OPTIONS, **ALIGN_OPTIONS})
    return options | unread_align_weight(options)


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    return unused_text_position(recipe) | unused_align(recipe)


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
