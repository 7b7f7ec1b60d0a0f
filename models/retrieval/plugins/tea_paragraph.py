"""TEA's second branch: the paragraph of a video and the query find the moment without the video.

Cai et al., "MLLM as video narrator: Mitigating modality imbalance in video moment retrieval",
Pattern Recognition 166 (2025), https://doi.org/10.1016/j.patcog.2025.111670, Eq. 12–14; there is
no public code. Narrative and query read themselves and each other without guides, in the order of
Eq. 9, and a predictor of its own gives distributions over the first and the last clip, which join
those of the video: `p = p_video + α p_paragraph`, with α = 0.5 the best of the paper's Fig. 4.
Here the sum is divided by 1 + α, which changes neither the order of spans nor any gradient.

It goes with bases that give such distributions (`start_logits`, `end_logits`), and is built to
stand beside the narrative merge (`tea`). The paper does not say how the branch is trained: its
Eq. 15 has the distributions of the video alone, its Algorithm 1 the sum. `loss: combined`, the
default, takes the sum; `separate` trains each by itself; `none` is Eq. 15 to the letter, under
which the branch learns nothing. The highlight of this branch is not supervised, as in the paper.

A clip that the narrative does not cover says nothing there; a video without any narrative is left
to the video's own distributions. `extras` keep the two parts as `video_start_logits`,
`paragraph_start_logits`, and the same for the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.build import PLUGINS, BasesWithout, Blueprint, Dims, Options, Plugin
from models.retrieval.flow import Decoded, Memory, Tokens
from models.retrieval.parts.clip_pooling import to_grid
from models.retrieval.parts.context_query import ContextQuery
from models.retrieval.parts.elastic import LocationTerm
from models.retrieval.parts.guided import AttentionStack
from models.retrieval.parts.span_predictor import SpanPredictor, masked_logits
from models.retrieval.plugins.tea import NarrativeMerge, check_heads, narrative_of, own_projection
from models.retrieval.stages import Encoders, Head, LossTerm, Merge, Parts
from models.retrieval.types import Batch

__all__ = ["ParagraphHead", "ParagraphMerge", "ParagraphOptions"]


class ParagraphOptions(Options):
    """Options of the branch of paragraph and query.

    Args:
        alpha: weight of its distributions; 0 leaves the model as it is without the plug-in.
        loss: see the module.
        projection: `shared` projects the narrative as the query; `separate` gives it its own.
        similarity: of narrative and words in the fusion, see `emb`.
        side: name of the side stream.
        dropout: everywhere.
        heads: attention heads.
        layers: attention units of every kind.
    """

    alpha: float = Field(0.5, ge=0)
    loss: Literal["combined", "separate", "none"] = "combined"
    projection: Literal["shared", "separate"] = "shared"
    similarity: Literal["trilinear", "scaled_dot"] = "trilinear"
    side: str = "narrative"
    dropout: float = Field(0.2, ge=0, lt=1)
    heads: int = Field(8, gt=0)
    layers: int = Field(1, ge=1)


class ParagraphMerge(Merge):
    """Projects the narrative and keeps it beside the clips.

    Args:
        side: name of the side stream.
        projection: of the narrative; None for the projection of the query.
    """

    provides = frozenset({"paragraph"})

    def __init__(self, side: str, projection: nn.Module | None) -> None:
        super().__init__()
        self.side, self.projection = side, projection
        self.requires = frozenset({"video", "text", f"side.{side}"})

    def forward(self, tokens: Tokens, batch: Batch, encoders: Encoders) -> Tokens:
        """Tokens with the extras `paragraph` (B, L, d), the projected narrative (zero where it
        covers nothing) with the places of the clips, and `paragraph_known` (B,) bool, samples
        that have one.

        Raises:
            UsageError: the batch has no such side stream.
        """
        stream = narrative_of(batch, self.side)
        project = encoders.encode_text if self.projection is None else self.projection
        told = torch.where(stream.mask.unsqueeze(-1), project(stream.x), 0)
        found = {"paragraph": told + tokens.video_pos, "paragraph_known": stream.mask.any(1)}
        return replace(tokens, extras={**tokens.extras, **found})


class ParagraphHead(Head):
    """Distributions of the paragraph, and those of the video joined with them.

    Args:
        width: features.
        options: of the plug-in.
    """

    requires = frozenset({"start_logits", "end_logits", "paragraph"})
    provides = frozenset(
        f"{branch}_{edge}_logits" for branch in ("video", "paragraph") for edge in ("start", "end")
    )

    def __init__(self, width: int, options: ParagraphOptions) -> None:
        super().__init__()
        shape = (width, options.heads, options.dropout, options.layers)
        self.told_self, self.told_words = AttentionStack(*shape), AttentionStack(*shape)
        self.words_self, self.words_told = AttentionStack(*shape), AttentionStack(*shape)
        self.read = ContextQuery(width, options.dropout, options.similarity)
        self.predictor = SpanPredictor(width)
        self.alpha = options.alpha

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`start_logits` and `end_logits` (B, N) of both together, and of each by itself."""
        tokens, mask = memory.tokens, memory.kv_mask
        told = to_grid(tokens.extras["paragraph"], memory.clip_mask, mask.shape[1])
        words, word_mask = tokens.text + tokens.text_pos, tokens.text_mask
        told = self.told_words(self.told_self(told, mask), word_mask, words)
        words = self.words_told(self.words_self(words, word_mask), mask, told)
        _, *logits = self.predictor(self.read(told, words, mask, word_mask), mask)
        known, outputs = tokens.extras["paragraph_known"].unsqueeze(1), {}
        for edge, own in zip(("start", "end"), logits, strict=True):
            seen = found[f"{edge}_logits"]
            outputs[f"video_{edge}_logits"] = seen
            outputs[f"paragraph_{edge}_logits"] = torch.where(known, own, seen.detach())
            joined = torch.where(known, self._joined(seen, own), seen)
            outputs[f"{edge}_logits"] = masked_logits(joined, mask)
        return outputs

    def _joined(self, seen: Tensor, told: Tensor) -> Tensor:
        """log((p_video + α p_paragraph) / (1 + α)), (B, N)."""
        share = told.log_softmax(1) + math.log(self.alpha)
        return torch.logaddexp(seen.log_softmax(1), share) - math.log1p(self.alpha)


def apply(blueprint: Blueprint, dims: Dims, options: ParagraphOptions) -> Blueprint:
    """The model with the branch; the same model if `alpha` is 0."""
    if options.alpha == 0:
        return blueprint
    parts, width = blueprint.parts, blueprint.width
    if not any("start_logits" in head.provides for head in parts.heads):
        raise UsageError(f"plug-in 'tea_paragraph' does not fit: {_REASON}")
    check_heads("tea_paragraph", width, options.heads)
    own = own_projection("tea_paragraph", dims, width, options.side, options.projection)
    branch = ParagraphHead(width, options)
    # before what reads the distributions, so that the heads with parameters keep their places
    reader = next(i for i, head in enumerate(parts.heads) if "start_logits" in head.requires)
    # before a merge that moves the places of the clips into the clips
    narrated = (i for i, each in enumerate(parts.merges) if isinstance(each, NarrativeMerge))
    place = next(narrated, len(parts.merges))
    merge = ParagraphMerge(options.side, own)
    changed = replace(
        parts,
        merges=(*parts.merges[:place], merge, *parts.merges[place:]),
        heads=(*parts.heads[:reader], branch, *parts.heads[reader:]),
        terms=_terms(parts, options),
    )
    return replace(blueprint, parts=changed)


def _terms(parts: Parts, options: ParagraphOptions) -> tuple[LossTerm, ...]:
    """The terms with the location loss on the distributions that the option names."""
    if options.loss == "combined":
        return parts.terms
    terms: list[LossTerm] = []
    for term in parts.terms:
        if not isinstance(term, LocationTerm):
            terms.append(term)
            continue
        terms.append(LocationTerm(term.weight, term.elastic, prefix="video_"))
        if options.loss == "separate":
            alone = {"name": "paragraph_location", "prefix": "paragraph_"}
            terms.append(LocationTerm(term.weight, term.elastic, **alone))
    return tuple(terms)


_REASON = (
    "it joins distributions over the first and the last clip, and this base predicts spans without "
    "them; use a span base (emb), or the narrative merge 'tea' alone"
)

PLUGINS.register("tea_paragraph")(
    Plugin(
        stage="head",
        requires=frozenset({"start_logits", "end_logits", "side.narrative"}),
        options=ParagraphOptions,
        apply=apply,
        off={"alpha": 0.0},
        conflicts=BasesWithout("start_logits", _REASON),
        # What is added to all keys alike, or to the logits of all clips alike, cancels.
        inert=(
            r"heads\.\d+\.(told|words)_\w+\.layers\.\d+\.key\.bias",
            r"heads\.\d+\.predictor\.predictor\.(start|end)\.bias",
        ),
    )
)
