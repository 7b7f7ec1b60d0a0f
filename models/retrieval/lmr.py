"""LMR: Context-Enhanced Video Moment Retrieval with Large Language Models.

Liu et al., https://arxiv.org/abs/2405.12540 (IEEE TMM 2025); there is no public code, so `release`
is `fixed`. specs/tea_lmr_cqval_splits.md §3 is what this file builds.

A multimodal model describes every clip. Clips and descriptions read the query through the same
cross-attention (video-query fusion), then a learned saliency token, the clips and the descriptions
read each other (video context modelling). The queries of a plain DETR decoder start from the
sentence itself (language-conditioned moment queries) and read clips and descriptions.

The descriptions are a side stream on the clip grid, embedded by any text encoder (the paper: the
input embeddings of LLaMA, averaged over the words of a description). Where a clip has none, its
row is still there and nobody reads it.

The paper is built on QD-DETR; what it leaves open is as there: dropout, projections, matching,
the saliency head, the feed-forwards' activation. Its feed-forwards do not widen (256).

description_query: what the descriptions read. `separate` projects the query's words a second time
    (P_l beside P_c). `shared` has one projection for both branches. The paper has two projections,
    and on QVHighlights also two embeddings of the query: CLIP for the clips, LLaMA for the
    descriptions. A batch carries one, so there this is not the paper: both branches read what the
    stage `queries` holds. On Charades-STA the paper reads LLaMA's in both, as here.
share_vqf, vqf, vcm, query_content, visual: the ablations of the paper (its Tables V and VI). The
    defaults are the full model; `query_content: none` is "w/o LMQ". Without the fusion the saliency
    does not depend on the query, so nothing is asked of it under a wrong one.
types: learned vectors tell clips from descriptions. The paper says nothing about it.
saliency: `qd-detr` has QD-DETR's three losses, which the paper does not list. `neg-only` is the
    paper's text: only the wrong query is trained, and no clip is ever told to be salient.
    paper: neg-only. Its −log(1 − S) is taken of σ(S), as in QD-DETR; Eq. 5 as printed has no
    logarithm for S above 1.
negatives: as in `qd_detr`. paper: roll.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm, NegativePairTerm, RankTerm
from models.retrieval.lineage import LineageOptions, blueprint_of, moment_terms
from models.retrieval.official import unpublished
from models.retrieval.parts.attention import EncoderLayer, Layer, xavier
from models.retrieval.parts.encoders import ProjectionEncoders
from models.retrieval.parts.heads import GlobalDotSaliency, MomentHead
from models.retrieval.parts.negatives import WrongText
from models.retrieval.parts.projection import FeatureProjection, LearnedTextPosition
from models.retrieval.parts.vanilla import VanillaDecoder
from models.retrieval.stages import Fuser, LossTerm, Memory, Parts, Queries, Tokens
from models.retrieval.types import Batch, Side

__all__ = ["ContextFuser", "DescribedEncoders", "LMROptions", "SentenceDecoder"]

Content = Literal["mean", "last", "none"]
"""What a moment query starts from: the mean of the query's words, its last word (the end token of
CLIP, where the text encoder keeps it), or zero."""


class LMROptions(LineageOptions):
    """Options of LMR beside those of the lineage; `encoder_layers` are those of the context.

    Args:
        feedforward: features inside the feed-forwards.
        side: name of the side stream of descriptions.
        vqf_layers: layers of the video-query fusion.
        description_query: see the module.
        share_vqf: whether clips and descriptions go through the same fusion.
        vqf: whether there is a fusion.
        vcm: whether clips and descriptions read each other.
        types: see the module.
        query_content: see `Content`.
        visual: whether clips are read at all, or the descriptions alone.
        saliency: see the module.
        negatives: see the module.
    """

    feedforward: int = Field(256, gt=0)
    side: str = "narrative"
    vqf_layers: int = Field(2, ge=1)
    description_query: Literal["separate", "shared"] = "separate"
    share_vqf: bool = True
    vqf: bool = True
    vcm: bool = True
    types: bool = True
    query_content: Content = "mean"
    visual: bool = True
    saliency: Literal["qd-detr", "neg-only"] = "qd-detr"
    negatives: Literal["roll", "roll_other_video"] = "roll_other_video"

    @model_validator(mode="after")
    def _query_is_read(self) -> Self:
        if not self.vqf and self.query_content == "none":
            raise ValueError(
                "without the fusion (vqf: false) only the moment queries read the sentence, and "
                "query_content: none takes that away; switch off one of the two"
            )
        if not self.vqf and self.saliency == "neg-only":
            raise ValueError(
                "without the fusion (vqf: false) saliency does not depend on the query, so "
                "saliency: neg-only would only teach it to be low; take saliency: qd-detr"
            )
        return self


class DescribedEncoders(ProjectionEncoders):
    """Projections of clips, descriptions and words.

    `extras` of the tokens: `description` (B, L, d), and `described` (B, L) float, 1 where a clip
    has a description. `texts` of the tokens: `description_words` (B, T, d), the words as the
    descriptions read them, where that is another projection.

    Args:
        dims: of what comes in.
        options: of the model.
    """

    def __init__(self, dims: Dims, options: LMROptions) -> None:
        o, described = options, dims.sides[options.side]
        super().__init__(
            dims.video if o.visual else described,
            dims.text,
            o.hidden,
            depth=o.projection_layers,
            dropout=o.input_dropout,
            text_position=LearnedTextPosition(o.max_words, o.hidden, o.input_dropout)
            if o.text_position == "learned"
            else None,
        )
        self.provides = self.provides | {"description", "described"}
        self.requires = frozenset({f"side.{o.side}"})
        self.side, self.visual = o.side, o.visual

        def projection(inputs: int) -> FeatureProjection:
            return FeatureProjection(
                inputs, o.hidden, depth=o.projection_layers, dropout=o.input_dropout
            )

        two = o.visual and o.vqf and o.description_query == "separate"
        self.description = projection(described) if o.visual else None
        self.words = projection(dims.text) if two else None

    def forward(self, batch: Batch) -> Tokens:
        """Tokens; without `visual` their `video` are the descriptions.

        Raises:
            UsageError: the batch has no such side stream.
        """
        stream = self._stream(batch)
        if self.description is None:
            tokens = super().forward(replace(batch, video=stream.x))
            description = tokens.video
        else:
            tokens = super().forward(batch)
            description = self.description(stream.x)
        described = (stream.mask & batch.video_mask).to(description.dtype)
        extras = {"description": description, "described": described}
        return replace(tokens, extras=extras, texts=self.other_texts(batch.text))

    def other_texts(self, x: Tensor) -> dict[str, Tensor]:
        """`description_words` (B, T, d) of text features (B, T, text_dim)."""
        return {} if self.words is None else {"description_words": self.words(x)}

    def _stream(self, batch: Batch) -> Side:
        if self.side not in batch.side:
            raise UsageError(
                f"the model reads the descriptions '{self.side}', and this batch carries "
                f"{', '.join(sorted(batch.side)) or 'no side stream'}; {_REMEDY}"
            )
        return batch.side[self.side]


class FusionLayer(Layer):
    """Clips or descriptions read the words, then a feed-forward; the norms after the residuals."""

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d) from (B, L, d), words (B, T, d) and their mask (B, T) bool."""
        x = self.norm1(x + self.dropout(self.attention(x, words, words, mask)))
        return self.norm2(x + self.dropout(self.feedforward(x)))  # type: ignore[no-any-return]


class ContextFuser(Fuser):
    """Video-query fusion, then context modelling over [saliency token; clips; descriptions].

    `clip` are the rows of the clips and `kv` those of clips and descriptions, (B, 2L, d); without
    `visual` both are the rows of the descriptions. The saliency token is the `global_token`.

    Args:
        options: of the model.
    """

    provides = frozenset({"clip", "kv", "global_token"})

    def __init__(self, options: LMROptions) -> None:
        super().__init__()
        o = options
        self.requires = self.requires | {"description", "described"}
        shape = (o.hidden, o.heads, o.feedforward, o.dropout)

        def fusion() -> nn.ModuleList:
            layers = o.vqf_layers if o.vqf else 0
            return nn.ModuleList(FusionLayer(*shape) for _ in range(layers))

        self.fusion = fusion()
        alone = o.visual and not o.share_vqf
        self.description_fusion = fusion() if alone else None
        self.layers = nn.ModuleList(
            EncoderLayer(*shape) for _ in range(o.encoder_layers if o.vcm else 0)
        )
        xavier(self)
        self.token = nn.Parameter(torch.randn(o.hidden))
        self.token_pos = nn.Parameter(torch.randn(o.hidden)) if o.vcm else None
        self.types = nn.Parameter(0.02 * torch.randn(2, o.hidden)) if _has_types(o) else None
        self.visual = o.visual

    def forward(self, tokens: Tokens) -> Memory:
        """Memory on the clip axis with its `global_token`."""
        x, mask, pos = self._sequence(tokens)
        rows = torch.cat([self.token.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        if self.token_pos is not None:
            places = torch.cat([self.token_pos.expand(len(x), 1, -1), pos], dim=1)
            everyone = nn.functional.pad(mask, (1, 0), value=True)
            for layer in self.layers:
                rows = layer(rows, places, everyone)
        whole, x = rows[:, 0], rows[:, 1:]
        clips = x[:, : tokens.video.shape[1]]
        return Memory(clips, tokens.video_mask, tokens.video_pos, x, mask, pos, global_token=whole)

    def _sequence(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Fused rows (B, S, d), their mask (B, S) bool and places (B, S, d)."""
        described = tokens.extras["described"] > 0
        clips = self._fused(self.fusion, tokens.video, tokens.text, tokens.text_mask)
        if not self.visual:
            return clips, described, tokens.video_pos
        words = tokens.texts.get("description_words", tokens.text)
        fusion = self.fusion if self.description_fusion is None else self.description_fusion
        told = self._fused(fusion, tokens.extras["description"], words, tokens.text_mask)
        if self.types is not None:
            clips, told = clips + self.types[0], told + self.types[1]
        return (
            torch.cat([clips, told], dim=1),
            torch.cat([tokens.video_mask, described], dim=1),
            torch.cat([tokens.video_pos, tokens.video_pos], dim=1),
        )

    def _fused(self, layers: nn.ModuleList, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x, words, mask)
        return x


def _has_types(options: LMROptions) -> bool:
    """Types tell two kinds of rows apart where rows of both kinds read each other."""
    return options.types and options.visual and options.vcm


class SentenceDecoder(VanillaDecoder):
    """Queries whose content is the sentence, at learned places (Sec. 3.4 of the paper).

    Args:
        options: of the model.
    """

    def __init__(self, options: LMROptions) -> None:
        o = options
        super().__init__(
            o.hidden,
            o.heads,
            o.feedforward,
            layers=o.decoder_layers,
            queries=o.queries,
            dropout=o.dropout,
        )
        self.content: Content = o.query_content

    def start(self, memory: Memory) -> Queries:
        """The same content for all queries of a sample; zero for a sentence without words."""
        empty = super().start(memory)
        if self.content == "none":
            return empty
        words, mask = memory.tokens.text, memory.tokens.text_mask
        taken = mask if self.content == "mean" else _last(mask)
        share = taken / taken.sum(1, keepdim=True).clamp(min=1)
        sentence = (words * share.unsqueeze(-1)).masked_fill(~taken.unsqueeze(-1), 0).sum(1)
        content = sentence.unsqueeze(1).expand_as(empty.content)
        return replace(empty, content=content.to(empty.content.dtype))


def _last(mask: Tensor) -> Tensor:
    """(B, T) bool, True at the last word of every sentence."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


_REMEDY = (
    "load them with the trainer's `data.narratives=true` (`pipeline run --stage narratives` writes "
    "them), or give `side_dims` to `create_model`"
)


def build(dims: Dims, options: LMROptions) -> Blueprint:
    """The parts of LMR.

    Raises:
        UsageError: the data have no descriptions.
    """
    o = options
    if o.side not in dims.sides:
        raise UsageError(
            f"the model reads descriptions of the clips from the side stream '{o.side}', and the "
            f"data give {', '.join(sorted(dims.sides)) or 'none'}; {_REMEDY}"
        )
    parts = Parts(
        encoders=DescribedEncoders(dims, o),
        fuser=ContextFuser(o),
        decoder=SentenceDecoder(o),
        heads=(MomentHead(o.hidden), GlobalDotSaliency(o.hidden)),
        passes=(WrongText(o.negatives),) if o.vqf else (),
        terms=_terms(o),
    )
    return blueprint_of(parts, o)


def _terms(o: LMROptions) -> tuple[LossTerm, ...]:
    terms: tuple[LossTerm, ...] = moment_terms(o)
    if o.saliency == "qd-detr":
        terms += (
            MarginTerm(o.saliency_weight, margin=o.margin),
            RankTerm(o.saliency_weight, against_negative=o.vqf),
        )
    wrong = NegativePairTerm(o.saliency_weight, log="softplus")
    return (*terms, wrong) if o.vqf else terms


_PAPER: Mapping[str, str] = {"saliency": "neg-only", "negatives": "roll"}

MODELS.register("lmr")(
    ModelFamily(
        options=LMROptions,
        presets={"paper": _PAPER},
        build=build,
        official=unpublished("LMR"),
        requires=frozenset({"side.narrative"}),
    )
)
