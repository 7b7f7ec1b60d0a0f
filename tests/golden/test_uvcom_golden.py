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

from models.retrieval import load_official
from models.retrieval.parts.clustering import expectation_means, random_walk
from models.retrieval.parts.likeness import likeness
from models.retrieval.types import StepContext
from tests.golden.public_golden import (
    Golden,
    check_predictions,
    check_step,
    check_trace,
    close,
    golden_of,
    public_shapes,
    published,
    read,
    step_of,
    test_matched_indices_equal_the_public_code,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = [
    "test_matched_indices_equal_the_public_code",
    "test_public_weights_survive_the_way_there_and_back",
]

ATOL = 1e-4
LOSSES = {"margin + rank + negative_pair": "saliency", "video_text + clip_text": "sim"}
CONTEXTS = {"train": StepContext(epoch=0), "train_hardneg": StepContext(epoch=80)}

golden = golden_of("uvcom")
step = step_of("uvcom", steps=[("b", "train"), ("b", "train_hardneg"), ("q", "train")])


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_trace(trace, golden, atol=ATOL)
    whole, clips = likeness(trace.memory)
    close(whole, gold["eval.sim_video_text"], atol=ATOL)
    close(clips, gold["eval.sim_clip_text"], batch.video_mask, atol=ATOL)


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model, context = step.in_training(), CONTEXTS[step.variant]
    with torch.no_grad():
        found = model.trace(step.batch, passes=True, context=context).predictions
    check_predictions(found, step, step.variant, atol=ATOL)
    check_step(model, step, LOSSES, context=context)


def test_a_file_with_a_namespace_is_read(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    golden = read("uvcom", "a", request)
    options = Namespace(**golden.meta["official_options"])
    torch.save({"model": golden.weights, "opt": options}, tmp_path / "model_best.ckpt")
    with torch.no_grad():
        found = load_official("uvcom", tmp_path / "model_best.ckpt")(golden.batch)
    close(found.spans, golden.tensors["eval.pred_spans"], atol=ATOL)


def test_published_keys_and_shapes_are_those_of_the_public_layout(
    request: pytest.FixtureRequest, shared: Path
) -> None:
    model = read("uvcom", "q", request).load()
    assert public_shapes(model) == published(shared, "uvcom_keys.txt")


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
