from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model
from models.retrieval.parts.spans import centre_width, overlap, start_end
from models.retrieval.plugins.event_regulation import BoundaryTerm, beyond
from models.retrieval.testing import random_batch
from models.retrieval.types import Batch, StepContext

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "queries": 4,
}


def model(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    plugins = {"event_regulation": {"event_coef": 1.0} | options}
    return create_model("qd_detr", **SMALL, plugins=plugins).train()


def ragged(events: int = 3) -> Batch:
    """The last sample has one event less."""
    batch = random_batch([7, 5, 6], [3, 4, 2], moments=2, events=events)
    assert batch.event_mask is not None
    mask = batch.event_mask.clone()
    mask[-1, -1] = False
    return replace(batch, event_mask=mask)


def literal(spans: Tensor, batch: Batch, *, l1: float, giou: float, reduction: str) -> Tensor:
    """Sample by sample, with scipy's assignment."""
    assert batch.events is not None
    assert batch.event_mask is not None
    pairs, per_sample = [], []
    for row, events, mask in zip(spans, batch.events[..., :2], batch.event_mask, strict=True):
        event = centre_width(events[mask])
        apart = (row[:, None] - event[None]).abs()
        overlapping = overlap(start_end(row)[:, None], start_end(event)[None])[1]
        cost = l1 * apart.sum(-1) - giou * overlapping
        chosen = linear_sum_assignment(cost.detach().numpy())
        distance = apart.sum(-1) if reduction == "sum" else apart.mean(-1)
        value = (l1 * distance + giou * (1 - overlapping))[chosen]
        pairs.append(value)
        per_sample.append(value.sum())
    return torch.stack(per_sample).mean() if reduction == "sum" else torch.cat(pairs).mean()


@pytest.mark.parametrize("events", [1, 3, 9])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_event_head_pays_for_the_distance_from_its_events(events: int, reduction: str) -> None:
    built, batch = model(event_reduction=reduction), ragged(events)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    spans = built(batch).extras["regulated_events"]
    expected = literal(spans, batch, l1=10.0, giou=1.0, reduction=reduction)
    torch.testing.assert_close(built.losses(batch)["event"], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equation_nine_as_printed_holds_the_moments_to_the_events(reduction: str) -> None:
    built = model(event_target="moments", event_reduction=reduction, event_l1=2.0, event_giou=3.0)
    batch = ragged()
    found = built(batch)
    expected = literal(found.spans, batch, l1=2.0, giou=3.0, reduction=reduction)
    torch.testing.assert_close(built.losses(batch)["event"], expected)
    every = model(
        event_target="moments",
        event_layers="all",
        event_reduction=reduction,
        event_l1=2.0,
        event_giou=3.0,
    ).losses(batch)
    first = literal(found.layers[0][1], batch, l1=2.0, giou=3.0, reduction=reduction)
    torch.testing.assert_close(every["event_0"], first)
    torch.testing.assert_close(every["event"], expected)


def test_the_penalty_is_what_a_moment_reaches_beyond_its_event() -> None:
    edges = torch.tensor([[[0.15, 0.35], [0.0, 0.5], [0.55, 0.6], [0.9, 1.2]]])
    events = torch.tensor([[[0.1, 0.4], [0.4, 0.9], [0.9, 1.0]]])
    mask = torch.tensor([[True, True, True]])
    over, some = beyond(centre_width(edges), events, mask)
    torch.testing.assert_close(over, torch.tensor([[0.0, 0.2, 0.0, 0.2]]), atol=1e-6, rtol=0)
    assert some.all()
    # The second moment would overlap an event that does not exist.
    over, _ = beyond(centre_width(edges), events, torch.tensor([[False, True, True]]))
    assert over[0, 1] == pytest.approx(0.4)


def test_only_moments_that_answer_for_the_ground_truth_pay() -> None:
    built, batch = model(event_target="boundary_penalty"), ragged()
    assert batch.targets is not None
    assert built.losses(batch)["event"] > 0
    nothing = replace(batch.targets, span_mask=torch.zeros_like(batch.targets.span_mask))
    assert built.losses(replace(batch, targets=nothing))["event"] == 0
    term = built.criterion.terms["event"]
    assert isinstance(term, BoundaryTerm)


def test_the_penalty_is_that_of_the_last_layer_unless_all_are_asked_for() -> None:
    batch = ragged()
    last = model(event_target="boundary_penalty").losses(batch)
    every = model(event_target="boundary_penalty", event_layers="all").losses(batch)
    assert every.keys() - last.keys() == {"event_0"}
    assert every["event"] == last["event"]


@pytest.mark.parametrize("target", ["event_head", "moments", "boundary_penalty"])
def test_samples_without_events_pay_nothing(target: str) -> None:
    built, batch = model(event_target=target), ragged()
    assert batch.events is not None
    assert batch.event_mask is not None
    none = replace(batch, event_mask=torch.zeros_like(batch.event_mask))
    empty = replace(batch, events=batch.events[:, :0], event_mask=batch.event_mask[:, :0])
    for each in (none, empty):
        losses = built.losses(each)
        assert losses["event"] == 0
        torch.stack(list(losses.values())).sum().backward()


@pytest.mark.parametrize("target", ["event_head", "moments", "boundary_penalty"])
def test_a_batch_without_events_is_refused_and_not_passed_over(target: str) -> None:
    batch = replace(ragged(), events=None, event_mask=None)
    with pytest.raises(UsageError, match=r"data\.events=true"):
        model(event_target=target).losses(batch, StepContext())


def test_the_head_reads_the_first_decoder_layer() -> None:
    built, batch = model(), ragged()
    trace = built.trace(batch, passes=False)
    assert trace.decoded is not None
    head = built.heads[-1]
    expected = head(trace.memory, replace(trace.decoded, states=trace.decoded.states[:1]), {})
    assert torch.equal(trace.predictions.extras["regulated_events"], expected["regulated_events"])
    assert torch.equal(expected["regulated_events"], torch.full((3, 4, 2), 0.5))  # starts at zero
