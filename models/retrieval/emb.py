"""EMB: Video Activity Localisation with Uncertainties in Temporal Boundary.

Huang et al., ECCV 2022, https://arxiv.org/abs/2206.12923; public code
https://github.com/Raymond-sci/EMB (commit a81e57a). The span base of TEA (Cai et al., Pattern
Recognition 166, 2025), whose text describes it with other details.

Clips and words read themselves, each other, and themselves again, where clips are guided by the
maxima of all before and all after them. Trilinear attention joins the two; a highlight weighs the
clips; a conditioned pair of bidirectional LSTMs gives distributions over the first and the last
clip. A second branch scores a map of proposals in blocks of eight clips, whose best one widens the
annotated edges in training.

A prediction is one of the `queries` best pairs i ≤ j of p_start(i) · p_end(j): the softmax of its
logits has that product at index 0, its span is i/n to (j + 1)/n of the grid. Saliency is the
highlight in [0, 1]. `extras` hold `start_logits`, `end_logits`, `highlight_logits` (B, N) on the
grid of at most `max_clips` places, `proposals` (B, P, 2) as first and last place, their mask and
`proposal_logits`. A sample with several moments is trained on the longest.

What differs between the public code (`release`), TEA's text (`paper`) and `fixed`, the default,
which is the public code with its defects mended:

pooling: of videos of more than `max_clips` clips. `mean` over ranges of clips. `released` is that
    without the last clip. `max` is TEA's. `none` refuses them. release: released. paper: max.
order: `self_cross_self` (the code): clips, words and proposals read themselves, then each other
    as they were, then themselves. `self_cross` (TEA Eq. 9): video reads itself, then the words;
    the words read themselves, then that video. paper: self_cross.
similarity: of clips and words in the fusion, `trilinear` or `scaled_dot`. paper: scaled_dot.
threshold: IoU that the widening proposal must have with the annotation: `annealed` from 1 to
    `elastic_low` over `epochs`. `none` takes the best one, whatever it overlaps: TEA's equations by
    the word, whose text follows EMB here; edges that may widen to anywhere are not learned
    (docs/models.md), so no preset has it.
proposal_target: `scaled` makes 0 … 1 of the IoU between `target_low` and `target_high`; `iou` is
    the IoU itself. paper: iou.
highlight_end: `max` is the later of annotated and proposed end, `min` (the code) the earlier.
    release: min.
highlight_extend: share of the length that the highlight is longer on both sides. paper: 0.
highlight_foreground: weight of clips inside in the highlight loss. paper: 1.
end_index: `inclusive`, or `exclusive` (the code): the proposal's end is one clip late where it
    meets the annotated one, so that the set of ends always has one clip too many.
    release: exclusive.
tail_pad: value of the clips that the last block of eight lacks. `closed` is none. `zero` (the
    code, by a slip: −1e−30 for −1e30) wins over negative features, only in the longest video of
    a batch. release: zero.
longest: blocks of a proposal. `all` gives proposals of any length, `released` of at most 16 blocks,
    which are all of them up to 128 places. release: released.
end_guides: `clips` guides a proposal by the real clips of its first and last block. `released`
    takes the padded ones too, so that a sample depends on its batch. release: released.
decoding: `grid` reads spans in the unit in which they are trained, `released` in units of the
    duration. release: released.
words: `vectors` reads word vectors. `ids` reads (B, T) int64 of a table in the state dict, as the
    public checkpoints do; `load_official` chooses it, and `vocabulary` counts its rows. With
    `load_official(…, words="vectors")` the table is dropped: its vectors are GloVe's as they are,
    which then come with the batch, and the one learned vector, of unknown words, is lost.
clip_place: the last two columns of a clip's features, its place in the video, are `read`, or
    `ignored`: the public code is given none. `load_official` keeps `read` and takes the width from
    the tensors, for batches without those columns.

A public checkpoint reads a store by `words: vectors` and `clip_place: ignored`, on features that
are not normalised (`data.normalise: false`), as the public loader gives them.

Beside the model, the public training differs from TEA's text in the optimiser (AdamW with weight
decay 0.01, also of the norms; TEA: Adam), takes no seed, and chooses its checkpoint on the test
split. The public character embedding (`characters`, `character_dim`) is computed and not used.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily, Options
from models.retrieval.criterion import Criterion
from models.retrieval.decode import Decoding
from models.retrieval.emb_layout import EMB_LAYOUT, PLACE
from models.retrieval.parts.elastic import Elastic, HighlightTerm, LocationTerm, ProposalTerm
from models.retrieval.parts.guided_fuser import GuidedFuser
from models.retrieval.parts.span_heads import ProposalHead, SpanHead, TopSpansHead
from models.retrieval.parts.word_encoders import WordEncoders, WordTable
from models.retrieval.stages import LossTerm, Parts

__all__ = ["EMBOptions"]

_LONGEST_RELEASED = 16
"""Blocks of the longest proposal that the public code makes."""


class EMBOptions(Options):
    """Options of EMB.

    Args:
        hidden: features between the parts, even and a multiple of `heads`.
        heads: attention heads.
        attention_layers: attention units of every kind.
        proposal_layers: convolutions over the map; the public code has as many as units.
        block: clips of a block of the map.
        max_clips: places of the grid.
        queries: spans that are predicted.
        dropout: on features, in attention and on its branches.
        location_weight: of the loss of first and last clips.
        highlight_weight: of the highlight loss.
        proposal_weight: of the loss of the map.
        elastic_low: IoU that the proposal needs in the end.
        epochs: of the training, which the threshold is spread over.
        target_low: IoU at which a proposal's target is 0.
        target_high: IoU at which it is 1.
        pooling: see the module.
        order: see the module.
        similarity: see the module.
        threshold: see the module.
        proposal_target: see the module.
        highlight_end: see the module.
        highlight_extend: see the module.
        highlight_foreground: see the module.
        end_index: see the module.
        tail_pad: see the module.
        longest: see the module.
        end_guides: see the module.
        decoding: see the module.
        words: see the module.
        clip_place: see the module.
        vocabulary: rows of the table of words, with padding and the unknown word.
        characters: rows of the public table of characters.
        character_dim: its features.
    """

    hidden: int = Field(128, gt=0, multiple_of=2)
    heads: int = Field(8, gt=0)
    attention_layers: int = Field(1, ge=1)
    proposal_layers: int = Field(1, ge=1)
    block: int = Field(8, ge=1)
    max_clips: int = Field(128, ge=1)
    queries: int = Field(10, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    location_weight: float = Field(1.0, ge=0)
    highlight_weight: float = Field(5.0, ge=0)
    proposal_weight: float = Field(1.0, ge=0)
    elastic_low: float = Field(0.5, ge=0, le=1)
    epochs: int = Field(100, ge=1)
    target_low: float = Field(0.3, ge=0, le=1)
    target_high: float = Field(0.7, ge=0, le=1)
    pooling: Literal["mean", "max", "released", "none"] = "mean"
    order: Literal["self_cross_self", "self_cross"] = "self_cross_self"
    similarity: Literal["trilinear", "scaled_dot"] = "trilinear"
    threshold: Literal["annealed", "none"] = "annealed"
    proposal_target: Literal["scaled", "iou"] = "scaled"
    highlight_end: Literal["max", "min"] = "max"
    highlight_extend: float = Field(0.1, ge=0)
    highlight_foreground: float = Field(2.0, ge=0)
    end_index: Literal["inclusive", "exclusive"] = "inclusive"
    tail_pad: Literal["closed", "zero"] = "closed"
    longest: Literal["all", "released"] = "all"
    end_guides: Literal["clips", "released"] = "clips"
    decoding: Literal["grid", "released"] = "grid"
    words: Literal["vectors", "ids"] = "vectors"
    clip_place: Literal["read", "ignored"] = "read"
    vocabulary: int = Field(0, ge=0)
    characters: int = Field(0, ge=0)
    character_dim: int = Field(50, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} must be a multiple of heads {self.heads}")
        if self.target_low > self.target_high:
            raise ValueError(
                f"target_low {self.target_low} must not be above target_high {self.target_high}"
            )
        if self.words == "ids" and self.vocabulary < 2:
            raise ValueError(
                "words: ids needs a vocabulary of at least 2, padding and the unknown word"
            )
        return self


def build(dims: Dims, options: EMBOptions) -> Blueprint:
    """The parts of EMB."""
    o = options
    encoders = WordEncoders(
        dims.video - (PLACE if o.clip_place == "ignored" else 0),
        dims.text,
        o.hidden,
        dropout=o.dropout,
        size=o.max_clips,
        pooling=None if o.pooling == "none" else o.pooling,
        table=WordTable(o.vocabulary, dims.text) if o.words == "ids" else None,
    )
    fuser = GuidedFuser(
        o.hidden,
        o.heads,
        dropout=o.dropout,
        layers=o.attention_layers,
        size=o.max_clips,
        block=o.block,
        order=o.order,
        similarity=o.similarity,
        tail=None if o.tail_pad == "closed" else -1e-30,
        longest=None if o.longest == "all" else _LONGEST_RELEASED,
        padding_guides=o.end_guides == "released",
    )
    heads = (
        SpanHead(o.hidden),
        ProposalHead(o.hidden, o.proposal_layers),
        TopSpansHead(o.queries),
    )
    for part in (encoders, fuser, *heads):
        _initialise(part)
    parts = Parts(encoders=encoders, fuser=fuser, heads=heads, terms=_terms(o))
    decoding = Decoding(unit="duration" if o.decoding == "released" else "grid")
    return Blueprint(parts, lambda final: Criterion(final.terms, None), decoding, o.hidden)


def _terms(o: EMBOptions) -> tuple[LossTerm, ...]:
    elastic = Elastic(o.threshold, o.elastic_low, o.epochs, o.end_index)
    low, high = (0.0, 1.0) if o.proposal_target == "iou" else (o.target_low, o.target_high)
    return (
        LocationTerm(o.location_weight, elastic),
        HighlightTerm(
            o.highlight_weight,
            elastic,
            extend=o.highlight_extend,
            end=o.highlight_end,
            foreground=o.highlight_foreground,
        ),
        ProposalTerm(o.proposal_weight, low=low, high=high),
    )


def _initialise(part: nn.Module) -> None:
    """Xavier's uniform weights and no biases in every linear layer; LSTMs keep torch's."""
    for module in part.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


MODELS.register("emb")(
    ModelFamily(
        options=EMBOptions,
        presets={
            "release": {
                "pooling": "released",
                "highlight_end": "min",
                "end_index": "exclusive",
                "tail_pad": "zero",
                "longest": "released",
                "end_guides": "released",
                "decoding": "released",
            },
            "paper": {
                "pooling": "max",
                "order": "self_cross",
                "similarity": "scaled_dot",
                "proposal_target": "iou",
                "highlight_extend": 0.0,
                "highlight_foreground": 1.0,
            },
        },
        build=build,
        official=EMB_LAYOUT,
        gives=frozenset({"start_logits", "end_logits"}),
        # What is added to all keys alike, or to the logits of all clips alike, cancels.
        inert=(
            r"fuser\.\w+\.(layers|units)\.\d+\.key\.bias",
            r"heads\.0\.predictor\.predictor\.(start|end)\.bias",
        ),
    )
)
