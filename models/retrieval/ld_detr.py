"""LD-DETR: Loop Decoder DEtection TRansformer for Video Moment Retrieval and Highlight Detection.

Zhao et al., 2025, https://arxiv.org/abs/2501.10787; public code
https://github.com/qingchen239/ld-detr (commit 9c50767).

TR-DETR (`tr_detr`, whose options it shares) with another alignment, fuser and decoder: Distill
Align (`parts.distill`) compares with a queue of earlier samples; the Convolutional Fuser reads
clips and words as TR-DETR does, then runs residual convolutions between two encoders; the Loop
Decoder feeds its output back into itself.

What differs from the public code beside the options of `tr_detr`; `fixed` is the default:

loops: how often the decoder runs, 3. The public code returns within its loop, so that one runs
    whatever its option says. release: 1; with 3 it is what the public code was meant to be.
conv_mask: `zero` keeps padding out of the convolutions and their batch norms; `none` as released.
    release: none.
updates: `step` moves the slow encoders and the queue after every optimiser step; `forward`, as
    released, whenever the alignment loss is computed, and leaves the queue alone if its length is
    no multiple of the batch. release: forward.
queue_mask: `same_sample` leaves other keys of a sample out of its contrast, `same_video` those of
    its video, `none` no key. release and paper: none.
queue_from: of several processes the queue takes the keys of `all_processes` in order of rank; of
    the `first_process` alone under code that was written for one. release: first_process.
queue_length: 8192 keys. The published 65536 are nine times the training set of QVHighlights.
    release and paper: 65536.
extract_relu: a ReLU ends the extractor of the fuser; Eq. 20 has none. paper: off.
label: paper: cross_entropy (Eq. 40), with the background's weight of the lineage.
saliency_scale: the sum over the features is divided by their `root`, or by their number, the
    `width` (Eq. 38). paper: width.
moment_clips: the GRU reads the clips as `encoded`, or "the decoded features" of the `memory`
    (Eq. 34). paper: memory.

In all presets: attention is scaled by the root of a head's width (Eq. 24 divides by d), spans are
centre and width (Eq. 32 says start and end), and the two equations of Distill Align that cannot be
meant are read as in `parts.distill`.

The public checkpoints hold `txt_position_embed.*`, which their code does not read unless
`use_txt_pos` (here `text_position: learned`) is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.flow import Memory, Tokens
from models.retrieval.lineage import (
    PUBLIC_OPTIONS,
    blueprint_of,
    encoders_of,
    highlights_alone,
    unused_text_position,
)
from models.retrieval.official import (
    LINEAGE_NAMES,
    OfficialLayout,
    Weights,
    dab_names,
    encoder_names,
    supported,
    width_of,
)
from models.retrieval.parts.attention import EncoderLayer, TextToVideoLayer, keys_allowed, xavier
from models.retrieval.parts.context_query import ContextQuery
from models.retrieval.parts.conv_blocks import ConvBlock, ConvMask
from models.retrieval.parts.distill import (
    DistillAlignTerm,
    QueueFrom,
    QueueMask,
    SimilarityTerm,
)
from models.retrieval.parts.gru_saliency import MomentGRUSaliency, SummedLinear
from models.retrieval.parts.heads import AnchorMomentHead
from models.retrieval.stages import Encoders, Fuser, LossTerm, Parts
from models.retrieval.tr_detr import (
    MomentGuidedOptions,
    anchor_decoder,
    context_query_names,
    moment_guided_terms,
    unused_refinement,
)

__all__ = ["ConvolutionalFuser", "LDDETROptions"]


class LDDETROptions(MomentGuidedOptions):
    """Options of LD-DETR beside those it shares with TR-DETR.

    Args:
        t2v_layers: text-to-video layers; 0, here and below, is an ablation of the paper.
        encoder_layers: layers of the encoder before the convolutions.
        second_layers: encoder layers after the convolutions.
        conv_blocks: residual blocks of two convolutions.
        conv_mask: see the module.
        extract_relu: see the module.
        loops: see the module.
        saliency_scale: see the module.
        moment_clips: see the module.
        align_weight: of the alignment loss.
        sim_weight: of the similarity loss.
        alpha: share of the soft target in the alignment.
        momentum: how much of the slow encoders stays in an update.
        momentum_dropout: whether the slow encoders drop out features in training, as released.
        queue_length: keys of earlier batches; 0 for none.
        queue_mask: see the module.
        queue_from: see the module.
        updates: see the module.
        sim_stop_grad: whether what the similarity loss compares with gets no gradient.
    """

    t2v_layers: int = Field(2, ge=0)
    encoder_layers: int = Field(2, ge=0)
    second_layers: int = Field(2, ge=0)
    conv_blocks: int = Field(5, ge=0)
    conv_mask: ConvMask = "zero"
    extract_relu: bool = True
    loops: int = Field(3, ge=1)
    saliency_scale: Literal["root", "width"] = "root"
    moment_clips: Literal["encoded", "memory"] = "encoded"
    align_weight: float = Field(0.6, ge=0)
    sim_weight: float = Field(0.6, ge=0)
    alpha: float = Field(0.4, ge=0, le=1)
    momentum: float = Field(0.995, ge=0, le=1)
    momentum_dropout: bool = True
    queue_length: int = Field(8192, ge=0)
    queue_mask: QueueMask = "same_sample"
    queue_from: QueueFrom = "all_processes"
    updates: Literal["step", "forward"] = "step"
    sim_stop_grad: bool = False


class ConvolutionalFuser(Fuser):
    """Clips and words read each other, then convolutions between two encoders (§3.3).

    The memory's extra `extracted` (B, L, d) are the clips after the extractor.

    Args:
        o: options.
    """

    provides = frozenset({"clip", "kv", "extracted"})
    mixes_samples = True

    def __init__(self, o: LDDETROptions) -> None:
        super().__init__()
        shape = (o.hidden, o.heads, o.feedforward, o.dropout)
        self.query = ContextQuery(o.hidden, o.dropout, relu=o.extract_relu)
        self.t2v = nn.ModuleList(TextToVideoLayer(*shape) for _ in range(o.t2v_layers))
        self.first = nn.ModuleList(EncoderLayer(*shape) for _ in range(o.encoder_layers))
        self.blocks = nn.ModuleList(
            ConvBlock(o.hidden, mask=o.conv_mask, bias=True) for _ in range(o.conv_blocks)
        )
        self.second = nn.ModuleList(EncoderLayer(*shape) for _ in range(o.second_layers))
        for part in (self.t2v, self.first, self.second):
            xavier(part)
        self.heads = o.heads
        self.mask: Literal["keys", "released"] = "keys" if o.t2v_mask == "words" else "released"

    def forward(self, tokens: Tokens) -> Memory:
        """Memory on the clip axis; the decoder attends to the clips."""
        mask, place = tokens.video_mask, tokens.video_pos
        allowed = keys_allowed(mask, tokens.text_mask, heads=self.heads, mask=self.mask)
        clips = extracted = self.query(tokens.video, tokens.text, mask, tokens.text_mask)
        for layer in self.t2v:
            clips = layer(clips, place, tokens.text, tokens.text_pos, allowed)
        for layer in self.first:
            clips = layer(clips, place, mask)
        for block in self.blocks:
            clips = block(clips, mask)
        for layer in self.second:
            clips = layer(clips, place, mask)
        extras: dict[str, Tensor] = {"extracted": extracted}
        return Memory(clips, mask, place, clips, mask, place, extras=extras)


def build(dims: Dims, options: LDDETROptions) -> Blueprint:
    """The parts of LD-DETR."""
    o = options
    encoders = encoders_of(dims, o)
    decoder = anchor_decoder(o)
    decoder.loops = o.loops
    saliency = MomentGRUSaliency(
        o.hidden,
        moment=o.moment,
        reads=o.moment_clips,
        score=SummedLinear(o.hidden, o.saliency_scale),
    )
    parts = Parts(
        encoders=encoders,
        fuser=ConvolutionalFuser(o),
        decoder=decoder,
        heads=(AnchorMomentHead(o.hidden), saliency),
        terms=(*moment_guided_terms(o), *_alignment(o, encoders)),
    )
    return blueprint_of(parts, o)


def _alignment(o: LDDETROptions, encoders: Encoders) -> tuple[LossTerm, ...]:
    """Distill Align."""
    align = DistillAlignTerm(
        o.align_weight,
        encoders,
        o.hidden,
        queue_length=o.queue_length,
        queue_mask=o.queue_mask,
        alpha=o.alpha,
        momentum=o.momentum,
        momentum_dropout=o.momentum_dropout,
        pooling=o.pooling,
        updates=o.updates,
        queue_from=o.queue_from,
    )
    sim = SimilarityTerm(o.sim_weight, o.hidden, pooling=o.pooling, stop_gradient=o.sim_stop_grad)
    return align, sim


_FUSER = "convolutional_fuser"
_DECODER = "loop_decoder.transformer_decoder"
_MOMENTS = "prediction_heads.video_moment_retrieval_prediction_head"
_HIGHLIGHTS = "prediction_heads.highlight_detection_prediction_head"


_CONVS = {"conv": "conv", "norm": "bn"}


def _projection(ours: str, theirs: str) -> tuple[tuple[str, Any], ...]:
    """Names of a projection of features; the public code counts its layers from 1."""

    def name(kind: str) -> Any:
        return lambda m: f"{theirs.replace('*', m[1])}.{kind}{int(m[2]) + 1}.{m[3]}"

    return (
        (rf"{ours}\.(video|text)\.norms\.(\d)\.(.*)", name("norm")),
        (rf"{ours}\.(video|text)\.linears\.(\d)\.(.*)", name("linear")),
    )


_NAMES = (
    *_projection("encoders", "*_encoder"),
    *_projection(r"criterion\.terms\.distill_align\.momentum", "momentum_*_encoder"),
    (r"criterion\.terms\.distill_align\.temperature", "distill_align.temp"),
    (r"criterion\.terms\.distill_align\.queue\.video", "distill_align.vid_queue"),
    (r"criterion\.terms\.distill_align\.queue\.text", "distill_align.txt_queue"),
    (r"criterion\.terms\.distill_align\.queue\.pointer", "distill_align.queue_ptr"),
    (r"criterion\.terms\.distill_sim\.predictor\.(.*)", r"distill_align.h.\1"),
    *context_query_names(
        r"fuser\.query",
        attention=f"{_FUSER}.v2t_extractor",
        mix=f"{_FUSER}.v2t_extractor.cqa_linear",
        pool=f"{_FUSER}.v2t_extractor.weight",
        join=f"{_FUSER}.v2t_extractor.conv1d",
    ),
    *encoder_names("fuser.t2v", f"{_FUSER}.t2v_encoder.layers"),
    *encoder_names("fuser.first", f"{_FUSER}.transformer_encoder1.layers"),
    *encoder_names("fuser.second", f"{_FUSER}.transformer_encoder2.layers"),
    (
        r"fuser\.blocks\.(\d+)\.(conv|norm)(\d)\.(.*)",
        lambda m: f"{_FUSER}.convolutional_block.blocks.{m[1]}.{_CONVS[m[2]]}{m[3]}.{m[4]}",
    ),
    *dab_names("decoder", _DECODER),
    (r"heads\.0\.label\.(.*)", rf"{_MOMENTS}.class_embed.\1"),
    (
        r"heads\.0\.span\.layers\.(\d)\.(.*)",
        lambda m: f"{_MOMENTS}.span_embed{int(m[1]) + 1}.{m[2]}",
    ),
    (r"heads\.1\.gru\.(.*)", rf"{_HIGHLIGHTS}.gru.\1"),
    (r"heads\.1\.score\.(.*)", rf"{_HIGHLIGHTS}.saliency_proj.\1"),
    *LINEAGE_NAMES,
)

# Not among them: heads, feed-forward, dropouts and layers of the projections, which are built in;
# `num_decoder_loops`, which has no effect; `eos_coef`, which the focal loss does not read; and
# `max_q_l`, because the table of word places has 32 rows whatever it says.
_READ = (
    *("hidden_dim", "num_queries", "aux_loss", "lw_saliency", "saliency_margin"),
    *("span_loss_coef", "giou_loss_coef", "label_loss_coef"),
    *("set_cost_span", "set_cost_giou", "set_cost_class"),
)
_PUBLIC = {key: PUBLIC_OPTIONS[key] for key in _READ} | {
    "num_v2t_encoder_layers": "t2v_layers",
    "num_encoder1_layers": "encoder_layers",
    "num_convolutional_blocks": "conv_blocks",
    "num_encoder2_layers": "second_layers",
    "num_decoder_layers": "decoder_layers",
    "queue_length": "queue_length",
    "distillation_coefficient": "alpha",
    "align_loss_coef": "align_weight",
    "sim_loss_coef": "sim_weight",
}


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    supported(public, {"position_embedding": ("sine",), "span_loss_type": ("l1",)})
    options = {ours: public[theirs] for theirs, ours in _PUBLIC.items() if theirs in public}
    if public.get("use_txt_pos"):
        options["text_position"] = "learned"
    if without := highlights_alone(public):
        options |= without | {"align_weight": 0.0, "sim_weight": 0.0}
    return options | {
        "video_dim": width_of(weights, "video_encoder.norm1.weight"),
        "text_dim": width_of(weights, "text_encoder.norm1.weight"),
    }


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe, and what losses of weight 0
    would have."""
    shapes = unused_text_position(recipe) | unused_refinement(recipe, _DECODER)
    d, length = recipe["hidden"], recipe["queue_length"]
    if recipe["sim_weight"] == 0:
        shapes |= {"distill_align.h.weight": (d, d), "distill_align.h.bias": (d,)}
    if recipe["align_weight"] == 0:
        shapes |= {f"distill_align.{name}_queue": (d, length) for name in ("vid", "txt")}
        shapes |= {"distill_align.temp": (), "distill_align.queue_ptr": (1,)}
        for name, width in (("video", recipe["video_dim"]), ("text", recipe["text_dim"])):
            prefix = f"momentum_{name}_encoder"
            for i, inputs in ((1, width), (2, d)):
                shapes |= {f"{prefix}.norm{i}.{kind}": (inputs,) for kind in ("weight", "bias")}
                shapes |= {f"{prefix}.linear{i}.weight": (d, inputs)}
                shapes |= {f"{prefix}.linear{i}.bias": (d,)}
    return shapes


MODELS.register("ld_detr")(
    ModelFamily(
        options=LDDETROptions,
        presets={
            "release": {
                "t2v_mask": "released",
                "moment": "released",
                "pooling": "padded",
                "loops": 1,
                "conv_mask": "none",
                "updates": "forward",
                "queue_mask": "none",
                "queue_from": "first_process",
                "queue_length": 65536,
                "width_floor": 0.0,
                "refine_zero": False,
                "decoding": "released",
            },
            "paper": {
                "queue_mask": "none",
                "queue_length": 65536,
                "extract_relu": False,
                "label": "cross_entropy",
                "background_weight": 0.1,
                "saliency_scale": "width",
                "moment_clips": "memory",
            },
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused, unseen={}),
        # What is added to all keys alike cancels in the softmax, a batch norm takes away what is
        # added to all clips, and saliency is only ever compared with saliency.
        inert=(
            r"decoder\.layers\.\d+\.(self|cross)_key(_pos)?\.bias",
            r"fuser\.blocks\.\d+\.conv\d\.bias",
            r"heads\.1\.score\.bias",
        ),
        # In the only loop the first content is zero, as in QD-DETR.
        inert_in={
            "release": (
                r"decoder\.layers\.0\.self_(query|key)(_pos)?\..*",
                r"decoder\.layers\.0\.self_value\.weight",
            )
        },
    )
)
