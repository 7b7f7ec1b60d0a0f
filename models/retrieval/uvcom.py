"""UVCOM: Bridging the Gap, a Unified Video Comprehension Framework for Moment Retrieval and
Highlight Detection.

Xiao et al., CVPR 2024, https://arxiv.org/abs/2311.16464; public code
https://github.com/EasonXiao-888/UVCOM (commit 6faab33).

Clips read the words and words read the clips. Both are gathered into a few means each; clips then
exchange what they know with the means of the words (a random walk) and with their neighbours
(convolutions), and the mean of the clips that is most like those of the words is the global
token, whose scaled dot product with a clip is the clip's saliency. Slots that start from the
sentence give thirty moments. In training every video also sees a wrong text, from epoch
`choose_epoch` on one chosen by similarity, and video, clips and text are aligned.

What differs from the public code, as options; `fixed` is the default:

padding: `masked` keeps padding out of the means, the sentence, the convolutions, the random walk,
    the slots and the alignment of clips. `released` masks attention alone, so that what a sample
    gives depends on the longest of its batch. release: released.
slot_start: `apart` lets every slot start from the sentence and a learned vector of its own.
    `equal` adds those vectors at the end only: equal slots share every clip equally, so all take
    the mean of the clips and the attention learns nothing.
    release and paper: equal.
windows: which ground truth the clips are aligned with, `all` moments or the `first`, cut to
    whole clips. release: first.
negatives: `roll_other_video` takes wrong texts of other videos alone. `roll` takes the next
    sample's, and a chosen one may be the right text itself. release and paper: roll.
chosen: from `choose_epoch` on, the text that is the `least` or the `most` like the video. The
    code takes the least, the easiest choice; the most may describe the video as well.
    paper: most.
negative_places: as in `qd_detr`. release: right.
t2v_mask: `words` lets clips read all real words and words all real clips. `released` swaps heads
    and samples in a mask (`parts.attention.keys_allowed`). release: released.
video_projection: clips are projected by as many layers as words, `as_text`. `released`: by two
    whatever `projection_layers` says, and the layer without a ReLU is the last of the words', so
    that with 1 and with 3 no clip has a feature below zero. release: released.
negative_log: `softplus` is exact. `log` computes −log(1 − σ(s)) as written, infinite from s of
    about 17 on. release: log.
width_floor: smallest anchor width that the decoder divides by; 0 divides by a closed anchor.
    release: 0.
refine_zero: anchor refinement starts as the identity. The public code asks for that and then
    overwrites it with the initialisation of all weights. release: off.
decoding: as in `qd_detr`. release: released.

Not here: `cross_fusion`, an ablation, and the audio projection. Public checkpoints also hold
`global_rep_token`, which is never read, and `txt_position_embed.*`, which is only with
`use_txt_pos` (here `text_position: learned`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm, NegativePairTerm, RankTerm
from models.retrieval.flow import Memory, Tokens
from models.retrieval.lineage import (
    PUBLIC_OPTIONS,
    LineageOptions,
    blueprint_of,
    encoders_of,
    highlights_alone,
    moment_terms,
    public_options,
    unused_text_position,
)
from models.retrieval.official import (
    GLOBAL_DOT_NAMES,
    LINEAGE_NAMES,
    OfficialLayout,
    Weights,
    dab_names,
    encoder_names,
    mlp_shapes,
    slot_names,
)
from models.retrieval.parts.attention import (
    EncoderLayer,
    TextToVideoLayer,
    keys_allowed,
    masked_mean,
    with_first,
    xavier,
)
from models.retrieval.parts.clustering import expectation_means, most_alike, random_walk, unit
from models.retrieval.parts.conv_blocks import NeighbourConvs
from models.retrieval.parts.dab import DABDecoder
from models.retrieval.parts.heads import AnchorMomentHead, GlobalDotSaliency
from models.retrieval.parts.likeness import (
    ChosenText,
    LikeClipsTerm,
    LikeVideoTerm,
    rows_that_count,
)
from models.retrieval.parts.projection import MLP
from models.retrieval.parts.slots import SentenceSlots, SlotPadding
from models.retrieval.stages import Fuser, LossTerm, Parts

__all__ = ["IntegrationFuser", "UVCOMOptions"]

Rows = tuple[Tensor, Tensor, Tensor]  # features, their places, which are real


class UVCOMOptions(LineageOptions):
    """Options of UVCOM beside those of the lineage.

    `encoder_layers` counts the layers of all three encoders, as in the public code.

    Args:
        text_means: means of the words.
        video_means: means of the clips.
        mean_rounds: rounds of expectation maximisation.
        slot_rounds: rounds of slot attention.
        slot_hidden: features inside the MLP of the slots.
        similarity_hidden: features inside the MLPs of the alignment.
        similarity_weight: of both alignment losses together.
        choose_epoch: first epoch in which the wrong text is chosen by similarity.
        padding: see the module.
        slot_start: see the module.
        windows: see the module.
        negatives: see the module.
        chosen: see the module.
        negative_places: see the module.
        t2v_mask: see the module.
        video_projection: see the module; with two layers both are the same.
        negative_log: see the module.
        width_floor: see the module.
        refine_zero: see the module.
    """

    encoder_layers: int = Field(3, ge=1)
    decoder_layers: int = Field(3, ge=1)
    queries: int = Field(30, ge=1)
    text_means: int = Field(5, ge=1)
    video_means: int = Field(30, ge=1)
    mean_rounds: int = Field(5, ge=1)
    slot_rounds: int = Field(5, ge=1)
    slot_hidden: int = Field(1024, ge=1)
    similarity_hidden: int = Field(1024, ge=1)
    similarity_weight: float = Field(1.0, ge=0)
    choose_epoch: float = Field(80, ge=0)
    padding: SlotPadding = "masked"
    slot_start: Literal["apart", "equal"] = "apart"
    windows: Literal["all", "first"] = "all"
    negatives: Literal["roll", "roll_other_video"] = "roll_other_video"
    chosen: Literal["least", "most"] = "least"
    negative_places: Literal["own", "right"] = "own"
    t2v_mask: Literal["words", "released"] = "words"
    video_projection: Literal["as_text", "released"] = "as_text"
    negative_log: Literal["softplus", "log"] = "softplus"
    width_floor: float = Field(1e-3, ge=0)
    refine_zero: bool = True


class IntegrationFuser(Fuser):
    """Clips and words read each other, meet through their means, and are encoded together.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forwards.
        layers: layers of each of the three encoders.
        dropout: everywhere.
        text_means: means of the words.
        video_means: means of the clips.
        rounds: of expectation maximisation.
        similar_hidden: features inside the networks of the alignment.
        padding: whether padding is kept out of means and convolutions, see the module.
        mask: which rows are read, see `keys_allowed`.
    """

    provides = frozenset({"clip", "kv", "global_token", "sentence", "similar"})

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        layers: int,
        dropout: float,
        text_means: int,
        video_means: int,
        rounds: int,
        similar_hidden: int,
        padding: SlotPadding,
        mask: Literal["keys", "released"],
    ) -> None:
        super().__init__()
        shape = (width, heads, hidden, dropout)
        self.t2v = nn.ModuleList(TextToVideoLayer(*shape) for _ in range(layers))
        self.v2t = nn.ModuleList(TextToVideoLayer(*shape) for _ in range(layers))
        self.layers = nn.ModuleList(EncoderLayer(*shape) for _ in range(layers))
        self.sentence = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.local = NeighbourConvs(width, masked=padding == "masked")
        self.text_means = nn.Parameter(torch.empty(text_means, width))
        self.video_means = nn.Parameter(torch.empty(video_means, width))
        self.similar_video = MLP(width, similar_hidden, width, 3)
        self.similar_text = MLP(width, similar_hidden, width, 3)
        xavier(self)
        self.token_pos = nn.Parameter(torch.randn(width))
        self.heads, self.rounds, self.padding = heads, rounds, padding
        self.mask: Literal["keys", "released"] = mask
        self.mixes_samples = mask == "released"

    def forward(self, tokens: Tokens) -> Memory:
        """Memory on the clip axis with its `global_token`.

        Its extras are `sentence` (B, d), and unit vectors in the space of the alignment:
        `similar_video` (B, d), `similar_clips` (B, L, d), `similar_text` (B, d).
        """
        video, words = self._read_each_other(tokens)
        counted = rows_that_count(tokens.video_mask, self.padding)
        spoken = rows_that_count(tokens.text_mask, self.padding)
        sentence = masked_mean(self.sentence(words), spoken)
        about = self._means(self.text_means, words, spoken)
        whole = most_alike(self._means(self.video_means, video, counted), about)
        local = video + self.local(video, tokens.video_mask)
        clips = video + random_walk(local, about, counted)

        x, pos = with_first(whole, clips), with_first(self.token_pos, tokens.video_pos)
        mask = functional.pad(tokens.video_mask, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, pos, mask)
        found, keep, place = x[:, 1:], tokens.video_mask, tokens.video_pos
        extras = {
            "sentence": sentence,
            "similar_video": unit(self.similar_video(x[:, 0])),
            "similar_clips": unit(self.similar_video(clips)),
            "similar_text": unit(self.similar_text(sentence)),
        }
        return Memory(found, keep, place, found, keep, place, global_token=x[:, 0], extras=extras)

    def _read_each_other(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Clips (B, L, d) that have read the words, and words (B, T, d) that have read the clips
        as they were."""
        clips = (tokens.video, tokens.video_pos, tokens.video_mask)
        words = (tokens.text, tokens.text_pos, tokens.text_mask)
        return self._read(self.t2v, clips, words), self._read(self.v2t, words, clips)

    def _read(self, layers: nn.ModuleList, reader: Rows, read: Rows) -> Tensor:
        (x, pos, mask), (other, other_pos, other_mask) = reader, read
        allowed = keys_allowed(mask, other_mask, heads=self.heads, mask=self.mask)
        for layer in layers:
            x = layer(x, pos, other, other_pos, allowed)
        return x

    def _means(self, means: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        start = means.expand(len(rows), -1, -1)
        return expectation_means(start, rows, mask, rounds=self.rounds)


def build(dims: Dims, options: UVCOMOptions) -> Blueprint:
    """The parts of UVCOM."""
    o = options
    fuser = IntegrationFuser(
        o.hidden,
        o.heads,
        o.feedforward,
        layers=o.encoder_layers,
        dropout=o.dropout,
        text_means=o.text_means,
        video_means=o.video_means,
        rounds=o.mean_rounds,
        similar_hidden=o.similarity_hidden,
        padding=o.padding,
        mask="keys" if o.t2v_mask == "words" else "released",
    )
    slots = SentenceSlots(
        o.queries,
        o.hidden,
        o.slot_hidden,
        rounds=o.slot_rounds,
        apart=o.slot_start == "apart",
        padding=o.padding,
    )
    decoder = DABDecoder(
        o.hidden,
        o.heads,
        o.feedforward,
        layers=o.decoder_layers,
        init=slots,
        dropout=o.dropout,
        width_floor=o.width_floor,
        refine_zero=o.refine_zero,
        refine_last=True,
    )
    wrong = ChosenText(
        o.negatives,
        chosen=o.chosen,
        from_epoch=o.choose_epoch,
        padding=o.padding,
        places=o.negative_places,
    )
    parts = Parts(
        encoders=encoders_of(dims, o, video_depth=2 if o.video_projection == "released" else None),
        fuser=fuser,
        decoder=decoder,
        heads=(AnchorMomentHead(o.hidden), GlobalDotSaliency(o.hidden)),
        passes=(wrong,),
        terms=_terms(o),
    )
    return blueprint_of(parts, o)


def _terms(o: UVCOMOptions) -> tuple[LossTerm, ...]:
    return (
        *moment_terms(o),
        MarginTerm(o.saliency_weight, margin=o.margin),
        RankTerm(o.saliency_weight, against_negative=True),
        NegativePairTerm(o.saliency_weight, log=o.negative_log),
        LikeVideoTerm(o.similarity_weight / 2),
        LikeClipsTerm(o.similarity_weight / 2, windows=o.windows, padding=o.padding),
    )


_NAMES = (
    (r"fuser\.token_pos", "global_rep_pos"),
    (r"fuser\.text_means", "CIM.txt_mu"),
    (r"fuser\.video_means", "CIM.vid_mu"),
    (r"fuser\.sentence\.(.*)", r"CIM.feature_proj.\1"),
    (r"fuser\.local\.(.*)", r"CIM.conv_local.\1"),
    (r"fuser\.similar_video\.(.*)", r"CIM.sim_vid.\1"),
    (r"fuser\.similar_text\.(.*)", r"CIM.sim_txt.\1"),
    *encoder_names("fuser.t2v", "CIM.t2v_encoder.layers"),
    *encoder_names("fuser.v2t", "CIM.v2t_encoder.layers"),
    *encoder_names("fuser.layers", "CIM.GKA_Module.layers"),
    *slot_names("decoder.init.slots", "CIM.processer_for_tgt"),
    (r"decoder\.init\.place\.weight", "CIM.decoder.span_embed.weight"),
    *dab_names("decoder", "CIM.decoder"),
    *LINEAGE_NAMES,
    *GLOBAL_DOT_NAMES,
)

_PUBLIC_OPTIONS = {
    **PUBLIC_OPTIONS,
    "n_txt_mu": "text_means",
    "n_visual_mu": "video_means",
    "em_iter": "mean_rounds",
    "sim_loss_coef": "similarity_weight",
    "neg_choose_epoch": "choose_epoch",
}


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    # The public code has a list of three projections to take from.
    allowed = {"cross_fusion": (False,), "a_feat_dir": (None,), "n_input_proj": (1, 2, 3)}
    options = public_options(public, weights, names=_PUBLIC_OPTIONS, allowed=allowed)
    return options | highlights_alone(public)


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    shapes, d = unused_text_position(recipe), recipe["hidden"]
    shapes["global_rep_token"] = (d,)
    if recipe["decoder_layers"] == 1:
        shapes |= mlp_shapes("CIM.decoder.query_scale", d, d, d, depth=2)
    return shapes


_EQUAL_SLOTS = (r"decoder\.init\.slots\.(norm_slots|query|key)\..*",)

MODELS.register("uvcom")(
    ModelFamily(
        options=UVCOMOptions,
        presets={
            "release": {
                "padding": "released",
                "slot_start": "equal",
                "windows": "first",
                "negatives": "roll",
                "negative_places": "right",
                "t2v_mask": "released",
                "video_projection": "released",
                "negative_log": "log",
                "width_floor": 0.0,
                "refine_zero": False,
                "decoding": "released",
            },
            "paper": {"slot_start": "equal", "negatives": "roll", "chosen": "most"},
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused),
        # What is added to all keys alike, or to all slots of a clip, cancels in the softmax.
        inert=(
            r"decoder\.layers\.\d+\.(self|cross)_key(_pos)?\.bias",
            r"decoder\.init\.slots\.(norm_slots|query)\.bias",
        ),
        inert_in={"release": _EQUAL_SLOTS, "paper": _EQUAL_SLOTS},
    )
)
