"""The `release` preset computes what the public code computes (tests/golden/retrieval/README.md).

Tolerances are those of that page; the public numbers are float32 on a CPU. Here the base of the
family; every other model has a file of its own beside this one.
"""

from __future__ import annotations

import torch

from tests.golden.public_golden import (
    Golden,
    check_predictions,
    check_step,
    check_trace,
    golden_of,
    step_of,
    test_matched_indices_equal_the_public_code,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = [
    "test_matched_indices_equal_the_public_code",
    "test_public_weights_survive_the_way_there_and_back",
]

LOSSES = {"margin + rank + negative_pair": "saliency"}

golden = golden_of("qd_detr")
step = step_of("qd_detr")


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    check_trace(golden.load().trace(golden.batch, passes=True), golden)


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model = step.in_training()
    check_predictions(model(step.batch), step, "train")
    check_step(model, step, LOSSES)
