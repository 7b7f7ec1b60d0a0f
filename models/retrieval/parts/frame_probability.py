"""How probable it is that a clip answers the query, and what BM-DETR makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.flow import Decoded, Memory, Outcome, Trace
from models.retrieval.parts.context_query import masked_softmax
from models.retrieval.parts.heads import LinearSaliency
from models.retrieval.parts.losses import mean_where
from models.retrieval.parts.negatives import other_samples
from models.retrieval.stages import Head, LossTerm

__all__ = [
    "AttentivePool",
    "FrameProbability",
    "GuidanceTerm",
    "LabelErrorTerm",
    "PooledContrastTerm",
    "WeightedSaliency",
    "pooled_contrast",
    "probability_guidance",
]


class FrameProbability(Head):
    """Probability that a clip answers the query, from its memory.

    Args:
        width: features.
    """

    requires = frozenset({"clip"})
    provides = frozenset({"frame_probability"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width // 2, bias=False)
        self.outer = nn.Linear(width // 2, 1, bias=False)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`frame_probability` (B, L) float32 in [0, 1]."""
        score = self.outer(self.inner(memory.clip).tanh()).squeeze(-1)
        return {"frame_probability": score.float().sigmoid()}


class WeightedSaliency(LinearSaliency):
    """Saliency from a memory whose clips are weighted by how probable they are.

    A clip is relevant if it answers the query and, where a wrong text was seen, not that one (as
    BM-DETR); the weights are a softmax of the relevance over the clips.

    Args:
        width: features.
        over: `clips` takes the softmax over the clips; `released` over the padded ones too, whose
            relevance is 0 and not −∞.
    """

    requires = frozenset({"clip", "frame_probability"})
    provides = frozenset({"saliency", "relevance", "weighted_clips"})
    uses = frozenset({"frame_probability_negative"})

    def __init__(self, width: int, *, over: Literal["clips", "released"]) -> None:
        super().__init__(width)
        self.over = over

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`saliency` (B, L) float32, `relevance` (B, L) in [0, 1], `weighted_clips` (B, L, d)."""
        relevance = found["frame_probability"] * memory.clip_mask
        if "frame_probability_negative" in found:
            other = found["frame_probability_negative"] * found["negative_mask"].unsqueeze(1)
            relevance = relevance * (1 - other)
        mask = memory.clip_mask if self.over == "clips" else torch.ones_like(memory.clip_mask)
        weighted = masked_softmax(relevance, mask, 1).unsqueeze(-1) * memory.clip
        saliency = super().forward(replace(memory, clip=weighted), decoded, found)
        return {**saliency, "relevance": relevance, "weighted_clips": weighted}


class AttentivePool(nn.Module):
    """Rows as one: weights by a small network of every row, then a Linear (LGI, CVPR 2020).

    Args:
        width: features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, d) from (B, N, d) and its (B, N) bool mask; without rows, what zeros give."""
        weight = masked_softmax(self.score(self.inner(x).tanh()).squeeze(-1), mask, 1)
        return self.out((weight.unsqueeze(-1) * x).sum(1))  # type: ignore[no-any-return]


class PooledContrastTerm(LossTerm):
    """The weighted clips of a sample are nearest to its own words (`pooled_contrast`).

    Args:
        weight: factor in the sum.
        width: features of clips and words.
        inner: features in which they are compared.
        temperature: τ.
        among: `other_videos` leaves out other queries of the same video; `batch` contrasts with
            them, as released, where a sampler keeps them out of the batch.
    """

    name = "contrastive"
    requires = frozenset({"weighted_clips", "words"})

    def __init__(
        self,
        weight: float,
        *,
        width: int,
        inner: int,
        temperature: float,
        among: Literal["other_videos", "batch"],
    ) -> None:
        super().__init__(weight)
        self.video_pool, self.text_pool = AttentivePool(width), AttentivePool(width)
        self.video, self.text = nn.Linear(width, inner), nn.Linear(width, inner)
        self.temperature, self.among = temperature, among

    def embed(self, trace: Trace) -> tuple[Tensor, Tensor]:
        """Video and text of every sample, (B, `inner`) of unit length each."""
        clips = trace.predictions.extras["weighted_clips"]
        video = self.video_pool(clips, trace.memory.clip_mask)
        text = self.text_pool(trace.memory.extras["words"], trace.tokens.text_mask)
        return (
            functional.normalize(self.video(video).float(), dim=-1),
            functional.normalize(self.text(text).float(), dim=-1),
        )

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        video, text = self.embed(outcome.trace)
        against = torch.ones(len(video), len(video), dtype=torch.bool, device=video.device)
        if self.among == "other_videos":
            against = other_samples(outcome.batch)
        return pooled_contrast(video, text, against, temperature=self.temperature)


def pooled_contrast(
    video: Tensor, text: Tensor, against: Tensor, *, temperature: float = 0.07
) -> Tensor:
    """InfoNCE of every video with its text against other texts, one way (BM-DETR); in float32 under
    autocast too.

    Args:
        video: (B, e) of unit length.
        text: (B, e) of unit length.
        against: (B, B) bool, texts that a video is contrasted with beside its own.
        temperature: τ.
    """
    own = torch.eye(len(video), dtype=torch.bool, device=video.device)
    with torch.autocast(video.device.type, enabled=False):
        score = (video @ text.T / temperature).masked_fill(~(against | own), -torch.inf)
    return (score.logsumexp(1) - score.diagonal()).mean()


class GuidanceTerm(LossTerm):
    """Clips inside of the moments are relevant, clips outside are not (`probability_guidance`).

    Args:
        weight: factor in the sum.
        goal: value of a loss of which nothing is relevant anywhere.
    """

    name = "guidance"
    requires = frozenset({"relevance"})

    def __init__(self, weight: float, *, goal: float) -> None:
        super().__init__(weight)
        self.goal = goal

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        return probability_guidance(
            outcome.predictions.extras["relevance"],
            outcome.targets.in_moment,
            outcome.batch.video_mask,
            goal=self.goal,
        )


def probability_guidance(
    relevance: Tensor, inside: Tensor, mask: Tensor, *, goal: float = 1.0
) -> Tensor:
    """`goal − mean inside + mean outside`, mean over samples (BM-DETR).

    A sample without clips inside has no moment to be guided by and does not count; the public
    code divides by zero there.

    Args:
        relevance: (B, L) in [0, 1].
        inside: (B, L) bool, clips in a moment.
        mask: (B, L) bool.
        goal: of the loss, see `GuidanceTerm`.
    """
    inside, outside = inside & mask, mask & ~inside
    known = inside.any(1)
    within = (relevance * inside).sum(1) / inside.sum(1).clamp(min=1)
    beyond = (relevance * outside).sum(1) / outside.sum(1).clamp(min=1)
    return mean_where(goal - within + beyond, known)


class LabelErrorTerm(LossTerm):
    """Percentage of the matched queries that are taken for background.

    It has no gradient and only shifts the sum; the public code adds it nonetheless.
    """

    name = "label_error"
    requires = frozenset({"logits", "spans"})
    differentiable = False

    def forward(self, outcome: Outcome) -> Tensor:
        """(ℓ,)."""
        matched = outcome.is_matched()
        wrong = matched & (outcome.logits.argmax(-1) != 0)
        return 100 * wrong.sum((-2, -1)) / matched.sum((-2, -1)).clamp(min=1)
