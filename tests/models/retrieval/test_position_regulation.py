from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model
from models.retrieval.plugins.position_regulation import members
from models.retrieval.testing import random_batch
from models.retrieval.types import Batch

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
}


def model(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    chosen = {"position_coef": 1.0, "max_clips": 9} | options
    return create_model("qd_detr", **SMALL, plugins={"position_regulation": chosen}).train()


def batch_of(edges: list[list[tuple[float, float]]], lengths: list[int]) -> Batch:
    batch = random_batch(lengths, [3] * len(lengths))
    most = max(map(len, edges))
    events = torch.zeros(len(edges), most, 3)
    mask = torch.zeros(len(edges), most, dtype=torch.bool)
    for row, each in enumerate(edges):
        events[row, : len(each), :2] = torch.tensor(each).view(-1, 2)
        mask[row, : len(each)] = True
    return replace(batch, events=events, event_mask=mask)


EDGES = [[(0.0, 0.5), (0.5, 1.0)], [(0.0, 0.2), (0.2, 1.0)]]
LENGTHS = [8, 5]


def literal(places: Tensor, *, reduction: str) -> float:
    """Eq. 10, event by event, without the constant of each."""
    clips = [[range(4), range(4, 8)], [range(1), range(1, 5)]]
    total = 0.0
    for row, events in enumerate(clips):
        for event in events:
            own = places[row, list(event)]
            if len(own) < 2:
                continue
            apart = (own - own[(len(own) - 1) // 2]).abs()
            exponent = apart.mean() if reduction == "mean" else apart.sum(-1).mean()
            total += math.exp(exponent) - 1
    return total / len(clips)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("places", ["learned", "sine_mlp"])
def test_the_loss_is_equation_ten_event_by_event(places: str, reduction: str) -> None:
    built, batch = model(places=places, position_reduction=reduction), batch_of(EDGES, LENGTHS)
    codes = built.trace(batch, passes=False).tokens.video_pos
    found = built.losses(batch)["position"]
    assert found.item() == pytest.approx(literal(codes.detach(), reduction=reduction), rel=1e-4)


def test_codes_learn_and_those_of_no_clip_do_not() -> None:
    built, batch = model(), batch_of(EDGES, LENGTHS)
    built.losses(batch)["position"].backward()
    gradient = built.merges[0].get_parameter("table").grad
    assert gradient is not None
    assert gradient[:8].abs().amax(-1).min() > 0
    assert gradient[8].abs().max() == 0  # the table has a row more than there are clips


def test_padding_has_no_part_in_it() -> None:
    built, batch = model(), batch_of(EDGES[1:], LENGTHS[1:])
    both = batch_of([EDGES[1], []], [5, 9])
    alone, beside = (built.losses(each)["position"] for each in (batch, both))
    torch.testing.assert_close(beside * 2, alone)


def test_events_of_one_clip_cost_nothing_and_those_of_two_do() -> None:
    cuts = [(i / 5, (i + 1) / 5) for i in range(5)]
    assert model().losses(batch_of([cuts], [5]))["position"] == 0
    # of two clips the first is the centre: Eq. 10 with N = 2, without the constant
    built, batch = model(), batch_of([[(0.0, 0.4)]], [5])
    first, second = built.trace(batch, passes=False).tokens.extras["places"][0, :2]
    expected = ((second - first).abs().mean() / 2).expm1()
    torch.testing.assert_close(built.losses(batch)["position"], expected)


def test_an_event_of_a_long_video_stays_finite() -> None:
    built = model(position_reduction="sum", max_clips=700, max_exponent=10.0)
    with torch.no_grad():
        built.merges[0].get_parameter("table").mul_(100)
    loss = built.losses(batch_of([[(0.0, 1.0)]], [700]))["position"]
    assert loss.item() == pytest.approx(math.expm1(10), rel=1e-4)


def test_clips_belong_to_the_event_that_holds_their_middle() -> None:
    events = torch.tensor([[[0.0, 0.25], [0.25, 1.0]]])
    clips = torch.tensor([[True, True, True, True, False]])
    found = members(events, torch.ones(1, 2, dtype=torch.bool), clips)
    assert found.tolist() == [
        [[True, False, False, False, False], [False, True, True, True, False]]
    ]


def test_a_clip_whose_middle_is_where_two_events_meet_is_of_the_second_alone() -> None:
    # 0.375 is the middle of the second of four clips
    events, clips = torch.tensor([[[0.0, 0.375], [0.375, 1.0]]]), torch.ones(1, 4).bool()
    found = members(events, torch.ones(1, 2, dtype=torch.bool), clips)
    assert found.tolist() == [[[True, False, False, False], [False, True, True, True]]]


def test_events_that_do_not_count_have_no_members() -> None:
    """As after another order of the clips, which leaves the edges and takes the mask."""
    batch = batch_of(EDGES, LENGTHS)
    assert batch.event_mask is not None
    none = replace(batch, event_mask=torch.zeros_like(batch.event_mask))
    assert model().losses(none)["position"] == 0


def test_fixed_sines_are_refused_because_nothing_would_learn() -> None:
    with pytest.raises(UsageError, match=r"nothing to train.*learned or sine_mlp"):
        model(places="sine")
    assert not model(places="sine", position_coef=0.0).merges


def test_a_table_that_is_too_short_says_so() -> None:
    with pytest.raises(UsageError, match=r"12 clips and the table of places 9.*sine_mlp"):
        model()(random_batch([12], [3]))
    model(places="sine_mlp")(random_batch([12], [3]))


@torch.no_grad()
def test_codes_start_as_sines() -> None:
    batch = random_batch([9, 9], [3, 3])
    plain = create_model("qd_detr", **SMALL).encoders(batch).video_pos
    for places in ("learned", "sine_mlp"):
        found = model(places=places).trace(batch, passes=False).tokens.video_pos
        torch.testing.assert_close(found, plain)


def test_a_batch_without_events_is_refused_and_not_passed_over() -> None:
    batch = random_batch([6], [3], events=0)
    with pytest.raises(UsageError, match=r"position regulation.*data\.events=true"):
        model().losses(batch)
