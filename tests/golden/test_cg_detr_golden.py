"""CG-DETR in the `release` preset computes what the public code computes."""

from __future__ import annotations

import pytest
import torch

from models.retrieval import MODELS
from models.retrieval.official import official_state_dict
from models.retrieval.stages import Trace
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

CASES = ["a", "b", "c", "b_onefalse", "b_twofalse", "q"]
STEPS = ["b", "b_onefalse", "b_twofalse", "q"]


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("cg_detr", request.param, request)


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest) -> Golden:
    return read("cg_detr", request.param, request)


def check_saliency(trace: Trace, golden: Golden, prefix: str) -> None:
    """Saliency and attention, under the right text and, where there is one, a wrong text."""
    found, gold, real = trace.predictions, golden.tensors, golden.batch.video_mask
    other = found.extras["negative_mask"]
    assert torch.equal(other, gold[f"{prefix}.real_neg_mask"].bool())
    close(found.saliency, gold[f"{prefix}.saliency_scores"], real)
    close(found.extras["attention"], gold[f"{prefix}.t2vattnvalues"], real)
    for ours, public in (
        ("saliency_negative", "saliency_scores_neg"),
        ("attention_negative", "t2vattnvalues_neg"),
    ):
        if other.any():
            close(found.extras[ours][other], gold[f"{prefix}.{public}"], real[other])


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_layers(trace.predictions, golden)
    check_saliency(trace, golden, "eval")
    memory, decoded = trace.memory, trace.decoded
    assert decoded is not None
    assert decoded.references is not None
    assert memory.global_token is not None
    close(decoded.states, gold["eval.hs"])
    close(decoded.references, gold["eval.references"])
    close(memory.global_token, gold["eval.memory_global"])
    close(memory.clip, gold["eval.memory"], batch.video_mask)
    close(memory.extras["dummies"], gold["eval.dummy_tokens"])
    close(memory.extras["word_attention"], gold["eval.attn_weights"], batch.video_mask)


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    meta = step.meta["train"]["train"]
    batch = with_gradients(step.batch)
    model = step.load(dropout=0.0, input_dropout=0.0).train()
    trace = model.trace(batch, passes=True)
    check_saliency(trace, step, "train")
    for ours, public in (
        ("moment_token", "memory_moment"),
        ("other_token", "nmmemory_moment"),
        ("sentence_token", "sentence_txt"),
        ("dummy_token", "sentence_dummy"),
    ):
        close(trace.predictions.extras[ours], step.tensors[f"train.{public}"])

    losses = model.losses(batch, StepContext())
    values = {name: loss.item() for name, loss in losses.items()}
    expected = {name: meta["weights"].get(name, 0) * x for name, x in meta["losses"].items()}
    moments = {
        f"{name}{layer}"
        for name in ("span", "giou", "label")
        for layer in ("", *(f"_{i}" for i in range(len(trace.predictions.layers))))
    }
    alone = {"ms_align": "ms_align", "distill": "distill", "orthogonal": "orthogonal_dummy"}
    for name, theirs in ({name: name for name in moments} | alone).items():
        assert values[name] == pytest.approx(expected[f"loss_{theirs}"], rel=1e-4), name
    saliency = sum(x for name, x in values.items() if name not in moments | alone.keys())
    assert saliency == pytest.approx(expected["loss_saliency"], rel=1e-4)
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(meta["total"], rel=1e-4)
    total.backward()
    check_gradients(model, meta)
    check_input_gradients(batch, step)


def test_matched_indices_equal_the_public_code(step: Golden) -> None:
    check_matches(step.load(), step)


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get(model.recipe["name"]).official
    back = official_state_dict(model, layout)
    unused = layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)
