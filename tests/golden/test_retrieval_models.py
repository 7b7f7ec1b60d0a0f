"""The `release` preset computes what the public code computes (tests/golden/retrieval/README.md).

Tolerances are those of that page; the public numbers are float32 on a CPU. Here the base of the
family; every other model has a file of its own beside this one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.retrieval import MODELS
from models.retrieval.official import official_state_dict
from models.retrieval.types import Batch, Predictions, StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_layers,
    check_matches,
    close,
    read,
)


@pytest.fixture(params=["a", "b", "c", "q"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("qd_detr", request.param, request)


def check_predictions(
    ours: Predictions, gold: dict[str, Tensor], prefix: str, batch: Batch
) -> None:
    close(ours.logits, gold[f"{prefix}.pred_logits"])
    close(ours.spans, gold[f"{prefix}.pred_spans"])
    close(ours.saliency, gold[f"{prefix}.saliency_scores"], batch.video_mask)
    close(ours.extras["saliency_negative"], gold[f"{prefix}.saliency_scores_neg"], batch.video_mask)


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_predictions(trace.predictions, gold, "eval", batch)
    check_layers(trace.predictions, golden)
    assert trace.decoded is not None
    assert trace.decoded.references is not None
    assert trace.memory.global_token is not None
    close(trace.decoded.states, gold["eval.hs"])
    close(trace.decoded.references, gold["eval.references"])
    close(trace.memory.global_token, gold["eval.memory_global"])
    close(trace.memory.clip, gold["eval.memory"], batch.video_mask)


@pytest.mark.parametrize("case", ["b", "q"])
def test_a_training_step_equals_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("qd_detr", case, request)
    step, batch = golden.meta["train"]["train"], golden.batch
    model = golden.load(dropout=0.0, input_dropout=0.0).train()
    check_predictions(model(batch), golden.tensors, "train", batch)

    losses = model.losses(batch, StepContext())
    values = {name: loss.item() for name, loss in losses.items()}
    weights = step["weights"]
    saliency = values["margin"] + values["rank"] + values["negative_pair"]
    assert saliency == pytest.approx(step["losses"]["loss_saliency"], rel=1e-4)
    for ours in ("span", "giou", "label", "span_0", "giou_0", "label_0"):
        public = step["losses"][f"loss_{ours}"] * weights[f"loss_{ours}"]
        assert values[ours] == pytest.approx(public, rel=1e-4), ours
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)


@pytest.mark.parametrize("case", ["b", "q"])
def test_matched_indices_equal_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("qd_detr", case, request)
    check_matches(golden.load(), golden)


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get("qd_detr").official
    back = official_state_dict(model, layout)
    unused = layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)
