"""CG-DETR in the `release` preset computes what the public code computes."""

from __future__ import annotations

import torch

from models.retrieval.flow import Trace
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

CASES = ["a", "b", "c", "b_onefalse", "b_twofalse", "q"]
STEPS = [(case, "train") for case in ("b", "b_onefalse", "b_twofalse", "q")]
SALIENCY = ("margin", "rank", "negative_pair")
ATTENTION = ("margin_attention", "rank_attention", "negative_pair_attention", "cover_attention")
LOSSES = {
    " + ".join((*SALIENCY, *ATTENTION)): "saliency",
    "ms_align": "ms_align",
    "distill": "distill",
    "orthogonal": "orthogonal_dummy",
}

golden = golden_of("cg_detr", cases=CASES)
step = step_of("cg_detr", steps=STEPS)


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
    check_trace(trace, golden)
    check_saliency(trace, golden, "eval")
    extras = trace.memory.extras
    close(extras["dummies"], gold["eval.dummy_tokens"])
    close(extras["word_attention"], gold["eval.attn_weights"], batch.video_mask)


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model = step.in_training()
    trace = model.trace(step.batch, passes=True)
    check_predictions(trace.predictions, step, "train")
    check_saliency(trace, step, "train")
    for ours, public in (
        ("moment_token", "memory_moment"),
        ("other_token", "nmmemory_moment"),
        ("sentence_token", "sentence_txt"),
        ("dummy_token", "sentence_dummy"),
    ):
        close(trace.predictions.extras[ours], step.tensors[f"train.{public}"])
    check_step(model, step, LOSSES)
