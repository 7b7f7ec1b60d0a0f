"""UniVTG with `release` computes what its public code computes (golden/retrieval/README.md)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.retrieval import MODELS
from models.retrieval.official import official_state_dict
from models.retrieval.parts.spans import start_end
from models.retrieval.types import Batch, Predictions, StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_input_gradients,
    close,
    read,
    with_gradients,
)


@pytest.fixture(params=["a", "b", "c", "q"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("univtg", request.param, request)


def check_predictions(
    ours: Predictions, gold: dict[str, Tensor], prefix: str, batch: Batch, places: Tensor
) -> None:
    """The public code gives the foreground as a probability and edges relative to the clip."""
    probability = ours.logits.softmax(-1)[..., :1]
    close(probability, gold[f"{prefix}.pred_logits"])
    edges = start_end(ours.spans)
    close(edges - places.unsqueeze(-1), gold[f"{prefix}.pred_spans"], batch.video_mask)
    close(ours.saliency, gold[f"{prefix}.saliency_scores"], batch.video_mask)


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    found = trace.predictions
    check_predictions(found, gold, "eval", batch, golden.inputs["timestamp"][..., 0])
    close(trace.memory.kv, gold["eval.memory"], trace.memory.kv_mask)
    close(trace.tokens.video, gold["eval.vid_mem_proj"])
    close(found.extras["sentence"].unsqueeze(1), gold["eval.txt_mem_proj"])
    assert found.query_mask is not None
    assert torch.equal(found.query_mask, batch.video_mask)


@pytest.mark.parametrize("case", ["b", "q"])
def test_a_training_step_equals_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("univtg", case, request)
    step, batch = golden.meta["train"]["train"], with_gradients(golden.batch)
    model = golden.load(droppath=0.0, input_dropout=0.0).train()
    places = golden.inputs["timestamp"][..., 0]
    check_predictions(model(batch), golden.tensors, "train", batch, places)

    losses = model.losses(batch, StepContext())
    public = {"span": "b", "giou": "g", "label": "f", "inter": "s_inter", "intra": "s_intra"}
    assert losses.keys() == public.keys()
    for ours, theirs in public.items():
        weighted = step["losses"][f"loss_{theirs}"] * step["weights"][f"loss_{theirs}"]
        assert losses[ours].item() == pytest.approx(weighted, rel=1e-4), ours
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)
    check_input_gradients(batch, golden)


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get("univtg").official
    back, unused = official_state_dict(model, layout), layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)
