"""UniVTG with `release` computes what its public code computes (golden/retrieval/README.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.retrieval.parts.spans import start_end
from models.retrieval.types import Batch, Predictions
from tests.golden.public_golden import (
    Golden,
    check_step,
    close,
    golden_of,
    step_of,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = ["test_public_weights_survive_the_way_there_and_back"]

LOSSES = {"span": "b", "giou": "g", "label": "f", "inter": "s_inter", "intra": "s_intra"}

golden = golden_of("univtg")
step = step_of("univtg")


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


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model, places = step.in_training(), step.inputs["timestamp"][..., 0]
    check_predictions(model(step.batch), step.tensors, "train", step.batch, places)
    check_step(model, step, LOSSES)
