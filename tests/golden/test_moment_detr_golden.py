"""Moment-DETR's `release` preset computes what its public code computes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from models.retrieval.parts import losses
from tests.golden.public_golden import (
    Golden,
    check_predictions,
    check_step,
    check_trace,
    close,
    golden_of,
    step_of,
    test_matched_indices_equal_the_public_code,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = [
    "test_matched_indices_equal_the_public_code",
    "test_public_weights_survive_the_way_there_and_back",
]

LOSSES = {"margin": "saliency"}

golden = golden_of("moment_detr")
step = step_of("moment_detr")


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    check_trace(golden.load().trace(golden.batch, passes=True), golden)


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model = step.in_training()
    check_predictions(model(step.batch), step, "train")
    check_step(model, step, LOSSES)


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
