"""CG-DETR: Correlation-Guided Query-Dependency Calibration for Video Temporal Grounding.

Moon et al., 2023, https://arxiv.org/abs/2311.08835; public code
https://github.com/wjun0830/CGDETR (commit 212b2e4).

Clips attend to words and to dummies made of the query; what goes to dummies is dropped, so that a
clip the query does not speak of hears little of it. A saliency token made of prompts joins the
clips in the encoder and is added to all of them. In training a moment is drawn to its sentence,
and the attention to words follows that likeness and the saliency labels.

What differs from the public code, as options; `fixed` is the default:

t2v_mask: `words` lets clips read all real words. `released`: padding of another sample hides words
    (`parts.attention.keys_allowed`). release: released.
sal_token_attends_text: whether the saliency token reads the words in the layers in which clips do.
    The public code asks for that and passes no words, so that the token goes through the layers
    with nothing to look at. release: off.
negatives: `roll_other_video` takes the text of the next sample of another video.
    `next_if_other_video` takes the next sample's, and none if that is of the same video. release
    and paper: next_if_other_video.
false_negatives: `counted`: samples without a wrong text are ranked by themselves, in one mean with
    the others. `released`: they have a mean of their own, a single one counts nothing, and the
    attention of none counts (`ReleasedRank`). release: released.
negative_log: `softplus` is exact. `log` computes −log(1 − σ(s)) as written, infinite from s of
    about 17 on, −log(1 − a) of an attention a, infinite at 1, and the cross entropy of clips and
    moment token from saturated sigmoids. release: log.
negative_places: as in `qd_detr`. release: right.
dummy_labels: `own` keeps a moment away from the dummies of its query. `released` compares with
    those of one fixed sample (`MomentSentenceTerm`). release: released.
padding: `masked` leaves padding out of all losses. `counted` counts padded clips in the cross
    entropy of the attention and in the mean of the clips that resemble the moment token, padded
    words in the distillation, and samples without a moment in both. release: counted.
width_floor: smallest anchor width that the decoder divides by; 0 divides by a closed anchor.
    release: 0.
refine_zero: anchor refinement starts as the identity. The public code asks for that and then
    overwrites it with the initialisation of all weights. release: off.
decoding: `grid` reads spans in the unit in which they are trained. `released` reads them in units
    of the duration and rounds to whole clips (`Decoding.released`). release: released.

Where the public code builds in a dropout of 0.1 (dummies, sentence), the option `dropout` holds
here. The public checkpoints hold `txt_proj_linear.*`, which their code does not read, and
`txt_position_embed.*`, which it reads with `use_txt_pos` (here `text_position: learned`) alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm, NegativePairTerm, RankTerm
from models.retrieval.lineage import (
    MOMENT_WEIGHTS,
    PUBLIC_OPTIONS,
    LineageOptions,
    blueprint_of,
    encoders_of,
    moment_terms,
    public_options,
    unused_text_position,
)
from models.retrieval.official import (
    GLOBAL_DOT_NAMES,
    LINEAGE_NAMES,
    Name,
    OfficialLayout,
    Weights,
    dab_names,
    encoder_names,
    mlp_shapes,
)
from models.retrieval.parts.dab import DABDecoder, LearnedAnchors
from models.retrieval.parts.dummies import AdaptiveFuser, AddGlobal, LeadingTokens, WordAttention
from models.retrieval.parts.heads import AnchorMomentHead, GlobalDotSaliency
from models.retrieval.parts.moment_sentence import (
    AttentionCoverTerm,
    AttentionNegativeTerm,
    DistillTerm,
    Log,
    MomentSentence,
    MomentSentenceTerm,
    OrthogonalTerm,
    ReleasedRank,
)
from models.retrieval.parts.negatives import WrongText
from models.retrieval.stages import LossTerm, Parts

__all__ = [
    "CG_INERT",
    "CG_NAMES",
    "CG_RELEASE",
    "CGDETROptions",
    "build",
    "cg_options",
    "cg_unused",
]


class CGDETROptions(LineageOptions):
    """Options of CG-DETR beside those of the lineage.

    Args:
        t2v_layers: layers of adaptive cross-attention.
        dummies: dummies beside the words.
        dummy_layers: encoder layers over dummies and words.
        moment_layers: encoder layers that make the moment token; training only.
        sentence_layers: encoder layers that make the sentence token; training only.
        text_heads: attention heads of the layers over words (built into the public code).
        prompts: prompts that the saliency token is made of.
        prompts_chosen: how many of them each sample takes.
        attention_weight: of the losses of the attention, beside `saliency_weight`.
        negative_weight: of the losses under a wrong text, beside those.
        ms_align_weight: of the likeness of moment and sentence.
        distill_weight: of the attention that follows that likeness.
        orthogonal_weight: of the difference of dummies and prompts.
        t2v_mask: see the module.
        sal_token_attends_text: see the module.
        negatives: see the module.
        false_negatives: see the module.
        negative_log: see the module.
        negative_places: see the module.
        dummy_labels: see the module.
        padding: see the module.
        width_floor: see the module.
        refine_zero: see the module.
    """

    encoder_layers: int = Field(3, ge=1)
    decoder_layers: int = Field(3, ge=1)
    t2v_layers: int = Field(2, ge=1)
    dummies: int = Field(45, ge=1)
    dummy_layers: int = Field(2, ge=1)
    moment_layers: int = Field(1, ge=1)
    sentence_layers: int = Field(1, ge=1)
    text_heads: int = Field(8, ge=1)
    prompts: int = Field(10, ge=1)
    prompts_chosen: int = Field(1, ge=1)
    attention_weight: float = Field(1.0, ge=0)
    negative_weight: float = Field(1.0, ge=0)
    ms_align_weight: float = Field(1.0, ge=0)
    distill_weight: float = Field(1.0, ge=0)
    orthogonal_weight: float = Field(1.0, ge=0)
    t2v_mask: Literal["words", "released"] = "words"
    sal_token_attends_text: bool = True
    negatives: Literal["roll_other_video", "next_if_other_video"] = "roll_other_video"
    false_negatives: Literal["counted", "released"] = "counted"
    negative_log: Log = "softplus"
    negative_places: Literal["own", "right"] = "own"
    dummy_labels: Literal["own", "released"] = "own"
    padding: Literal["masked", "counted"] = "masked"
    width_floor: float = Field(1e-3, ge=0)
    refine_zero: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.text_heads:
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of text_heads {self.text_heads}"
            )
        if self.prompts_chosen > self.prompts:
            raise ValueError(
                f"prompts_chosen {self.prompts_chosen} must be at most prompts {self.prompts}"
            )
        return self


def build(dims: Dims, options: CGDETROptions) -> Blueprint:
    """The parts of CG-DETR.

    `AddGlobal` is the last refiner: what refines clips and saliency token by themselves goes
    before it.
    """
    o = options
    decoder = DABDecoder(
        o.hidden,
        o.heads,
        o.feedforward,
        layers=o.decoder_layers,
        init=LearnedAnchors(o.queries, o.hidden),
        dropout=o.dropout,
        width_floor=o.width_floor,
        refine_zero=o.refine_zero,
        drop_path=o.dropout,
    )
    parts = Parts(
        encoders=encoders_of(dims, o, token_types=True),
        fuser=_fuser(o),
        refiners=(AddGlobal(),),
        decoder=decoder,
        heads=(AnchorMomentHead(o.hidden), GlobalDotSaliency(o.hidden), WordAttention()),
        passes=(WrongText(o.negatives, ("saliency", "attention"), places=o.negative_places),),
        aligners=(_aligner(o),) if o.ms_align_weight or o.distill_weight else (),
        terms=_terms(o),
    )
    return blueprint_of(parts, o)


def _fuser(o: CGDETROptions) -> AdaptiveFuser:
    return AdaptiveFuser(
        o.hidden,
        o.heads,
        o.feedforward,
        t2v_layers=o.t2v_layers,
        layers=o.encoder_layers,
        dropout=o.dropout,
        dummies=LeadingTokens(
            o.hidden,
            o.text_heads,
            o.feedforward,
            layers=o.dummy_layers,
            dropout=o.dropout,
            count=o.dummies,
        ),
        prompts=o.prompts,
        chosen=o.prompts_chosen,
        mask=o.t2v_mask,
        token_attends_text=o.sal_token_attends_text,
    )


def _aligner(o: CGDETROptions) -> MomentSentence:
    return MomentSentence(
        moment=LeadingTokens(
            o.hidden, o.heads, o.feedforward, layers=o.moment_layers, dropout=o.dropout
        ),
        sentence=LeadingTokens(
            o.hidden, o.text_heads, o.feedforward, layers=o.sentence_layers, dropout=o.dropout
        ),
    )


def _terms(o: CGDETROptions) -> tuple[LossTerm, ...]:
    rank = ReleasedRank if o.false_negatives == "released" else RankTerm
    among: Literal["all", "found"] = "found" if o.false_negatives == "released" else "all"
    clips, words = o.saliency_weight, o.saliency_weight * o.attention_weight
    terms = (
        *moment_terms(o),
        MarginTerm(clips, margin=o.margin),
        rank(clips, against_negative=True),
        NegativePairTerm(clips * o.negative_weight, log=o.negative_log, among=among),
        MarginTerm(words, margin=o.margin, of="attention"),
        rank(words, against_negative=True, of="attention"),
        AttentionNegativeTerm(words * o.negative_weight, log=o.negative_log, among=among),
        AttentionCoverTerm(words, padding=o.padding),
        MomentSentenceTerm(
            o.ms_align_weight,
            dummy_labels=o.dummy_labels,
            log=o.negative_log,
            padding=o.padding,
        ),
        DistillTerm(o.distill_weight, padding=o.padding),
        OrthogonalTerm(o.orthogonal_weight),
    )
    return tuple(term for term in terms if term.weight)


CG_NAMES: tuple[Name, ...] = (
    (r"fuser\.prompts", "global_rep_token"),
    (r"fuser\.token_pos", "global_rep_pos"),
    (r"fuser\.dummies\.(token_pos|token)", lambda m: f"dummy_rep_{m[1].removeprefix('token_')}"),
    (
        r"aligners\.0\.moment\.(token_pos|token)",
        lambda m: f"moment_rep_{m[1].removeprefix('token_')}",
    ),
    (
        r"aligners\.0\.sentence\.(token_pos|token)",
        lambda m: f"sent_rep_{m[1].removeprefix('token_')}",
    ),
    (r"encoders\.types\.weight", "token_type_embeddings.weight"),
    *encoder_names("fuser.t2v", "transformer.t2v_encoder.layers"),
    *encoder_names("fuser.layers", "transformer.encoder.layers"),
    *encoder_names("fuser.dummies.layers", "txtproj_encoder.layers"),
    *encoder_names("aligners.0.moment.layers", "transformer.mcls_encoder.layers"),
    *encoder_names("aligners.0.sentence.layers", "scls_encoder.layers"),
    *dab_names("decoder", "transformer.decoder"),
    *LINEAGE_NAMES,
    *GLOBAL_DOT_NAMES,
)
"""Our names and the public ones."""

_PUBLIC = {
    **PUBLIC_OPTIONS,
    "t2v_layers": "t2v_layers",
    "num_dummies": "dummies",
    "dummy_layers": "dummy_layers",
    "moment_layers": "moment_layers",
    "sent_layers": "sentence_layers",
    "total_prompts": "prompts",
    "num_prompts": "prompts_chosen",
    "lw_wattn": "attention_weight",
    "lw_ms_align": "ms_align_weight",
    "lw_distill": "distill_weight",
}


def cg_options(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """Our options of the public ones, for CG-DETR and what extends it.

    The public code trains highlight sets by the saliency losses alone, and YouTube Highlights
    without those of the wrong text.
    """
    options = public_options(
        public,
        weights,
        names=_PUBLIC,
        allowed={"contrastive_align_loss": (False,)},
    )
    if "distill_weight" in options:  # one public weight for both
        options["orthogonal_weight"] = options["distill_weight"]
    dataset = public.get("dset_name")
    if dataset in _HIGHLIGHT_SETS:
        options |= dict.fromkeys(_NOT_OF_HIGHLIGHTS, 0.0)
    if dataset == "youtube_uni":
        options["negative_weight"] = 0.0
    return options


_HIGHLIGHT_SETS = ("youtube_uni", "tvsum")
_NOT_OF_HIGHLIGHTS = (
    *MOMENT_WEIGHTS,
    "ms_align_weight",
    "distill_weight",
    "orthogonal_weight",
)


def cg_unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    shapes, d = unused_text_position(recipe), recipe["hidden"]
    inputs = recipe["text_dim"]
    shapes |= {
        "txt_proj_linear.LayerNorm.weight": (inputs,),
        "txt_proj_linear.LayerNorm.bias": (inputs,),
        "txt_proj_linear.net.1.weight": (d, inputs),
        "txt_proj_linear.net.1.bias": (d,),
    }
    if recipe["decoder_layers"] == 1:
        shapes |= mlp_shapes("transformer.decoder.bbox_embed", d, d, 2, depth=3)
        shapes |= mlp_shapes("transformer.decoder.query_scale", d, d, d, depth=2)
    if not recipe["ms_align_weight"] and not recipe["distill_weight"]:
        shapes |= _unused_aligner(recipe)
    return shapes


def _unused_aligner(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tokens and layers of `MomentSentence`."""
    names = CGDETROptions.model_fields
    o = CGDETROptions(**{key: recipe[key] for key in names})
    layout = OfficialLayout(names=CG_NAMES, options=cg_options, unused=cg_unused)
    return {
        str(layout.public_name(f"aligners.0.{key}")): tuple(x.shape)
        for key, x in _aligner(o).state_dict().items()
    }


CG_RELEASE: Mapping[str, Any] = {
    "t2v_mask": "released",
    "sal_token_attends_text": False,
    "negatives": "next_if_other_video",
    "false_negatives": "released",
    "negative_log": "log",
    "negative_places": "right",
    "dummy_labels": "released",
    "padding": "counted",
    "width_floor": 0.0,
    "refine_zero": False,
    "decoding": "released",
}
"""What the `release` preset changes."""

CG_INERT = (
    r"decoder\.layers\.\d+\.(self|cross)_key(_pos)?\.bias",
    r"decoder\.layers\.0\.self_(query|key)(_pos)?\..*",
    r"decoder\.layers\.0\.self_value\.weight",
)
"""What is added to all keys alike cancels in the softmax; and the first content is zero, so that
layer 0 averages equal values, whoever attends to whom."""

MODELS.register("cg_detr")(
    ModelFamily(
        options=CGDETROptions,
        presets={
            "release": CG_RELEASE,
            "paper": {"negatives": "next_if_other_video"},
        },
        build=build,
        official=OfficialLayout(names=CG_NAMES, options=cg_options, unused=cg_unused),
        inert=CG_INERT,
    )
)
