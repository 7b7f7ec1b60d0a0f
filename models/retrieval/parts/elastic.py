"""The elastic boundary: a moment's edge is a set of clips, between the annotated one and that of
the best proposal which resembles the annotation (EMB §3.4; TEA §3.4, Eq. 15–16).

Loss terms of bases that give distributions over the first and the last clip. A base of this kind
knows one moment per query: of several it learns the longest, the first among equals. Samples
without a known moment are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.retrieval.flow import Outcome
from models.retrieval.parts.losses import mean_where
from models.retrieval.parts.spans import overlap, start_end
from models.retrieval.stages import LossTerm
from models.retrieval.types import StepContext, Targets

__all__ = [
    "Elastic",
    "Found",
    "HighlightTerm",
    "LocationTerm",
    "ProposalTerm",
    "between",
    "highlighted",
    "learned_moment",
    "moment_places",
]


@dataclass(frozen=True)
class Found:
    """Annotated and found moment of every sample, in places of the grid.

    Args:
        start: (B,) int64, first place of the annotated moment.
        end: (B,) int64, its last place.
        other_start: (B,) int64, of the chosen proposal; `start` if there is none.
        other_end: (B,) int64; one more if ends are exclusive.
    """

    start: Tensor
    end: Tensor
    other_start: Tensor
    other_end: Tensor


@dataclass(frozen=True)
class Elastic:
    """How the proposal is chosen that widens the edges.

    Args:
        threshold: `annealed` asks it to overlap the annotation, at first fully and in the end by
            `low`; `none` takes the best-scored one whatever it overlaps (TEA's text).
        low: IoU at the end of training.
        epochs: of the training.
        end: `inclusive` compares last clips with last clips. `exclusive` compares the annotated
            last clip with the one after the proposal's, and takes the one after the annotated if
            there is no proposal, so that the set of ends always holds it (the public code).
    """

    threshold: Literal["annealed", "none"] = "annealed"
    low: float = 0.5
    epochs: int = 100
    end: Literal["inclusive", "exclusive"] = "inclusive"

    def least_overlap(self, context: StepContext) -> float:
        """`low + (1 − low)(1 − σ((e/E − 1/2) / 0.05))` in epoch e of E; 0 without a threshold."""
        if self.threshold == "none":
            return 0.0
        late = 1 / (1 + math.exp(-(context.epoch / self.epochs - 0.5) / 0.05))
        return self.low + (1 - self.low) * (1 - late)

    def choose(
        self,
        moment: tuple[Tensor, Tensor],
        bounds: Tensor,
        scores: Tensor,
        mask: Tensor,
        least: float,
    ) -> Found:
        """The best-scored proposal with enough overlap.

        Args:
            moment: first and last place of the annotated moments, each (B,).
            bounds: (B, P, 2) int64, first and last place of the proposals.
            scores: (B, P), in any monotone form.
            mask: (B, P) bool, proposals that exist.
            least: IoU that it must have.
        """
        start, end = moment
        fits = mask & (_iou(moment, bounds) >= least)
        best = scores.masked_fill(~fits, -torch.inf).argmax(1)
        chosen = bounds[torch.arange(len(best), device=best.device), best]
        some, extra = fits.any(1), int(self.end == "exclusive")
        return Found(
            start,
            end,
            torch.where(some, chosen[:, 0], start),
            torch.where(some, chosen[:, 1], end) + extra,
        )

    def of(self, outcome: Outcome) -> Found:
        """The choice for an outcome with `proposals`, `proposal_mask`, `proposal_logits`."""
        given = outcome.predictions.extras
        return self.choose(
            _annotated(outcome),
            given["proposals"],
            given["proposal_logits"].detach(),
            given["proposal_mask"],
            self.least_overlap(outcome.context),
        )


def _iou(moment: tuple[Tensor, Tensor], bounds: Tensor) -> Tensor:
    """(B, P) IoU of moments and proposals given by their first and last places."""
    edges = torch.stack([moment[0], moment[1] + 1], dim=-1).unsqueeze(1).float()
    return overlap(edges, torch.stack([bounds[..., 0], bounds[..., 1] + 1], dim=-1).float())[0]


def between(a: Tensor, b: Tensor, size: int) -> Tensor:
    """(B, N) bool, the places from the smaller to the larger of `a` and `b`, both included."""
    place = torch.arange(size, device=a.device)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return (place >= low.unsqueeze(1)) & (place <= high.unsqueeze(1))


def learned_moment(targets: Targets) -> tuple[Tensor, Tensor]:
    """The moment that a span base learns, (B, 2) as (centre, width), and (B,) bool whether there
    is one."""
    width = targets.spans[..., 1].masked_fill(~targets.span_mask, -1)
    row = torch.arange(len(width), device=width.device)
    known = targets.span_mask.any(1)
    if targets.has_moments is not None:
        known = known & targets.has_moments
    return targets.spans[row, width.argmax(1)], known


def moment_places(spans: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and last place of the run of places that overlaps a moment best.

    The public code's `time_to_index`: the largest IoU over all pairs, the first among equals.

    Args:
        spans: (B, 2) as (centre, width) in [0, 1].
        length: (B,) places of each video.
        size: N.

    Returns:
        Two of (B,) int64.
    """
    place = torch.arange(size, device=spans.device)
    edges = torch.stack(torch.meshgrid(place, place + 1, indexing="ij"), dim=-1).flatten(0, 1)
    exists = (edges[:, 0] < edges[:, 1]) & (edges[:, 1] <= length.unsqueeze(1))
    moment = start_end(spans).float() * length.unsqueeze(1)
    iou = overlap(edges.float(), moment.unsqueeze(1))[0]
    best = iou.masked_fill(~exists, -1).argmax(1)
    return torch.div(best, size, rounding_mode="floor"), best % size


def _annotated(outcome: Outcome) -> tuple[Tensor, Tensor]:
    mask = outcome.trace.memory.kv_mask
    spans, _ = learned_moment(outcome.targets)
    return moment_places(spans, mask.sum(1), mask.shape[1])


class LocationTerm(LossTerm):
    """−log of the probability inside the set of first, and of last clips (TEA Eq. 15).

    Args:
        weight: factor in the sum.
        elastic: how the sets are made.
        name: of the loss.
        prefix: of the extras `start_logits` and `end_logits` that it reads.
    """

    def __init__(
        self, weight: float, elastic: Elastic, *, name: str = "location", prefix: str = ""
    ) -> None:
        super().__init__(weight)
        self.elastic, self.name, self.prefix = elastic, name, prefix
        read = {f"{prefix}start_logits", f"{prefix}end_logits"}
        self.requires = frozenset(read | {"proposal_logits"})

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        found, extras = self.elastic.of(outcome), outcome.predictions.extras
        start, end = extras[f"{self.prefix}start_logits"], extras[f"{self.prefix}end_logits"]
        size = start.shape[1]
        loss = _missed(start, between(found.start, found.other_start, size))
        loss = loss + _missed(end, between(found.end, found.other_end, size))
        _, known = learned_moment(outcome.targets)
        return mean_where(loss, known)


def _missed(logits: Tensor, inside: Tensor) -> Tensor:
    """(B,) −log of the probability inside, from (B, N) logits."""
    low = torch.finfo(torch.float32).min
    return logits.logsumexp(1) - logits.masked_fill(~inside, low).logsumexp(1)


def highlighted(found: Found, mask: Tensor, *, extend: float, end: Literal["max", "min"]) -> Tensor:
    """(B, N) bool, the places that the highlight should cover.

    Args:
        found: the moments.
        mask: (B, N) bool.
        extend: share of the length that is added on both sides.
        end: the later or, as the public code, the earlier of the two last places.
    """
    start = torch.minimum(found.start, found.other_start)
    later = torch.maximum if end == "max" else torch.minimum
    last = later(found.end, found.other_end)
    more = ((last - start + 1) * extend).round().long()
    last = torch.minimum(mask.sum(1) - 1, last + more)
    place = torch.arange(mask.shape[1], device=mask.device)
    begun = place >= (start - more).clamp(min=0).unsqueeze(1)
    return begun & (place <= last.unsqueeze(1))


class HighlightTerm(LossTerm):
    """Binary cross entropy of the highlight, mean over real places (TEA Eq. 16).

    Args:
        weight: factor in the sum.
        elastic: how the proposal is chosen.
        extend: as `highlighted`.
        end: as `highlighted`.
        foreground: weight of places inside.
    """

    name = "highlight"
    requires = frozenset({"highlight_logits", "proposal_logits"})

    def __init__(
        self,
        weight: float,
        elastic: Elastic,
        *,
        extend: float,
        end: Literal["max", "min"],
        foreground: float,
    ) -> None:
        super().__init__(weight)
        self.elastic, self.extend, self.foreground = elastic, extend, foreground
        self.end: Literal["max", "min"] = end

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        logits = outcome.predictions.extras["highlight_logits"]
        mask = outcome.trace.memory.kv_mask
        inside = highlighted(self.elastic.of(outcome), mask, extend=self.extend, end=self.end)
        cross = functional.binary_cross_entropy_with_logits(
            logits, inside.float(), reduction="none"
        )
        counted = mask & learned_moment(outcome.targets)[1].unsqueeze(1)
        loss = torch.where(inside, self.foreground, 1.0) * cross
        return torch.where(counted, loss, 0).sum() / counted.sum().clamp(min=1)


class ProposalTerm(LossTerm):
    """Binary cross entropy of every proposal against its IoU with the moment, mean over those
    that exist.

    Args:
        weight: factor in the sum.
        low: IoU that counts as 0.
        high: IoU that counts as 1.
    """

    name = "proposal"
    requires = frozenset({"proposal_logits"})

    def __init__(self, weight: float, *, low: float, high: float) -> None:
        super().__init__(weight)
        self.low, self.high = low, high

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        given = outcome.predictions.extras
        iou = _iou(_annotated(outcome), given["proposals"])
        span = self.high - self.low
        target = ((iou - self.low) / span).clamp(0, 1) if span else (iou >= self.low).float()
        loss = functional.binary_cross_entropy_with_logits(
            given["proposal_logits"], target, reduction="none"
        )
        known = learned_moment(outcome.targets)[1].unsqueeze(1)
        counted = given["proposal_mask"] & known
        return torch.where(counted, loss, 0).sum() / counted.sum().clamp(min=1)
