"""BM-DETR: Background-aware Moment Detection for Video Moment Retrieval.

Jung et al., WACV 2025, https://arxiv.org/abs/2306.02728; public code
https://github.com/minjoong507/BM-DETR (commit b9afb3d).

Clips and words are one sequence; each encoder layer scales the position codes by its input. Every
clip gets a probability that it answers the query, lowered in training by the probability that it
answers a wrong one, and the clips weighted by it give saliency and one vector for the contrast of
video and text. A decoder with learned anchors that no layer refines gives ten moments.

What differs from the public code, as options; `fixed` is the default:

negatives: where a batch brings no wrong text of its own (the public code samples one of all other
    videos), `roll_other_video` takes the text of the next sample of another video, `roll` the next
    sample's. release: roll.
clip_weights: `clips` takes the softmax of the relevance over the clips. `released`: over the
    padding of the batch too. release: released.
contrast: `other_videos` does not contrast a video with other queries of it. `batch` does; the
    public code keeps them out of a batch by its sampler. release and paper: batch.
label_error_weight: of the percentage of matched queries taken for background, which has no
    gradient and only shifts the sum. release: 1, else 0.
shift: `moment` adds a second batch in which the moment of every video is at a random other place,
    and takes the mean of both losses (Charades-STA). `released` moves it as the public code does
    (`MovedMoment`), `reverse` turns the video around, a control. off everywhere; a public
    checkpoint trained with `use_temporal_shifting` has `released`.
width_floor: smallest anchor width that the decoder divides by; 0 divides by a closed anchor.
    release: 0.
decoding: `grid` reads spans in the unit in which they are trained. `released` reads them in units
    of the duration and rounds to whole clips (`Decoding.released`). release: released.

A sample without a clip in a moment counts for nothing in the guidance; there the public code
divides by zero. The second output of `decoder.anchor_width` is not read, as released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field

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
from models.retrieval.official import (
    LINEAGE_NAMES,
    OfficialLayout,
    Weights,
    dab_names,
    encoder_names,
    mlp_shapes,
)
from models.retrieval.parts.attention import Activation
from models.retrieval.parts.concat import ConcatFuser
from models.retrieval.parts.dab import DABDecoder, LearnedAnchors
from models.retrieval.parts.frame_probability import (
    FrameProbability,
    GuidanceTerm,
    LabelErrorTerm,
    PooledContrastTerm,
    WeightedSaliency,
)
from models.retrieval.parts.heads import AnchorMomentHead
from models.retrieval.parts.negatives import WrongText
from models.retrieval.parts.shift import MovedMoment, ReversedVideo
from models.retrieval.stages import LossTerm, Parts, View

__all__ = ["BMDETROptions"]


class BMDETROptions(LineageOptions):
    """Options of BM-DETR beside those of the lineage.

    Args:
        contrast_weight: of the contrast of pooled video and text.
        contrast_width: features in which they are compared.
        temperature: of the contrast.
        guidance_weight: of the guidance of the frame probabilities.
        guidance_goal: value of that loss where nothing is relevant.
        label_error_weight: see the module.
        negatives: see the module.
        clip_weights: see the module.
        contrast: see the module.
        shift: see the module.
        width_floor: see the module.
        activation: in the feed-forwards.
    """

    encoder_layers: int = Field(3, ge=1)
    decoder_layers: int = Field(3, ge=1)
    span_weight: float = Field(1.0, ge=0)
    giou_weight: float = Field(8.0, ge=0)
    label_weight: float = Field(8.0, ge=0)
    cost_span: float = Field(1.0, ge=0)
    cost_giou: float = Field(8.0, ge=0)
    cost_label: float = Field(8.0, ge=0)
    aux_loss: bool = False
    contrast_weight: float = Field(3.0, ge=0)
    contrast_width: int = Field(256, gt=0)
    temperature: float = Field(0.07, gt=0)
    guidance_weight: float = Field(2.0, ge=0)
    guidance_goal: float = 1.0
    label_error_weight: float = Field(0.0, ge=0)
    negatives: Literal["roll", "roll_other_video"] = "roll_other_video"
    clip_weights: Literal["clips", "released"] = "clips"
    contrast: Literal["other_videos", "batch"] = "other_videos"
    shift: Literal["off", "moment", "released", "reverse"] = "off"
    width_floor: float = Field(1e-3, ge=0)
    activation: Activation = "prelu"


def build(dims: Dims, options: BMDETROptions) -> Blueprint:
    """The parts of BM-DETR."""
    o = options
    shape = (o.hidden, o.heads, o.feedforward)
    fuser = ConcatFuser(
        *shape,
        layers=o.encoder_layers,
        dropout=o.dropout,
        activation=o.activation,
        scaled_places=True,
    )
    decoder = DABDecoder(
        *shape,
        layers=o.decoder_layers,
        init=LearnedAnchors(o.queries, o.hidden),
        dropout=o.dropout,
        width_floor=o.width_floor,
        refine_zero=False,
        refine=False,
        width_first=True,
        width_outputs=2,
        activation=o.activation,
    )
    parts = Parts(
        encoders=encoders_of(dims, o),
        fuser=fuser,
        decoder=decoder,
        heads=(
            AnchorMomentHead(o.hidden),
            FrameProbability(o.hidden),
            WeightedSaliency(o.hidden, over=o.clip_weights),
        ),
        passes=(WrongText(o.negatives, ("frame_probability",)),),
        terms=_terms(o),
        views=_views(o),
    )
    return blueprint_of(parts, o)


def _terms(o: BMDETROptions) -> tuple[LossTerm, ...]:
    contrast = PooledContrastTerm(
        o.contrast_weight,
        width=o.hidden,
        inner=o.contrast_width,
        temperature=o.temperature,
        among=o.contrast,
    )
    return (
        *moment_terms(o),
        LabelErrorTerm(o.label_error_weight),
        MarginTerm(o.saliency_weight, margin=o.margin),
        contrast,
        GuidanceTerm(o.guidance_weight, goal=o.guidance_goal),
    )


def _views(o: BMDETROptions) -> tuple[View, ...]:
    if o.shift == "off":
        return ()
    if o.shift == "reverse":
        return (ReversedVideo(),)
    return (MovedMoment(released=o.shift == "released"),)


_TERM = r"criterion\.terms\.contrastive\."
_POOL = {"inner": "feat2att", "score": "to_alpha", "out": "fc"}
_SHORT = {"video": "vid", "text": "txt"}
_NAMES = (
    *encoder_names("fuser.layers", "transformer.encoder.layers"),
    (r"fuser\.place_scale\.(.*)", r"transformer.encoder.query_scale.\1"),
    *dab_names("decoder", "transformer.decoder"),
    *LINEAGE_NAMES,
    (r"heads\.1\.inner\.weight", "FPM.0.weight"),
    (r"heads\.1\.outer\.weight", "FPM.2.weight"),
    (r"heads\.2\.clip\.(.*)", r"saliency_proj.\1"),
    (
        _TERM + r"(video|text)_pool\.(\w+)\.(.*)",
        lambda m: f"{_SHORT[m[1]]}_att_pooling.{_POOL[m[2]]}.{m[3]}",
    ),
    (_TERM + r"(video|text)\.(.*)", lambda m: f"contrastive_align_{_SHORT[m[1]]}_proj.{m[2]}"),
)

_PUBLIC_OPTIONS = {  # `aux_loss`, where a checkpoint has it, its code does not read
    **{public: ours for public, ours in PUBLIC_OPTIONS.items() if public != "aux_loss"},
    "lw_contrastive_loss_coef": "contrast_weight",
    "contrastive_hdim": "contrast_width",
    "temperature": "temperature",
    "lw_prob_loss_coef": "guidance_weight",
    "prob_thd": "guidance_goal",
    "class_loss_coef": "label_error_weight",
    "transformer_activation": "activation",
}


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    allowed = {"transformer_activation": get_args(Activation)}
    options = public_options(public, weights, names=_PUBLIC_OPTIONS, allowed=allowed)
    return options | {"shift": "released" if public.get("use_temporal_shifting") else "off"}


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    shapes, d = unused_text_position(recipe), recipe["hidden"]
    if recipe["decoder_layers"] == 1:
        shapes |= mlp_shapes("transformer.decoder.query_scale", d, d, d, depth=2)
    if not recipe["contrast_weight"]:
        for short in _SHORT.values():
            pool, projection = f"{short}_att_pooling", f"contrastive_align_{short}_proj"
            shapes |= {
                f"{pool}.feat2att.weight": (d, d),
                f"{pool}.to_alpha.weight": (1, d),
                f"{pool}.fc.weight": (d, d),
                f"{pool}.fc.bias": (d,),
                f"{projection}.weight": (recipe["contrast_width"], d),
                f"{projection}.bias": (recipe["contrast_width"],),
            }
    return shapes


MODELS.register("bm_detr")(
    ModelFamily(
        options=BMDETROptions,
        presets={
            "release": {
                "negatives": "roll",
                "clip_weights": "released",
                "contrast": "batch",
                "label_error_weight": 1.0,
                "width_floor": 0.0,
                "decoding": "released",
            },
            "paper": {"contrast": "batch"},
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused),
        # As in QD-DETR; and the hinge compares two clips, in which the bias cancels.
        inert=(
            r"decoder\.layers\.\d+\.(self|cross)_key(_pos)?\.bias",
            r"decoder\.layers\.0\.self_(query|key)(_pos)?\..*",
            r"decoder\.layers\.0\.self_value\.weight",
            r"heads\.2\.clip\.bias",
        ),
    )
)
