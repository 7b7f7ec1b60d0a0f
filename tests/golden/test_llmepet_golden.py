"""LLMEPET in the `release` preset computes what the public code computes.

It is CG-DETR with a refiner, so its checks are those of CG-DETR on LLMEPET's cases, and those of
the refiner here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.retrieval.plugins.event_regulation import RegulatedEventHead
from models.retrieval.plugins.llm_refiner import LLMRefiner, rows_of
from tests.golden.public_golden import Golden, check_matches, close, read
from tests.golden.test_cg_detr_golden import (
    CASES,
    STEPS,
    test_a_training_step_equals_the_public_code,
    test_outputs_equal_the_public_code,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = [
    "test_a_training_step_equals_the_public_code",
    "test_outputs_equal_the_public_code",
    "test_public_weights_survive_the_way_there_and_back",
]


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("llmepet", request.param, request)


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest) -> Golden:
    return read("llmepet", request.param, request)


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


def test_matched_indices_equal_the_public_code(step: Golden) -> None:
    """The second call matches events, for a loss that is not in the sum."""
    train = step.meta["train"]["train"]
    last, _, *earlier = train["matched_indices_in_call_order"]
    moments = train | {"matched_indices_in_call_order": [last, *earlier]}
    check_matches(step.load(), replace(step, meta=step.meta | {"train": {"train": moments}}))
