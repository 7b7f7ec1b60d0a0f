"""UVCOM's `release` preset computes what the public code computes.

Its choice of the mean of the clips that is most like the text is ill-conditioned, so outputs are
compared at 1e-4 (tests/golden/retrieval/README.md, Tolerance).
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.retrieval import MODELS, load_official
from models.retrieval.official import official_state_dict
from models.retrieval.parts.clustering import expectation_means, random_walk
from models.retrieval.parts.likeness import likeness
from models.retrieval.types import Batch, Predictions, StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_layers,
    check_matches,
    close,
    read,
)

ATOL = 1e-4
EPOCHS = {"train": 0, "train_hardneg": 80}


@pytest.fixture(params=["a", "b", "c", "q"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("uvcom", request.param, request)


def check_saliency(found: Predictions, golden: Golden, prefix: str, batch: Batch) -> None:
    gold, wrong = golden.tensors, found.extras["saliency_negative"]
    close(found.saliency, gold[f"{prefix}.saliency_scores"], batch.video_mask, atol=ATOL)
    close(wrong, gold[f"{prefix}.saliency_scores_neg"], batch.video_mask, atol=ATOL)


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_layers(trace.predictions, golden, atol=ATOL)
    check_saliency(trace.predictions, golden, "eval", batch)
    assert trace.decoded is not None
    assert trace.decoded.references is not None
    assert trace.memory.global_token is not None
    close(trace.decoded.states, gold["eval.hs"], atol=ATOL)
    close(trace.decoded.references, gold["eval.references"], atol=ATOL)
    close(trace.memory.global_token, gold["eval.memory_global"], atol=ATOL)
    close(trace.memory.clip, gold["eval.memory"], batch.video_mask, atol=ATOL)
    whole, clips = likeness(trace.memory)
    close(whole, gold["eval.sim_video_text"], atol=ATOL)
    close(clips, gold["eval.sim_clip_text"], batch.video_mask, atol=ATOL)


@pytest.mark.parametrize(
    ("case", "variant"), [("b", "train"), ("b", "train_hardneg"), ("q", "train")]
)
def test_a_training_step_equals_the_public_code(
    case: str, variant: str, request: pytest.FixtureRequest
) -> None:
    golden = read("uvcom", case, request)
    step, batch = golden.meta["train"][variant], golden.batch
    context = StepContext(epoch=EPOCHS[variant])
    model = golden.load(dropout=0.0, input_dropout=0.0).train()
    with torch.no_grad():
        found = model.trace(batch, passes=True, context=context).predictions
    close(found.logits, golden.tensors[f"{variant}.pred_logits"], atol=ATOL)
    close(found.spans, golden.tensors[f"{variant}.pred_spans"], atol=ATOL)
    check_saliency(found, golden, variant, batch)

    losses = model.losses(batch, context)
    values = {name: loss.item() for name, loss in losses.items()}
    public, weights = step["losses"], step["weights"]
    saliency = values["margin"] + values["rank"] + values["negative_pair"]
    assert saliency == pytest.approx(public["loss_saliency"], rel=1e-4)
    assert values["video_text"] + values["clip_text"] == pytest.approx(public["loss_sim"], rel=1e-4)
    moments = [name for name in values if name.split("_")[0] in {"span", "giou", "label"}]
    assert len(moments) == 3 * golden.meta["official_options"]["dec_layers"]
    for ours in moments:
        wanted = public[f"loss_{ours}"] * weights[f"loss_{ours}"]
        assert values[ours] == pytest.approx(wanted, rel=1e-4), ours
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)


@pytest.mark.parametrize("case", ["b", "q"])
def test_matched_indices_equal_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("uvcom", case, request)
    check_matches(golden.load(), golden)


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model, layout = golden.load(), MODELS.get("uvcom").official
    back, unused = official_state_dict(model, layout), layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)


def test_a_file_with_a_namespace_is_read(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    golden = read("uvcom", "a", request)
    options = Namespace(**golden.meta["official_options"])
    torch.save({"model": golden.weights, "opt": options}, tmp_path / "model_best.ckpt")
    with torch.no_grad():
        found = load_official("uvcom", tmp_path / "model_best.ckpt")(golden.batch)
    close(found.spans, golden.tensors["eval.pred_spans"], atol=ATOL)


def test_published_keys_and_shapes_are_those_of_the_public_layout(
    request: pytest.FixtureRequest,
) -> None:
    golden, shared = read("uvcom", "q", request), request.getfixturevalue("shared")
    lines = (shared / "specs" / "model_keys" / "uvcom_keys.txt").read_text().splitlines()
    wanted = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines if "(" in line}
    model = golden.load()
    public = official_state_dict(model, MODELS.get("uvcom").official)
    assert {key: str(tuple(x.shape)) for key, x in public.items()} == wanted


def test_means_and_random_walk_equal_the_public_functions(shared: Path) -> None:
    pure = load_file(shared / "golden" / "retrieval" / "pure" / "uvcom.safetensors")
    x = pure["em_rbf.x"]
    every = torch.ones(x.shape[:2], dtype=torch.bool)
    for rounds, name in ((1, "one"), (5, "five")):
        found = expectation_means(pure["em_rbf.mu"], x, every, rounds=rounds)
        close(found, pure[f"em_rbf.{name}"])
    for name in ("random_walk", "random_walk_16"):
        x = pure[f"{name}.x"]
        every = torch.ones(x.shape[:2], dtype=torch.bool)
        close(random_walk(x, pure[f"{name}.y"], every), pure[f"{name}.out"])
