"""LLMEPET's event regulation: predictions keep to pseudo-events of the video.

Jiang et al., ACM MM 2024, https://arxiv.org/abs/2407.15051, Eq. 9:
`L_evt = Σ_e (λ_L1 ‖e − m_k‖₁ + λ_IoU L_gIoU(e, m_k))`, weight 0.1. The paper does not bind k. Its
public code (fletcherjiang/LLMEPET, commit e33af23) implements the loss and never adds it to the
sum, so its runs are without it. Three readings:

event_target: `event_head`, that of EaTR and of the public code's unused function: a head of its own
    on the states of the first decoder layer, whose spans are matched to the events. `moments`, the
    equation as printed: the predicted moments themselves are matched to all events of the video,
    which pulls them away from the ground truth. `boundary_penalty`, what the text around the
    equation says and ours: a moment that answers for a ground truth pays for what it reaches
    beyond the event that it overlaps best.

Events come with the batch (`data.events=true`), computed once, not from features in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.build import PLUGINS, Blueprint, Dims, Options, Plugin
from models.retrieval.flow import Decoded, Memory, Outcome
from models.retrieval.parts.projection import MLP
from models.retrieval.parts.pseudo_events import EventMatcher
from models.retrieval.parts.spans import centre_width, overlap, pairwise_giou, start_end
from models.retrieval.stages import Head, LossTerm
from models.retrieval.types import Batch

__all__ = [
    "BoundaryTerm",
    "EventOptions",
    "RegulatedEventHead",
    "RegulatedEventTerm",
    "apply",
    "beyond",
    "events_of",
]


class EventOptions(Options):
    """Options of the event regulation.

    Args:
        event_target: see the module.
        event_coef: weight of the loss; 0 leaves the plug-in out.
        event_l1: weight of the L1 distance in it, and in the matching.
        event_giou: weight of 1 − gIoU in it, and in the matching.
        event_reduction: `mean` over pairs, as the public code; `sum` over the pairs of a sample
            and mean over samples, as the paper.
        event_layers: decoder layers whose moments count, for `moments` and `boundary_penalty`.
    """

    event_target: Literal["event_head", "moments", "boundary_penalty"] = "event_head"
    event_coef: float = Field(0.1, ge=0)
    event_l1: float = Field(10.0, ge=0)
    event_giou: float = Field(1.0, ge=0)
    event_reduction: Literal["mean", "sum"] = "mean"
    event_layers: Literal["last", "all"] = "last"


class RegulatedEventHead(Head):
    """A span in the video's events for every query, from the first decoder layer.

    Args:
        width: features.
    """

    requires = frozenset({"states"})
    provides = frozenset({"regulated_events"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.span = MLP(width, width, 2, 3)
        last = self.span.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`regulated_events` (B, Q, 2) float32 as (centre, width) in [0, 1]."""
        assert decoded is not None
        return {"regulated_events": self.span(decoded.states[0]).float().sigmoid()}


class RegulatedEventTerm(LossTerm):
    """L1 and gIoU of the spans that answer for events.

    Args:
        options: of the plug-in.
    """

    name = "event"

    def __init__(self, options: EventOptions) -> None:
        super().__init__(options.event_coef)
        self.options = options
        self.matcher = EventMatcher(span=options.event_l1, giou=options.event_giou)
        head = options.event_target == "event_head"
        self.requires = frozenset({"events", "regulated_events" if head else "spans"})

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar, or (ℓ,) with `event_layers: all`."""
        o = self.options
        events, mask = events_of(outcome.batch, "event regulation")
        spans = self._spans(outcome)
        chosen = centre_width(events).expand(*spans.shape[:-2], *events.shape[1:])
        matched = self._matched(spans, chosen, mask)
        if not mask.shape[1]:
            return spans.sum((-3, -2, -1)) * 0
        chosen = chosen.gather(-2, matched.clamp(min=0).unsqueeze(-1).expand_as(spans))
        distance = (spans - chosen).abs()
        apart = distance.sum(-1) if o.event_reduction == "sum" else distance.mean(-1)
        giou = overlap(start_end(spans), start_end(chosen))[1]
        value = o.event_l1 * apart + o.event_giou * (1 - giou)
        return _reduced(value, matched >= 0, o.event_reduction)

    def _matched(self, spans: Tensor, events: Tensor, mask: Tensor) -> Tensor:
        """(…, B, Q) int64, the event of every span, −1 without one."""
        exists = mask.expand(*spans.shape[:-3], *mask.shape).flatten(0, -2)
        found = self.matcher(spans.flatten(0, -3), events.flatten(0, -3), exists)
        return found.view(spans.shape[:-1])

    def _spans(self, outcome: Outcome) -> Tensor:
        if self.options.event_target == "event_head":
            return outcome.predictions.extras["regulated_events"].float()
        return outcome.spans if self.options.event_layers == "all" else outcome.spans[-1]


class BoundaryTerm(LossTerm):
    """How far matched moments reach beyond the events that they overlap best.

    Args:
        options: of the plug-in.
    """

    name = "event"
    requires = frozenset({"spans", "events"})

    def __init__(self, options: EventOptions) -> None:
        super().__init__(options.event_coef)
        self.options = options

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar, or (ℓ,) with `event_layers: all`; units of the grid."""
        events, mask = events_of(outcome.batch, "event regulation")
        spans, _, matched = outcome.matched_spans()
        if self.options.event_layers == "last":
            spans, matched = spans[-1], matched[-1]
        over, some = beyond(spans, events, mask)
        return _reduced(over, matched & some.unsqueeze(-1), self.options.event_reduction)


def events_of(batch: Batch, reader: str) -> tuple[Tensor, Tensor]:
    """(B, E, 2) float32 (start, end) in [0, 1] of the grid, and (B, E) bool.

    Args:
        batch: a batch with pseudo-events.
        reader: who reads them, for the message.

    Raises:
        UsageError: the batch has none; a loss without them would be silently off.
    """
    if batch.events is None or batch.event_mask is None:
        raise UsageError(
            f"{reader} reads pseudo-events, and this batch carries none; load them with the "
            "trainer's `data.events=true` (`pipeline run --stage events` writes them), or set its "
            "coefficient to 0"
        )
    return batch.events[..., :2].float(), batch.event_mask


def beyond(spans: Tensor, events: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far moments reach beyond the event that they overlap best (generalised IoU).

    Args:
        spans: (…, B, G, 2) as (centre, width).
        events: (B, E, 2) as (start, end).
        mask: (B, E) bool.

    Returns:
        (…, B, G) in units of the grid, and (B,) bool, samples that have an event.
    """
    edges = start_end(spans)
    if not mask.shape[1]:
        return edges.sum(-1) * 0, mask.any(1)
    score = pairwise_giou(edges.detach(), events).masked_fill(~mask.unsqueeze(1), -torch.inf)
    best = score.argmax(-1)
    held = events.unsqueeze(1).expand(*spans.shape[:-1], *events.shape[1:])
    index = best[..., None, None].expand(*best.shape, 1, 2)
    event = held.gather(-2, index).squeeze(-2)
    before = (event[..., 0] - edges[..., 0]).clamp(min=0)
    return before + (edges[..., 1] - event[..., 1]).clamp(min=0), mask.any(1)


def _reduced(value: Tensor, mask: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """(…) of (…, B, N): the mean where `mask`, or the sum of a sample and the mean of those."""
    kept = torch.where(mask, value, 0)
    if reduction == "sum":
        return kept.sum(-1).mean(-1)
    return kept.sum((-2, -1)) / mask.sum((-2, -1)).clamp(min=1)


def apply(blueprint: Blueprint, dims: Dims, options: EventOptions) -> Blueprint:
    """The model with the loss, and with its head if it has one; unchanged with weight 0."""
    if options.event_coef == 0:
        return blueprint
    parts = blueprint.parts
    if options.event_target == "event_head":
        parts = replace(parts, heads=(*parts.heads, RegulatedEventHead(blueprint.width)))
    boundary = options.event_target == "boundary_penalty"
    term = BoundaryTerm(options) if boundary else RegulatedEventTerm(options)
    return replace(blueprint, parts=replace(parts, terms=(*parts.terms, term)))


_NO_QUERIES = (
    "it has no queries that could answer for events; choose a base with queries, or leave the "
    "plug-in out"
)

PLUGINS.register("event_regulation")(
    Plugin(
        stage="criterion",
        requires=frozenset({"spans", "events"}),
        options=EventOptions,
        apply=apply,
        off={"event_coef": 0.0},
        conflicts={
            "llmepet": "it is built with this one; set its own options (event_*)",
            "eatr": "its slots learn from the events already; set its event_weight",
            "univtg": _NO_QUERIES,
            "emb": _NO_QUERIES,
        },
    )
)
