"""TR-DETR: Task-Reciprocal Transformer for Joint Moment Retrieval and Highlight Detection.

Sun et al., AAAI 2024, https://arxiv.org/abs/2401.02309; public code
https://github.com/mingyao1120/TR-DETR (commit fca43a9).

Encoded video and text are aligned (LGMA: globally and clip by clip). Clips and words read each
other, clips read the words and then each other; a first saliency weighs the clips, which read each
other again through the same layers (HD2MR). A decoder with learned anchors gives ten moments, and
the clips of the best one give the saliency (MR2HD).

What differs from the public code, as options; `fixed` is the default:

t2v_mask: `words` lets clips read all real words. `released`: padding of another sample hides
    words (`parts.attention.keys_allowed`). release: released.
first_saliency: the softmax of the first saliency is over the `real` clips, or as released over the
    `padded` ones too. release: padded.
moment: `masked` reads the clips of the best moment. `released` depends on the padding, and slices
    from the end where the moment begins before 0 (`parts.gru_saliency`). release: released.
pooling: global features are means over the `real` rows, or as released over the `padded` ones too.
    release: padded.
clip_text_clips: the loss of clips and sentence is a mean over the `real` clips, or as released over
    the `padded` ones too. release: padded.
label: `focal` or `cross_entropy`. The code uses the focal loss; its option for the weight of the
    background is read and has no effect, so here `background_weight` needs `cross_entropy`.
width_floor: smallest anchor width that the decoder divides by; 0 divides by a closed anchor.
    release: 0.
refine_zero: anchor refinement starts as the identity; the public code overwrites that. release:
    off.
decoding: as QD-DETR. release: released.

The public code adds the alignment losses outside its criterion; here they are terms like others.
Its public checkpoints hold `txt_position_embed.*`, which their code does not read unless
`use_txt_pos` (here `text_position: learned`) is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import (
    FocalLabelTerm,
    LabelTerm,
    MarginTerm,
    RankTerm,
    SpanGIoUTerm,
    SpanL1Term,
)
from models.retrieval.flow import Memory, Tokens
from models.retrieval.lineage import (
    PUBLIC_OPTIONS,
    LineageOptions,
    blueprint_of,
    encoders_of,
    highlights_alone,
    public_options,
    unused_text_position,
)
from models.retrieval.official import (
    LINEAGE_NAMES,
    Name,
    OfficialLayout,
    Weights,
    dab_names,
    encoder_names,
    mlp_shapes,
)
from models.retrieval.parts.alignment import ClipTextTerm, Pooling, VideoTextTerm
from models.retrieval.parts.attention import EncoderLayer, TextToVideoLayer, keys_allowed, xavier
from models.retrieval.parts.context_query import ContextQuery, masked_softmax
from models.retrieval.parts.dab import DABDecoder, LearnedAnchors
from models.retrieval.parts.gru_saliency import MomentGRUSaliency, SummedLinear
from models.retrieval.parts.heads import AnchorMomentHead
from models.retrieval.stages import Fuser, LossTerm, Parts

__all__ = [
    "MomentGuidedOptions",
    "TRDETROptions",
    "anchor_decoder",
    "context_query_names",
    "moment_guided_terms",
    "unused_refinement",
]


class MomentGuidedOptions(LineageOptions):
    """Options that TR-DETR and LD-DETR share.

    Args:
        t2v_layers: text-to-video layers.
        t2v_mask: see the module.
        moment: see the module.
        pooling: see the module.
        label: see the module.
        background_weight: of a query without a moment; for `label: cross_entropy` alone.
        width_floor: see the module.
        refine_zero: see the module.
    """

    t2v_layers: int = Field(2, ge=1)
    t2v_mask: Literal["words", "released"] = "words"
    moment: Literal["masked", "released"] = "masked"
    pooling: Pooling = "real"
    label: Literal["focal", "cross_entropy"] = "focal"
    background_weight: float = Field(0.0, ge=0)
    width_floor: float = Field(1e-3, ge=0)
    refine_zero: bool = True

    @model_validator(mode="after")
    def _one_weight_of_background(self) -> Self:
        if self.label == "focal" and self.background_weight != 0:
            raise ValueError(
                f"the focal loss has no weight for the background and background_weight is "
                f"{self.background_weight}; leave it at 0 or set label to cross_entropy"
            )
        return self


class TRDETROptions(MomentGuidedOptions):
    """Options of TR-DETR beside those it shares.

    Args:
        first_saliency: see the module.
        video_text_weight: of the loss of whole videos and sentences (VTC).
        clip_text_weight: of the loss of clips and sentences (CTC).
        clip_text_clips: see the module.
    """

    first_saliency: Pooling = "real"
    video_text_weight: float = Field(0.3, ge=0)
    clip_text_weight: float = Field(0.5, ge=0)
    clip_text_clips: Pooling = "real"


class TaskReciprocalFuser(Fuser):
    """Clips and words read each other; a first saliency then weighs the clips (HD2MR).

    Extras of the memory: `saliency_first` (B, L), and the map that gave it, which the saliency
    head shares, as `saliency_weight` (B, d) and `saliency_bias` (B,).

    Args:
        o: options.
    """

    provides = frozenset({"clip", "kv", "saliency_first", "saliency_weight", "saliency_bias"})

    def __init__(self, o: TRDETROptions) -> None:
        super().__init__()
        shape = (o.hidden, o.heads, o.feedforward, o.dropout)
        self.query = ContextQuery(o.hidden, o.dropout)
        self.t2v = nn.ModuleList(TextToVideoLayer(*shape) for _ in range(o.t2v_layers))
        self.layers = nn.ModuleList(EncoderLayer(*shape) for _ in range(o.encoder_layers))
        xavier(self.t2v)
        xavier(self.layers)
        self.score = SummedLinear(o.hidden)
        self.heads = o.heads
        self.mask: Literal["keys", "released"] = "keys" if o.t2v_mask == "words" else "released"
        self.mixes_samples = self.mask == "released"
        self.first_saliency = o.first_saliency

    def forward(self, tokens: Tokens) -> Memory:
        """Memory on the clip axis; the decoder attends to the clips."""
        mask, place = tokens.video_mask, tokens.video_pos
        allowed = keys_allowed(mask, tokens.text_mask, heads=self.heads, mask=self.mask)
        clips = self.query(tokens.video, tokens.text, mask, tokens.text_mask)
        for layer in self.t2v:
            clips = layer(clips, place, tokens.text, tokens.text_pos, allowed)
        memory = self._read(clips, place, mask)
        first = self.score(memory)
        counted = mask if self.first_saliency == "real" else torch.ones_like(mask)
        share = masked_softmax(first, counted, 1).unsqueeze(-1)
        memory = self._read(memory + share * clips, place, mask)
        weight, bias = self.score.direction()
        extras = {
            "saliency_first": first,
            "saliency_weight": weight.expand(len(mask), -1),
            "saliency_bias": bias.expand(len(mask)),
        }
        return Memory(memory, mask, place, memory, mask, place, extras=extras)

    def _read(self, clips: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            clips = layer(clips, place, mask)
        return clips


def build(dims: Dims, options: TRDETROptions) -> Blueprint:
    """The parts of TR-DETR."""
    o = options
    parts = Parts(
        encoders=encoders_of(dims, o),
        fuser=TaskReciprocalFuser(o),
        decoder=anchor_decoder(o),
        heads=(AnchorMomentHead(o.hidden), MomentGRUSaliency(o.hidden, moment=o.moment)),
        terms=(
            *moment_guided_terms(o),
            VideoTextTerm(o.video_text_weight, pooling=o.pooling),
            ClipTextTerm(o.clip_text_weight, clips=o.clip_text_clips),
        ),
    )
    return blueprint_of(parts, o)


def anchor_decoder(o: MomentGuidedOptions) -> DABDecoder:
    """The decoder with learned anchors."""
    return DABDecoder(
        o.hidden,
        o.heads,
        o.feedforward,
        layers=o.decoder_layers,
        init=LearnedAnchors(o.queries, o.hidden),
        dropout=o.dropout,
        width_floor=o.width_floor,
        refine_zero=o.refine_zero,
    )


def moment_guided_terms(o: MomentGuidedOptions) -> tuple[LossTerm, ...]:
    """Losses of moments and saliency, without those that align."""
    return (
        SpanL1Term(o.span_weight),
        SpanGIoUTerm(o.giou_weight),
        FocalLabelTerm(o.label_weight)
        if o.label == "focal"
        else LabelTerm(o.label_weight, background=o.background_weight),
        MarginTerm(o.saliency_weight, margin=o.margin),
        RankTerm(o.saliency_weight, against_negative=False),
    )


def context_query_names(
    ours: str, *, attention: str, mix: str, pool: str, join: str
) -> tuple[Name, ...]:
    """Names of a `ContextQuery`, from our prefix to the public ones.

    Args:
        ours: our prefix.
        attention: public prefix of the three vectors of the similarity.
        mix: public name of the layer over what was found.
        pool: public name of the vector that pools the words.
        join: public name of the layer that adds the query.
    """
    vectors = {"context": "w4C", "query": "w4Q", "both": "w4mlu"}
    return (
        *(
            (rf"{ours}\.similarity\.{name}", f"{attention}.{theirs}")
            for name, theirs in vectors.items()
        ),
        (rf"{ours}\.mix\.(.*)", rf"{mix}.\1"),
        (rf"{ours}\.pool", pool),
        (rf"{ours}\.join\.(.*)", rf"{join}.\1"),
    )


_NAMES = (
    *context_query_names(
        r"fuser\.query",
        attention="fuser.cq_attention",
        mix="fuser.cq_attention.cqa_linear.conv1d",
        pool="fuser.cq_concat.weighted_pool.weight",
        join="fuser.cq_concat.conv1d.conv1d",
    ),
    (r"fuser\.score\.(.*)", r"saliency_proj1.\1"),
    *encoder_names("fuser.t2v", "transformer.t2v_encoder.layers"),
    *encoder_names("fuser.layers", "transformer.encoder.layers"),
    *dab_names("decoder", "transformer.decoder"),
    *LINEAGE_NAMES,
    (r"heads\.1\.gru\.(.*)", r"gru_extractor.gru.\1"),
)

_PUBLIC = {key: ours for key, ours in PUBLIC_OPTIONS.items() if key != "eos_coef"} | {
    "VTC_loss_coef": "video_text_weight",
    "CTC_loss_coef": "clip_text_weight",
}


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    options = public_options(
        public, weights, names=_PUBLIC, allowed={"contrastive_align_loss": (False,)}
    )
    t2v = {key.split(".")[3] for key in weights if key.startswith("transformer.t2v_encoder.layers")}
    return options | highlights_alone(public) | {"t2v_layers": max(1, len(t2v))}


def unused_refinement(recipe: Mapping[str, Any], decoder: str) -> dict[str, tuple[int, ...]]:
    """What a public decoder of one layer stores and never reads.

    Args:
        recipe: of the model.
        decoder: public prefix.
    """
    if recipe["decoder_layers"] > 1:
        return {}
    d = recipe["hidden"]
    return mlp_shapes(f"{decoder}.bbox_embed", d, d, 2, depth=3) | mlp_shapes(
        f"{decoder}.query_scale", d, d, d, depth=2
    )


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return unused_text_position(recipe) | unused_refinement(recipe, "transformer.decoder")


MODELS.register("tr_detr")(
    ModelFamily(
        options=TRDETROptions,
        presets={
            "release": {
                "t2v_mask": "released",
                "first_saliency": "padded",
                "moment": "released",
                "pooling": "padded",
                "clip_text_clips": "padded",
                "width_floor": 0.0,
                "refine_zero": False,
                "decoding": "released",
            },
            "paper": {},
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused),
        # Beside what QD-DETR says of the decoder: saliency is only ever compared with saliency.
        inert=(
            r"decoder\.layers\.\d+\.(self|cross)_key(_pos)?\.bias",
            r"decoder\.layers\.0\.self_(query|key)(_pos)?\..*",
            r"decoder\.layers\.0\.self_value\.weight",
            r"fuser\.score\.bias",
        ),
    )
)
