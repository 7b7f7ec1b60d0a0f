"""LLMEPET in the `release` preset computes what the public code computes.

It is CG-DETR with a refiner, so its checks are those of CG-DETR on LLMEPET's cases, and those of
the refiner here.
"""

from __future__ import annotations

import pytest
import torch

from models.retrieval.parts.pseudo_events import EventMatcher, find_events
from models.retrieval.parts.spans import pairwise_giou, start_end
from models.retrieval.plugins.event_regulation import RegulatedEventHead
from models.retrieval.plugins.llm_refiner import LLMRefiner, rows_of
from tests.golden.public_golden import (
    Golden,
    close,
    golden_of,
    step_of,
    test_matched_indices_equal_the_public_code,
    test_public_weights_survive_the_way_there_and_back,
)
from tests.golden.test_cg_detr_golden import (
    CASES,
    STEPS,
    test_a_training_step_equals_the_public_code,
    test_outputs_equal_the_public_code,
)

__all__ = [
    "test_a_training_step_equals_the_public_code",
    "test_matched_indices_equal_the_public_code",
    "test_outputs_equal_the_public_code",
    "test_public_weights_survive_the_way_there_and_back",
]


golden = golden_of("llmepet", cases=CASES)
step = step_of("llmepet", steps=STEPS)


@torch.no_grad()
def test_the_refiner_equals_the_public_code_in_front_of_it_and_inside(golden: Golden) -> None:
    model, gold = golden.load(), golden.tensors
    refiner = model.refiners[0]
    assert isinstance(refiner, LLMRefiner)
    assert refiner.layers is not None
    rows = rows_of(model.fuser(model.encoders(golden.batch)))
    public = gold["eval.memory_before_refiner"].transpose(0, 1)
    close(rows.x, public, rows.mask)
    # From the public rows, of which the padded ones count, too: samples read each other.
    lifted = refiner.lift(public).transpose(0, 1)
    hidden = refiner.layers(lifted, torch.ones(lifted.shape[:2], dtype=torch.bool))
    close(hidden, gold["eval.refiner_hidden"])


@torch.no_grad()
def test_the_event_head_equals_the_public_one(golden: Golden) -> None:
    trace = golden.load().trace(golden.batch, passes=False)
    head = RegulatedEventHead(trace.memory.clip.shape[-1])
    names = head.state_dict().keys()
    stored = {key: golden.weights[key.replace("span", "event_span_embed", 1)] for key in names}
    head.load_state_dict(stored)
    found = head(trace.memory, trace.decoded, {})["regulated_events"]
    close(found, golden.tensors["eval.pred_event_spans"])


@torch.no_grad()
def test_pseudo_events_of_the_projected_clips_equal_the_public_code(golden: Golden) -> None:
    """EaTR's detector, on the clips as they enter the fusion, where EaTR takes the raw features."""
    spans, mask = _events(golden)
    for row in range(len(spans)):
        close(spans[row][mask[row]], golden.tensors[f"eval.pseudo_event_spans.{row}"])


@torch.no_grad()
def test_matched_events_cost_what_those_of_the_public_code_cost(step: Golden) -> None:
    """In case `q` two events can be swapped at the same cost: there the pairs may differ."""
    _, public, *_ = step.step["matched_indices_in_call_order"]
    events, mask = _events(step)
    predicted = step.tensors[f"{step.variant}.pred_event_spans"]
    matched = EventMatcher(span=10, giou=1)(predicted, events, mask)
    giou = pairwise_giou(start_end(predicted), start_end(events))
    cost = 10 * (predicted.unsqueeze(2) - events.unsqueeze(1)).abs().sum(-1) - giou
    for row, (queries, numbers) in enumerate(public):
        ours = [(q, e) for q, e in enumerate(matched[row].tolist()) if e >= 0]
        there = mask[row].nonzero().squeeze(1)
        theirs = [(q, int(there[n])) for q, n in zip(queries, numbers, strict=True)]
        sums = [sum(float(cost[row, q, e]) for q, e in pairs) for pairs in (ours, theirs)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-6)
        assert len(ours) == len(theirs)
        assert ours == theirs or step.meta["case"] == "q"


def _events(golden: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    clips = golden.load().encoders(golden.batch).video
    return find_events(clips, golden.batch.video_mask, how="released")
