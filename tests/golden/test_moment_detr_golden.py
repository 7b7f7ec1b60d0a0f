"""Moment-DETR's `release` preset computes what its public code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.retrieval import MODELS
from models.retrieval.official import official_state_dict
from models.retrieval.parts import losses
from models.retrieval.types import StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_input_gradients,
    check_layers,
    check_matches,
    close,
    read,
    with_gradients,
)


@pytest.fixture(params=["a", "b", "c", "q"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("moment_detr", request.param, request)


@torch.no_grad()
def test_moment_detr_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_layers(trace.predictions, golden)
    close(trace.predictions.saliency, gold["eval.saliency_scores"], batch.video_mask)
    assert trace.decoded is not None
    close(trace.decoded.states, gold["eval.hs"])
    close(trace.memory.kv, gold["eval.memory"], trace.memory.kv_mask)


@pytest.mark.parametrize("case", ["b", "q"])
def test_a_training_step_of_moment_detr_equals_the_public_code(
    case: str, request: pytest.FixtureRequest
) -> None:
    golden = read("moment_detr", case, request)
    step, batch = golden.meta["train"]["train"], with_gradients(golden.batch)
    model = golden.load(dropout=0.0, input_dropout=0.0).train()
    found = model(batch)
    close(found.logits, golden.tensors["train.pred_logits"])
    close(found.spans, golden.tensors["train.pred_spans"])
    values = model.losses(batch, StepContext())
    names = {"margin": "saliency"}
    for name, loss in values.items():
        public = f"loss_{names.get(name, name)}"
        expected = step["losses"][public] * step["weights"][public]
        assert loss.item() == pytest.approx(expected, rel=1e-4), name
    total = torch.stack(list(values.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)
    check_input_gradients(batch, golden)


@pytest.mark.parametrize("case", ["b", "q"])
def test_matches_of_moment_detr_equal_the_public_code(
    case: str, request: pytest.FixtureRequest
) -> None:
    golden = read("moment_detr", case, request)
    check_matches(golden.load(), golden)


def test_public_weights_of_moment_detr_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get("moment_detr").official
    back, unused = official_state_dict(model, layout), layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)


def test_the_functions_of_moment_detr_give_what_the_public_ones_give(shared: Path) -> None:
    pure = load_file(shared / "golden" / "retrieval" / "pure" / "moment_detr.safetensors")
    pairs = [pure[f"saliency_margin.{key}"] for key in ("pos", "neg")]
    everywhere = torch.ones_like(pairs[0], dtype=torch.bool)
    margin = losses.margin_loss(pure["saliency_margin.scores"], *pairs, everywhere, margin=0.2)
    close(margin, pure["saliency_margin.loss"])
    queries, words = pure["contrastive_align.queries"], pure["contrastive_align.words"]
    matched = torch.zeros(2, 10, dtype=torch.bool)
    matched[0, [2, 5]] = matched[1, 7] = True
    mask = torch.ones(words.shape[:2], dtype=torch.bool)
    align = losses.contrastive_align(queries, words, mask, matched, temperature=0.07)
    close(align, pure["contrastive_align.loss"])
