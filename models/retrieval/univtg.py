"""UniVTG: Towards Unified Video-Language Temporal Grounding.

Lin et al., ICCV 2023, https://arxiv.org/abs/2307.16715; public code
https://github.com/showlab/UniVTG (commit 32659ac).

Clips and words, each with a learned vector of their kind, read each other in one sequence. Small
convolutions over the clips then say of every clip whether it lies in a moment and how far it is to
the edges of that moment: there is one query for each clip, no decoder and no matching. The saliency
of a clip is the cosine of the projected clip and the pooled projected words, before any fusion.

What differs from the public code, as options; `fixed` is the default:

timestamps: `centre` places clip i at (i + ½) / n. `released`: at (i + clip_len_s / 2) / n, which
    mixes clips and seconds and is right for clips of one second only. release: released.
short_moments: `own_clip` gives every moment in which no clip's place lies the clip in which it
    begins. `released`: only the first moment, and only if the sample has no clip inside any.
    release: released.
conv_padding: `zero` lets the convolutions see zeros beyond a video. `released`: whatever the
    encoder made of the padding of a batch. release: released.
spans_in_video: windows are cut to the video; the losses read them before that. release: off.
saliency_padding: `fill` gives padded clips −1000. `log`: log(mask + 1e-45) is added, −103 in
    float32 and −inf in half precision. release: log.
intra: `clips` contrasts the salient clip with less salient ones of its video (the paper's
    equation). `released`: also with the clips of other samples at the same index, since a matrix
    of scores that is not square is transposed. release: released.
decoding: `grid` reads spans in the unit in which they are trained. `released` reads them in units
    of the duration (`Decoding.released`, without rounding). release: released.

The public code scales only the attention weights by `dropout` and leaves it out inside the
feed-forwards; the published value is 0, where the two are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import Criterion
from models.retrieval.decode import Decoding
from models.retrieval.lineage import (
    EncoderOptions,
    encoders_of,
    public_options,
    unused_text_position,
)
from models.retrieval.official import LINEAGE_NAMES, OfficialLayout, Weights, encoder_names
from models.retrieval.parts.clip_moments import (
    ClipGIoUTerm,
    ClipLabelTerm,
    ClipMomentHead,
    ClipSpanTerm,
    InterVideoTerm,
    IntraVideoTerm,
    SentenceCosine,
    ShortMoments,
)
from models.retrieval.parts.concat import ConcatFuser
from models.retrieval.stages import LossTerm, Parts

__all__ = ["UniVTGOptions"]


class UniVTGOptions(EncoderOptions):
    """Options of UniVTG beside those of the encoder.

    Args:
        drop_path: chance that a sample loses a branch of an encoder layer.
        span_weight: of the smooth L1 distance of the edges.
        giou_weight: of the gIoU loss.
        label_weight: of the foreground loss.
        background_weight: of a clip outside of the moments in the foreground loss.
        inter_weight: of the contrast with other samples.
        intra_weight: of the contrast with other clips.
        temperature: of both contrasts.
        timestamps: see the module.
        clip_len_s: seconds of a clip, for `timestamps: released`.
        short_moments: see the module.
        conv_padding: see the module.
        spans_in_video: see the module.
        saliency_padding: see the module.
        intra: see the module.
        decoding: see the module.
        nms_iou: overlap from which the worse of two windows is dropped; None drops none.
        keep: most windows of a sample; None keeps all.
        window_score: what ranks windows: the foreground probability (the paper and `eval_mode`
            none or add), or that plus the saliency of its clip (`add_mr`).
        highlight_score: what ranks clips: saliency, or that plus the foreground probability (the
            paper and `eval_mode` add).
    """

    hidden: int = Field(1024, gt=0, multiple_of=4)
    encoder_layers: int = Field(4, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    max_words: int = Field(75, ge=1)
    drop_path: float = Field(0.1, ge=0, lt=1)
    span_weight: float = Field(10.0, ge=0)
    giou_weight: float = Field(1.0, ge=0)
    label_weight: float = Field(10.0, ge=0)
    background_weight: float = Field(0.1, ge=0)
    inter_weight: float = Field(0.01, ge=0)
    intra_weight: float = Field(0.05, ge=0)
    temperature: float = Field(0.07, gt=0)
    timestamps: Literal["centre", "released"] = "centre"
    clip_len_s: float = Field(2.0, gt=0)
    short_moments: ShortMoments = "own_clip"
    conv_padding: Literal["zero", "released"] = "zero"
    spans_in_video: bool = True
    saliency_padding: Literal["fill", "log"] = "fill"
    intra: Literal["clips", "released"] = "clips"
    decoding: Literal["grid", "released"] = "grid"
    nms_iou: float | None = Field(0.7, gt=0, le=1)
    keep: int | None = Field(10, ge=1)
    window_score: Literal["foreground", "foreground+saliency"] = "foreground"
    highlight_score: Literal["saliency", "foreground+saliency"] = "foreground+saliency"


def build(dims: Dims, options: UniVTGOptions) -> Blueprint:
    """The parts of UniVTG."""
    o = options
    fuser = ConcatFuser(
        o.hidden,
        o.heads,
        o.feedforward,
        layers=o.encoder_layers,
        dropout=o.dropout,
        activation="gelu",
        drop_path=o.drop_path,
    )
    moments = ClipMomentHead(
        o.hidden,
        offset=0.5 if o.timestamps == "centre" else o.clip_len_s / 2,
        zero_padding=o.conv_padding == "zero",
        in_video=o.spans_in_video,
    )
    parts = Parts(
        encoders=encoders_of(dims, o, token_types=True),
        fuser=fuser,
        heads=(moments, SentenceCosine(o.hidden, padding=o.saliency_padding)),
        terms=_terms(o),
    )
    return Blueprint(parts, lambda final: Criterion(final.terms, None), _decoding(o), o.hidden)


def _terms(o: UniVTGOptions) -> tuple[LossTerm, ...]:
    return (
        ClipSpanTerm(o.span_weight, short=o.short_moments),
        ClipGIoUTerm(o.giou_weight, short=o.short_moments),
        ClipLabelTerm(o.label_weight, short=o.short_moments, background=o.background_weight),
        InterVideoTerm(o.inter_weight, temperature=o.temperature),
        IntraVideoTerm(
            o.intra_weight, temperature=o.temperature, across_samples=o.intra == "released"
        ),
    )


def _decoding(o: UniVTGOptions) -> Decoding:
    base = Decoding()
    if o.decoding == "released":
        base = replace(Decoding.released(), round_to_clip=False)
    return replace(
        base, nms_iou=o.nms_iou, keep=o.keep, score=o.window_score, highlight=o.highlight_score
    )


_PUBLIC = {
    "hidden_dim": "hidden",
    "nheads": "heads",
    "dim_feedforward": "feedforward",
    "enc_layers": "encoder_layers",
    "dropout": "dropout",
    "droppath": "drop_path",
    "input_dropout": "input_dropout",
    "n_input_proj": "projection_layers",
    "max_q_l": "max_words",
    "b_loss_coef": "span_weight",
    "g_loss_coef": "giou_weight",
    "f_loss_coef": "label_weight",
    "eos_coef": "background_weight",
    "s_loss_inter_coef": "inter_weight",
    "s_loss_intra_coef": "intra_weight",
    "clip_length": "clip_len_s",
}


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    # The temperature is built in, whatever `temperature` says.
    options = public_options(
        public, weights, names=_PUBLIC, allowed={"eval_mode": (None, "add", "add_mr")}
    )
    if public.get("dset_type") in ("hl", "vs"):  # highlights and summaries: no edges are learned
        options |= {"span_weight": 0.0, "giou_weight": 0.0}
    overlap, mode = public.get("nms_thd", -1), public.get("eval_mode")
    return options | {
        "nms_iou": overlap if overlap > 0 else None,
        "keep": public.get("max_after_nms") if overlap > 0 else None,
        "window_score": "foreground+saliency" if mode == "add_mr" else "foreground",
        "highlight_score": "foreground+saliency" if mode == "add" else "saliency",
    }


_NAMES = (
    (r"encoders\.types\.weight", "token_type_embeddings.weight"),
    *encoder_names("fuser.layers", "transformer.encoder.layers"),
    *LINEAGE_NAMES,
    (r"heads\.1\.pool", "weightedpool.weight"),
)

MODELS.register("univtg")(
    ModelFamily(
        options=UniVTGOptions,
        presets={
            "release": {
                "timestamps": "released",
                "short_moments": "released",
                "conv_padding": "released",
                "spans_in_video": False,
                "saliency_padding": "log",
                "intra": "released",
                "decoding": "released",
            },
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=unused_text_position),
    )
)
