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

description_query: what the descriptions read. `other` projects (P_l) the query's words in another
    embedding, `other_text`, and the clips read those of the main one (P_c): the paper on
    QVHighlights, LLaMA's for the descriptions and CLIP's for the clips. `separate` projects the
    words of the main embedding a second time: the paper on Charades-STA, where LLaMA's are read in
    both branches. `shared` has one projection for both branches. What the moment queries start
    from on QVHighlights is not said; here it is the main embedding.
share_vqf, query_content, visual, descriptions: ablations of the paper (its Tables V and VI), in
    order "w/o WS", "w/o LMQ" (`none`), "w/o VFE", "w/o VCE". The defaults are the full model.
vqf: who reads the query before the context: `both`; the `clips` alone, the paper's "w/o VQF", whose
    Table VI takes parts out of the branch of the descriptions; or `none`, where the saliency does
    not depend on the query, so that nothing is asked of it under a wrong one.
vcm: whether clips and descriptions read each other; not an ablation of the paper.
types: learned vectors tell clips from descriptions. The paper says nothing about it.
saliency: `qd-detr` has QD-DETR's three losses. `neg-only` is the paper's total (Eq. 8–9) taken by
    the word: only the wrong query is trained, no clip is ever told to be salient, and the loss is
    0 as soon as all saliency is low. The paper speaks of contrastive learning and builds on
    QD-DETR, whose losses it does not list; none of these models learns much without them on the
    synthetic corpus (docs/models.md), so no preset leaves them out. −log(1 − S) is taken of
    σ(S), as in QD-DETR; Eq. 5 as printed has no logarithm for S above 1.
negatives: as in `qd_detr`. paper: roll.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm, NegativePairTerm, RankTerm
from models.retrieval.flow import Memory, Queries, Tokens
from models.retrieval.lineage import LineageOptions, blueprint_of, moment_terms
from models.retrieval.official import unpublished
from models.retrieval.parts.attention import EncoderLayer, Layer, xavier
from models.retrieval.parts.described import DescribedEncoders, DescriptionQuery
from models.retrieval.parts.heads import GlobalDotSaliency, MomentHead
from models.retrieval.parts.negatives import WrongText
from models.retrieval.parts.vanilla import VanillaDecoder
from models.retrieval.stages import Fuser, LossTerm, Parts

__all__ = ["ContextFuser", "LMROptions", "SentenceDecoder"]

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
        other_text: name of the embedding of the query that `description_query: other` reads.
        share_vqf: whether clips and descriptions go through the same fusion.
        vqf: see the module.
        vcm: see the module.
        types: see the module.
        query_content: see `Content`.
        visual: whether clips are read at all, or the descriptions alone.
        descriptions: whether descriptions are read at all, or the clips alone.
        saliency: see the module.
        negatives: see the module.
        text_position: Eq. 4 has no places of words, so that nothing would read learned ones.
    """

    feedforward: int = Field(256, gt=0)
    side: str = "narrative"
    vqf_layers: int = Field(2, ge=1)
    description_query: DescriptionQuery = "separate"
    other_text: str = "llama"
    share_vqf: bool = True
    vqf: Literal["both", "clips", "none"] = "both"
    vcm: bool = True
    types: bool = True
    query_content: Content = "mean"
    visual: bool = True
    descriptions: bool = True
    saliency: Literal["qd-detr", "neg-only"] = "qd-detr"
    negatives: Literal["roll", "roll_other_video"] = "roll_other_video"
    text_position: Literal["none"] = "none"

    @property
    def clips_fused(self) -> bool:
        """Whether clips read the query before the context."""
        return self.visual and self.vqf != "none"

    @property
    def descriptions_fused(self) -> bool:
        """Whether descriptions do."""
        return self.descriptions and self.vqf == "both"

    @property
    def fused(self) -> bool:
        """Whether anything does."""
        return self.clips_fused or self.descriptions_fused

    @model_validator(mode="after")
    def _something_is_read(self) -> Self:
        if not (self.visual or self.descriptions):
            raise ValueError(
                "visual: false and descriptions: false leave nothing of the video; switch off one"
            )
        return self

    @model_validator(mode="after")
    def _query_is_read(self) -> Self:
        chosen = f"under vqf: {self.vqf}, visual: {str(self.visual).lower()}"
        if not self.fused and self.query_content == "none":
            raise ValueError(
                f"{chosen} only the moment queries read the sentence, and query_content: none "
                "takes that away; take vqf: both, or query_content: mean"
            )
        if not self.fused and self.saliency == "neg-only":
            raise ValueError(
                f"{chosen} saliency does not depend on the query, so saliency: neg-only would only "
                "teach it to be low; take saliency: qd-detr"
            )
        other = self.description_query == "other"
        if other and not self.clips_fused and self.query_content == "none":
            raise ValueError(
                f"{chosen}, description_query: other, query_content: none nothing reads the main "
                "embedding of the query; take query_content: mean, or description_query: separate"
            )
        if not self.descriptions_fused and other:
            raise ValueError(
                f"{chosen}, descriptions: {str(self.descriptions).lower()} no description reads "
                "the query, so nothing would read its other embedding; take description_query: "
                "separate (and no data.other_texts)"
            )
        return self


class FusionLayer(Layer):
    """Clips or descriptions read the words, then a feed-forward; the norms after the residuals."""

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d) from (B, L, d), words (B, T, d) and their mask (B, T) bool."""
        x = self.norm1(x + self.dropout(self.attention(x, words, words, mask)))
        return self.norm2(x + self.dropout(self.feedforward(x)))  # type: ignore[no-any-return]


class ContextFuser(Fuser):
    """Video-query fusion, then context modelling over [saliency token; clips; descriptions].

    `clip` are the rows of the clips and `kv` those of clips and descriptions, (B, 2L, d); with
    one of the two alone both are its rows. The saliency token is the `global_token`.

    Args:
        options: of the model.
    """

    provides = frozenset({"clip", "kv", "global_token"})

    def __init__(self, options: LMROptions) -> None:
        super().__init__()
        o = options
        if o.descriptions:
            self.requires = self.requires | {"description", "described"}
        shape = (o.hidden, o.heads, o.feedforward, o.dropout)

        def fusion(there: bool) -> nn.ModuleList:
            layers = o.vqf_layers if there else 0
            return nn.ModuleList(FusionLayer(*shape) for _ in range(layers))

        shared = o.share_vqf and o.visual
        self.fusion = fusion(o.clips_fused)
        self.description_fusion = fusion(o.descriptions_fused and not shared)
        self.shared = shared and o.descriptions_fused
        self.layers = nn.ModuleList(
            EncoderLayer(*shape) for _ in range(o.encoder_layers if o.vcm else 0)
        )
        xavier(self)
        self.token = nn.Parameter(torch.randn(o.hidden))
        self.token_pos = nn.Parameter(torch.randn(o.hidden)) if o.vcm else None
        self.types = nn.Parameter(0.02 * torch.randn(2, o.hidden)) if _has_types(o) else None
        self.visual, self.descriptions = o.visual, o.descriptions

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
        rows, masks = [], []
        if self.visual:
            rows.append(self._fused(self.fusion, tokens.video, tokens.text, tokens.text_mask))
            masks.append(tokens.video_mask)
        if self.descriptions:
            rows.append(self._told(tokens))
            masks.append(tokens.extras["described"] > 0)
        if self.types is not None:
            rows = [each + kind for each, kind in zip(rows, self.types, strict=True)]
        places = torch.cat([tokens.video_pos] * len(rows), dim=1)
        return torch.cat(rows, dim=1), torch.cat(masks, dim=1), places

    def _told(self, tokens: Tokens) -> Tensor:
        """(B, L, d) descriptions that have read the query as far as they do."""
        words = tokens.texts.get("description_words", tokens.text)
        mask = tokens.texts.get("description_mask", tokens.text_mask)
        layers = self.fusion if self.shared else self.description_fusion
        # without clips the descriptions stand in their place, where merges change them
        told = tokens.extras["description"] if self.visual else tokens.video
        return self._fused(layers, told, words, mask)

    def _fused(self, layers: nn.ModuleList, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x, words, mask)
        return x


def _has_types(options: LMROptions) -> bool:
    """Types tell two kinds of rows apart where rows of both kinds read each other."""
    return options.types and options.visual and options.descriptions and options.vcm


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


def build(dims: Dims, options: LMROptions) -> Blueprint:
    """The parts of LMR.

    Raises:
        UsageError: the data have no descriptions, or not the other embedding of the query.
    """
    o = options
    query: DescriptionQuery = o.description_query if o.descriptions_fused else "shared"
    encoders = DescribedEncoders(
        dims.video,
        dims.text,
        o.hidden,
        sides=dims.sides,
        texts=dims.texts,
        side=o.side if o.descriptions else None,
        visual=o.visual,
        query=query,
        other_text=o.other_text,
        depth=o.projection_layers,
        dropout=o.input_dropout,
    )
    parts = Parts(
        encoders=encoders,
        fuser=ContextFuser(o),
        decoder=SentenceDecoder(o),
        heads=(MomentHead(o.hidden), GlobalDotSaliency(o.hidden)),
        passes=(WrongText(o.negatives),) if o.fused else (),
        terms=_terms(o),
    )
    return blueprint_of(parts, o)


def _terms(o: LMROptions) -> tuple[LossTerm, ...]:
    terms: tuple[LossTerm, ...] = moment_terms(o)
    if o.saliency == "qd-detr":
        terms += (
            MarginTerm(o.saliency_weight, margin=o.margin),
            RankTerm(o.saliency_weight, against_negative=o.fused),
        )
    wrong = NegativePairTerm(o.saliency_weight, log="softplus")
    return (*terms, wrong) if o.fused else terms


_PAPER: Mapping[str, str] = {"negatives": "roll"}

MODELS.register("lmr")(
    ModelFamily(
        options=LMROptions,
        presets={"paper": _PAPER},
        build=build,
        official=unpublished("LMR"),
        requires=frozenset({"side.narrative"}),
    )
)
