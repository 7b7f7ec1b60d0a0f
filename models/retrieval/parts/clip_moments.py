"""Moments without queries: every clip says how far it is to the edges of its own (UniVTG)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.flow import Decoded, Memory, Outcome
from models.retrieval.parts.context_query import masked_softmax
from models.retrieval.parts.losses import mean_where
from models.retrieval.parts.spans import centre_width, overlap, start_end
from models.retrieval.stages import Head, LossTerm
from models.retrieval.types import Targets

__all__ = [
    "ClipGIoUTerm",
    "ClipLabelTerm",
    "ClipMomentHead",
    "ClipSpanTerm",
    "InterVideoTerm",
    "IntraVideoTerm",
    "SentenceCosine",
    "ShortMoments",
    "clip_moments",
]

ShortMoments = Literal["own_clip", "released"]
"""What becomes of a moment in which no clip's place lies, see `clip_moments`."""

_NEVER = -1e3
"""A score so low that its softmax is zero at any temperature that is used."""


class ClipConvolutions(nn.Module):
    """Convolutions over three clips with ReLU between them.

    Args:
        width: features that come in.
        outputs: features that go out.
        zero_padding: whether clips beyond a video are zero for every layer.
        depth: layers.
    """

    def __init__(self, width: int, outputs: int, *, zero_padding: bool, depth: int = 3) -> None:
        super().__init__()
        widths = [width] * depth + [outputs]
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size=3, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.zero_padding = zero_padding

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, outputs) from (B, L, width) and its (B, L) bool mask."""
        x, keep = x.transpose(1, 2), mask.unsqueeze(1)
        for i, layer in enumerate(self.layers):
            x = x.relu() if i else x
            x = layer(x * keep if self.zero_padding else x)
        return x.transpose(1, 2)


class ClipMomentHead(Head):
    """Foreground of every clip, and the moment around its place.

    Args:
        width: features.
        offset: place of a clip after its begin, in clips.
        zero_padding: as `ClipConvolutions`.
        in_video: whether windows are cut to the video.
    """

    requires = frozenset({"clip"})
    provides = frozenset({"logits", "spans", "query_mask", "edges", "places"})

    def __init__(self, width: int, *, offset: float, zero_padding: bool, in_video: bool) -> None:
        super().__init__()
        self.label = ClipConvolutions(width, 1, zero_padding=zero_padding)
        self.span = ClipConvolutions(width, 2, zero_padding=zero_padding)
        self.offset, self.in_video = offset, in_video

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """One query for each clip.

        Returns:
            `logits` (1, B, L, 2): the logit of the foreground beside 0, so that index 0 of their
            softmax is its sigmoid; `spans` (1, B, L, 2); `query_mask` (B, L), the clips; `edges`
            (B, L, 2), (start, end) before they are cut; `places` (B, L) of the clips in [0, 1].
        """
        mask = memory.clip_mask
        foreground = self.label(memory.clip, mask)
        logits = torch.cat([foreground, torch.zeros_like(foreground)], dim=-1)
        index = torch.arange(mask.shape[1], device=mask.device)
        places = (index + self.offset) / mask.sum(1, keepdim=True)
        before, after = self.span(memory.clip, mask).float().sigmoid().unbind(-1)
        edges = torch.stack([places - before, places + after], dim=-1)
        windows = edges.clamp(0, 1) if self.in_video else edges
        return {
            "logits": logits.unsqueeze(0),
            "spans": centre_width(windows).unsqueeze(0),
            "query_mask": mask,
            "edges": edges,
            "places": places,
        }


class SentenceCosine(Head):
    """Saliency of a clip: cosine of its token and the pooled words, both before the fusion.

    Args:
        width: features.
        padding: `fill` gives padded clips −1000; `log` adds log(mask + 1e-45), as released.
    """

    requires = frozenset({"video", "text"})
    provides = frozenset({"saliency", "sentence"})

    def __init__(self, width: int, *, padding: Literal["fill", "log"]) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.empty(width, 1))
        nn.init.xavier_uniform_(self.pool)
        self.padding = padding

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`saliency` (B, L) float32 in [−1, 1]; `sentence` (B, d), zero without words."""
        tokens = memory.tokens
        sentence = self._pooled(tokens.text.float(), tokens.text_mask)
        score = functional.cosine_similarity(tokens.video.float(), sentence.unsqueeze(1), dim=-1)
        if self.padding == "log":
            score = score + (tokens.video_mask.float() + 1e-45).log()
        else:
            score = score.masked_fill(~tokens.video_mask, _NEVER)
        return {"saliency": score, "sentence": sentence}

    def _pooled(self, words: Tensor, mask: Tensor) -> Tensor:
        """(B, d), words weighted by a softmax of their product with a learned vector."""
        weight = masked_softmax((words * self.pool.squeeze(-1)).sum(-1), mask, 1)
        return (weight.unsqueeze(-1) * words).sum(1)


def clip_moments(
    targets: Targets, places: Tensor, mask: Tensor, short: ShortMoments
) -> tuple[Tensor, Tensor]:
    """The moment in which the place of each clip lies; of several the shortest.

    Args:
        targets: ground truth with G moments.
        places: (B, L) of the clips in [0, 1].
        mask: (B, L) bool.
        short: `own_clip` gives every moment without a place the clip in which it begins;
            `released` does so for the first moment of samples without a place in any.

    Returns:
        (B, L, 2) its (start, end), and whether there is one (B, L) bool.
    """
    # One moment more than there are, which is never in: a batch may have none at all.
    edges = start_end(functional.pad(targets.spans.float(), (0, 0, 0, 1)))
    exists = functional.pad(targets.span_mask, (0, 1))
    start, end = edges[:, None, :, 0], edges[:, None, :, 1]
    place = places.unsqueeze(-1)
    inside = (place >= start) & (place <= end) & exists.unsqueeze(1) & mask.unsqueeze(-1)
    lonely = exists & ~inside.any(1)
    if short == "released":
        lonely = lonely & ~inside.any((1, 2)).unsqueeze(1)
        lonely[:, 1:] = False
    clips = mask.sum(1)[:, None]
    first = torch.minimum((start.squeeze(1) * clips).long().clamp(min=0), clips - 1)
    index = torch.arange(mask.shape[1], device=mask.device)[:, None]
    inside = inside | (lonely & exists).unsqueeze(1) & (index == first.unsqueeze(1))
    shortest = (end - start).masked_fill(~inside, torch.inf).argmin(-1, keepdim=True)
    return edges.gather(1, shortest.expand(-1, -1, 2)), inside.any(-1)


class ClipMomentTerm(LossTerm):
    """A loss of clips and the moments in which they lie.

    Args:
        weight: factor in the sum.
        short: as `clip_moments`.
    """

    requires = frozenset({"logits", "edges", "places"})

    def __init__(self, weight: float, *, short: ShortMoments) -> None:
        super().__init__(weight)
        self.short: ShortMoments = short

    def moments(self, outcome: Outcome) -> tuple[Tensor, Tensor]:
        """`clip_moments` of the outcome."""
        places = outcome.predictions.extras["places"]
        return clip_moments(outcome.targets, places, outcome.batch.video_mask, self.short)


class ClipSpanTerm(ClipMomentTerm):
    """Smooth L1 of both edges, summed, mean over clips in moments."""

    name = "span"

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        edges, inside = self.moments(outcome)
        found = outcome.predictions.extras["edges"]
        return mean_where(functional.smooth_l1_loss(found, edges, reduction="none").sum(-1), inside)


class ClipGIoUTerm(ClipMomentTerm):
    """1 − gIoU, mean over clips in moments."""

    name = "giou"

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        edges, inside = self.moments(outcome)
        return mean_where(1 - overlap(outcome.predictions.extras["edges"], edges)[1], inside)


class ClipLabelTerm(ClipMomentTerm):
    """Binary cross entropy of the foreground, mean over clips of samples whose moments are known.

    Args:
        weight: factor in the sum.
        short: as `clip_moments`.
        background: weight of clips outside of the moments.
    """

    name = "label"

    def __init__(self, weight: float, *, short: ShortMoments, background: float) -> None:
        super().__init__(weight, short=short)
        self.background = background

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        inside = self.moments(outcome)[1]
        log_p = outcome.logits[-1].log_softmax(-1)
        loss = torch.where(inside, -log_p[..., 0], -self.background * log_p[..., 1])
        counted, known = outcome.batch.video_mask, outcome.targets.has_moments
        return mean_where(loss, counted if known is None else counted & known.unsqueeze(1))


def _salient_clip(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """A clip (B,) of each sample that is salient, and whether it has one (B,) bool."""
    clip = outcome.targets.positive[:, :1]
    return clip.squeeze(1), (outcome.targets.saliency.gather(1, clip) > 0).squeeze(1)


class InterVideoTerm(LossTerm):
    """The salient clip against the sentences of the batch, and the sentence against its salient
    clips, both ways as released (inter-video loss of UniVTG).

    Args:
        weight: factor in the sum.
        temperature: τ.
    """

    name = "inter"
    requires = frozenset({"video", "sentence"})

    def __init__(self, weight: float, *, temperature: float) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar; samples without a salient clip count for nothing."""
        clip, salient = _salient_clip(outcome)
        video = outcome.trace.tokens.video.float()
        seen = video[torch.arange(len(clip), device=clip.device), clip]
        sentence = outcome.predictions.extras["sentence"].float()
        similarity = functional.cosine_similarity(seen.unsqueeze(1), sentence.unsqueeze(0), dim=-1)
        rows = (similarity / self.temperature).log_softmax(1).diagonal()
        among = similarity.masked_fill(~salient.unsqueeze(1), _NEVER)
        columns = (among / self.temperature).log_softmax(0).diagonal()
        return -mean_where(rows + columns, salient)


class IntraVideoTerm(LossTerm):
    """The salient clip against less salient clips of its video (intra-video loss of UniVTG).

    Args:
        weight: factor in the sum.
        temperature: τ.
        across_samples: whether also against the clips at its index in the other samples, as
            released.
    """

    name = "intra"
    requires = frozenset({"saliency"})

    def __init__(self, weight: float, *, temperature: float, across_samples: bool) -> None:
        super().__init__(weight)
        self.temperature, self.across_samples = temperature, across_samples

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar; samples without a salient clip count for nothing."""
        clip, salient = _salient_clip(outcome)
        chosen, labels = clip.unsqueeze(1), outcome.targets.saliency
        index = torch.arange(labels.shape[1], device=labels.device)
        among = (labels < labels.gather(1, chosen)) | (index == chosen)
        among = among & outcome.batch.video_mask
        scores = outcome.predictions.saliency.float().masked_fill(~among, _NEVER)
        loss = (scores / self.temperature).log_softmax(1).gather(1, chosen).squeeze(1)
        if self.across_samples:
            columns = (scores / self.temperature).log_softmax(0)
            loss = loss + columns.gather(1, chosen).squeeze(1)
        return -mean_where(loss, salient)
