"""Pseudo-events: where the features of a video change, found in one shot on the device, and the
losses that fit spans to them (EaTR; LLMEPET takes both over).

Recursive and other parsers run before training (`Batch.events`); this one is a function of
tensors, for models that look for events in every step as released.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from data.errors import UsageError
from models.retrieval.flow import Outcome
from models.retrieval.parts import losses
from models.retrieval.parts.matcher import assign
from models.retrieval.parts.spans import centre_width, pairwise_giou, start_end
from models.retrieval.stages import LossTerm
from models.retrieval.types import Batch

__all__ = [
    "EventMatcher",
    "EventSource",
    "EventTerm",
    "boundary_scores",
    "event_spans",
    "find_events",
]

EventSource = Literal["stored", "online", "released"]
"""`stored` are the events of the batch. `online` finds them in its features. `released` does so
with the two defects of the public code (`find_events`)."""


def boundary_scores(video: Tensor) -> Tensor:
    """How much the two clips after a clip differ from the two before it.

    The public code slides the 5 × 5 kernel v vᵀ, v = (1, 1, 0, −1, −1), along the diagonal of the
    cosine similarities of all clips; as that kernel has rank one, this is the squared length of
    the difference of the two pairs, without the similarities of all clips.

    Args:
        video: (B, L, D); zero where there is nothing.

    Returns:
        (B, L) float32, at least 0.
    """
    x = video.float()
    x = functional.pad(x / (x.norm(dim=-1, keepdim=True) + 1e-8), (0, 0, 2, 2))
    before, after = x[:, :-4] + x[:, 1:-3], x[:, 3:-1] + x[:, 4:]
    return (after - before).square().sum(-1)


def find_events(
    video: Tensor, mask: Tensor, *, how: Literal["online", "released"] = "online"
) -> tuple[Tensor, Tensor]:
    """Events between boundaries: the first clip, the last one, and every peak of
    `boundary_scores` that reaches their mean.

    `released` takes mean and peaks over the padding too, so that a sample's events depend on the
    longest video beside it; and as the public code pairs every boundary with the one before it in
    a list of the whole batch, the first boundary of the first video meets the last of the last:
    where the batch is odd, the middle sample gets that span, of negative width.

    Args:
        video: (B, L, D) features of the clips. EaTR's public code gives those of the batch,
            LLMEPET's its projected clips with their token type (`Tokens.video`), so that its events
            move as the projection learns; its losses of them are in no sum that it optimises.
        mask: (B, L) bool.
        how: `online` or `released`.

    Returns:
        Spans (B, L, 2) of the event that ends at a clip, as (centre, width) in units of the grid,
        and whether there is one (B, L) bool. The last ends at (n − 1) / n of n clips, as released.
    """
    place = torch.arange(mask.shape[1], device=mask.device)
    size = mask.sum(1, keepdim=True).clamp(min=1)
    cut = _boundaries(video, mask, place, size, how)
    latest = torch.where(cut, place, -1).cummax(1).values
    before = functional.pad(latest[:, :-1], (1, 0), value=-1)
    exists = cut & (before >= 0)
    edges = torch.stack([before.expand_as(cut), place.expand_as(cut)], dim=-1)
    if how == "released" and len(mask) % 2:
        # No event ends at clip 0, so its row is free for the span that joins two videos.
        middle = len(mask) // 2
        edges[middle, 0] = torch.stack([latest[-1, -1], place[0]])
        exists[middle, 0] = True
    return centre_width(edges.float() / size.unsqueeze(-1)), exists


def _boundaries(
    video: Tensor, mask: Tensor, place: Tensor, size: Tensor, how: Literal["online", "released"]
) -> Tensor:
    """(B, L) bool."""
    counted = torch.ones_like(mask) if how == "released" else mask
    score = boundary_scores(video.masked_fill(~counted.unsqueeze(-1), 0))
    mean = (score * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
    ends = (place == 0) | (place == size - 1)
    score = score.masked_fill(ends, torch.inf)
    peak = (score >= score.roll(1, 1)) & (score >= score.roll(-1, 1)) & (score >= mean)
    return peak & counted


def event_spans(batch: Batch, source: EventSource) -> tuple[Tensor, Tensor]:
    """The events of a batch as (centre, width) (B, E, 2) in [0, 1], and which exist (B, E) bool.

    E is at least 1, though there may be no events.

    Raises:
        UsageError: stored events are asked for and the batch has none.
    """
    if source != "stored":
        return find_events(batch.video, batch.video_mask, how=source)
    if batch.events is None or batch.event_mask is None:
        raise UsageError(
            "the model is to learn from stored pseudo-events, and this batch has none; load them "
            "(data.events: true, after the pipeline's events stage), or build the model with "
            "events=online, which finds them in the features"
        )
    spans = centre_width(batch.events[..., :2].float())
    return functional.pad(spans, (0, 0, 0, 1)), functional.pad(batch.event_mask, (0, 1))


class EventMatcher:
    """Optimal assignment of predicted spans to events under `span · L1 − giou · gIoU`.

    There may be more events than predictions, or fewer.

    Args:
        span: cost of the L1 distance of (centre, width).
        giou: cost of the generalised IoU.
    """

    def __init__(self, *, span: float, giou: float) -> None:
        self.span, self.giou = span, giou

    @torch.no_grad()
    def __call__(self, spans: Tensor, events: Tensor, mask: Tensor) -> Tensor:
        """The event (B, Q) int64 of every span, −1 without one.

        Args:
            spans: (B, Q, 2) as (centre, width).
            events: (B, E, 2) as (centre, width).
            mask: (B, E) bool.
        """
        if not mask.shape[1]:
            return torch.full(spans.shape[:2], -1, device=spans.device)
        spans = spans.float()
        distance = (spans.unsqueeze(2) - events.unsqueeze(1)).abs().sum(-1)
        giou = pairwise_giou(start_end(spans), start_end(events))
        cost = self.span * distance - self.giou * giou
        # A refuge for every span, dearer than all ways to do without: as few as possible take one.
        cost = cost.masked_fill(~mask.unsqueeze(1), 0)
        spread = cost.amax((1, 2), keepdim=True) - cost.amin((1, 2), keepdim=True)
        dear = cost.amax((1, 2), keepdim=True) + spread * cost.shape[1] + 1
        cost = torch.where(mask.unsqueeze(1), cost, dear)
        cost = torch.cat([cost, dear.expand(-1, cost.shape[1], cost.shape[1])], dim=-1)
        found = assign(cost, torch.ones_like(cost[..., 0], dtype=torch.bool))
        exists = functional.pad(mask, (0, cost.shape[1])).gather(1, found)
        return torch.where(exists, found, -1)


class EventTerm(LossTerm):
    """Predicted event spans against the events that the matcher gives them: L1 of (centre, width)
    and 1 − gIoU, one term because they share the matching.

    Args:
        weight: factor in the sum.
        span: of the L1 within the term.
        giou: of 1 − gIoU within the term.
        matcher: gives every span its event.
        source: where the events come from.
    """

    name = "event"
    requires = frozenset({"event_spans"})

    def __init__(
        self, weight: float, *, span: float, giou: float, matcher: EventMatcher, source: EventSource
    ) -> None:
        super().__init__(weight)
        if source == "stored":
            self.requires = self.requires | {"events"}
        self.span, self.giou = span, giou
        self.matcher = matcher
        self.source = source

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        given = self.matched(outcome)
        return self.span * losses.span_l1(*given) + self.giou * losses.span_giou(*given)

    def matched(self, outcome: Outcome) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted spans (B, Q, 2), the event of each (B, Q, 2), and whether it has one (B, Q)."""
        spans = outcome.predictions.extras["event_spans"].float()
        events, mask = event_spans(outcome.batch, self.source)
        index = self.matcher(spans, events, mask)
        chosen = index.clamp(min=0).unsqueeze(-1).expand_as(spans)
        return spans, events.gather(1, chosen), index >= 0
