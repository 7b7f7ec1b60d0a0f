"""QD-DETR: Query-Dependent Video Representation for Moment Retrieval and Highlight Detection.

Moon et al., CVPR 2023, https://arxiv.org/abs/2303.13874; public code
https://github.com/wjun0830/QD-DETR (commit 56c63b2).

Clips attend to words (text-to-video encoder), then to each other together with a learned global
token, whose scaled dot product with a clip is the clip's saliency. A decoder with learned anchors
gives ten moments. In training every video also sees a wrong text, under which nothing is salient.

What differs from the public code, as options; `fixed` is the default:

t2v_mask: `words` lets clips read all real words. `released`: padding of another sample hides
    words, because heads and samples are swapped in a mask (`parts.attention.keys_allowed`).
    release: released.
negatives: `roll_other_video` takes the text of the next sample of another video. `roll` takes the
    next sample's, which may be on the same video and with one sample is the right text.
    release and paper: roll.
negative_log: `softplus` is exact. `log` computes −log(1 − σ(s)) as written, infinite from s of
    about 17 on. release: log.
negative_places: a wrong text has its `own` learned places. `right`: those of the right text, which
    matters with `text_position: learned` only. release: right.
width_floor: smallest anchor width that the decoder divides by; 0 divides by a closed anchor.
    release: 0.
refine_zero: anchor refinement starts as the identity. The public code asks for that and then
    overwrites it with the initialisation of all weights. release: off.
decoding: `grid` reads spans in the unit in which they are trained. `released` reads them in units
    of the duration and rounds to whole clips (`Decoding.released`). release: released.

The public checkpoints hold `txt_position_embed.*`, which their code does not read unless
`use_txt_pos` (here `text_position: learned`) is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm, NegativePairTerm, RankTerm
from models.retrieval.flow import Memory, Tokens
from models.retrieval.lineage import (
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
)
from models.retrieval.parts.attention import (
    EncoderLayer,
    TextToVideoLayer,
    keys_allowed,
    with_first,
    xavier,
)
from models.retrieval.parts.dab import DABDecoder, LearnedAnchors
from models.retrieval.parts.heads import AnchorMomentHead, GlobalDotSaliency
from models.retrieval.parts.negatives import WrongText
from models.retrieval.stages import Fuser, LossTerm, Parts

__all__ = ["QDDETROptions", "TextToVideoFuser"]


class QDDETROptions(LineageOptions):
    """Options of QD-DETR beside those of the lineage.

    Args:
        t2v_layers: text-to-video layers.
        t2v_mask: see the module.
        negatives: see the module.
        negative_log: see the module.
        negative_places: see the module.
        width_floor: see the module.
        refine_zero: see the module.
    """

    t2v_layers: int = Field(2, ge=1)
    t2v_mask: Literal["words", "released"] = "words"
    negatives: Literal["roll", "roll_other_video"] = "roll_other_video"
    negative_log: Literal["softplus", "log"] = "softplus"
    negative_places: Literal["own", "right"] = "own"
    width_floor: float = Field(1e-3, ge=0)
    refine_zero: bool = True


class TextToVideoFuser(Fuser):
    """Clips read the words, then clips and a learned global token read each other.

    The global token does not read the words directly.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forwards.
        t2v_layers: text-to-video layers.
        layers: layers over clips and global token.
        dropout: everywhere.
        mask: which words a clip may read, see `keys_allowed`.
    """

    provides = frozenset({"clip", "kv", "global_token"})

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        t2v_layers: int,
        layers: int,
        dropout: float,
        mask: Literal["words", "released"],
    ) -> None:
        super().__init__()
        shape = (width, heads, hidden, dropout)
        self.t2v = nn.ModuleList(TextToVideoLayer(*shape) for _ in range(t2v_layers))
        self.layers = nn.ModuleList(EncoderLayer(*shape) for _ in range(layers))
        xavier(self)
        self.token = nn.Parameter(torch.randn(width))
        self.token_pos = nn.Parameter(torch.randn(width))
        self.heads, self.mask = heads, mask
        self.mixes_samples = mask == "released"

    def forward(self, tokens: Tokens) -> Memory:
        """Memory on the clip axis with its `global_token`; the decoder attends to the clips."""
        clips, place = tokens.video, tokens.video_pos
        allowed = keys_allowed(
            tokens.video_mask,
            tokens.text_mask,
            heads=self.heads,
            mask="keys" if self.mask == "words" else "released",
        )
        for layer in self.t2v:
            clips = layer(clips, place, tokens.text, tokens.text_pos, allowed)
        x = with_first(self.token, clips)
        pos = with_first(self.token_pos, place)
        mask = nn.functional.pad(tokens.video_mask, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, pos, mask)
        clips, keep = x[:, 1:], tokens.video_mask
        return Memory(clips, keep, place, clips, keep, place, global_token=x[:, 0])


def build(dims: Dims, options: QDDETROptions) -> Blueprint:
    """The parts of QD-DETR."""
    o = options
    fuser = TextToVideoFuser(
        o.hidden,
        o.heads,
        o.feedforward,
        t2v_layers=o.t2v_layers,
        layers=o.encoder_layers,
        dropout=o.dropout,
        mask=o.t2v_mask,
    )
    decoder = DABDecoder(
        o.hidden,
        o.heads,
        o.feedforward,
        layers=o.decoder_layers,
        init=LearnedAnchors(o.queries, o.hidden),
        dropout=o.dropout,
        width_floor=o.width_floor,
        refine_zero=o.refine_zero,
    )
    parts = Parts(
        encoders=encoders_of(dims, o),
        fuser=fuser,
        decoder=decoder,
        heads=(AnchorMomentHead(o.hidden), GlobalDotSaliency(o.hidden)),
        passes=(WrongText(o.negatives, places=o.negative_places),),
        terms=_terms(o),
    )
    return blueprint_of(parts, o)


def _terms(o: QDDETROptions) -> tuple[LossTerm, ...]:
    return (
        *moment_terms(o),
        MarginTerm(o.saliency_weight, margin=o.margin),
        RankTerm(o.saliency_weight, against_negative=True),
        NegativePairTerm(o.saliency_weight, log=o.negative_log),
    )


_NAMES = (
    (r"fuser\.token(_pos)?", lambda m: "global_rep_pos" if m[1] else "global_rep_token"),
    *encoder_names("fuser.t2v", "transformer.t2v_encoder.layers"),
    *encoder_names("fuser.layers", "transformer.encoder.layers"),
    *dab_names("decoder", "transformer.decoder"),
    *LINEAGE_NAMES,
    *GLOBAL_DOT_NAMES,
)


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    options = public_options(public, weights, allowed={"contrastive_align_loss": (False,)})
    options |= highlights_alone(public)
    t2v = {key.split(".")[3] for key in weights if key.startswith("transformer.t2v_encoder.layers")}
    return options | {"t2v_layers": max(1, len(t2v))}


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    shapes, d = unused_text_position(recipe), recipe["hidden"]
    if recipe["decoder_layers"] == 1:
        shapes |= mlp_shapes("transformer.decoder.bbox_embed", d, d, 2, depth=3)
        shapes |= mlp_shapes("transformer.decoder.query_scale", d, d, d, depth=2)
    return shapes


MODELS.register("qd_detr")(
    ModelFamily(
        options=QDDETROptions,
        presets={
            "release": {
                "t2v_mask": "released",
                "negatives": "roll",
                "negative_log": "log",
                "negative_places": "right",
                "width_floor": 0.0,
                "refine_zero": False,
                "decoding": "released",
            },
            "paper": {"negatives": "roll"},
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused),
        # What is added to all keys alike cancels in the softmax; and the first content is zero,
        # so layer 0 averages equal values, whoever attends to whom.
        inert=(
            r"decoder\.layers\.\d+\.(self|cross)_key(_pos)?\.bias",
            r"decoder\.layers\.0\.self_(query|key)(_pos)?\..*",
            r"decoder\.layers\.0\.self_value\.weight",
        ),
    )
)
