"""BM-DETR with `release` computes what its public code computes (golden/retrieval/README.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.retrieval import MODELS, RetrievalModel, create_model
from models.retrieval.official import fill
from models.retrieval.parts.frame_probability import (
    PooledContrastTerm,
    pooled_contrast,
    probability_guidance,
)
from models.retrieval.parts.projection import AnchorSine
from models.retrieval.types import Batch, Predictions
from tests.golden.public_golden import (
    Golden,
    check_matches,
    check_predictions,
    check_step,
    check_trace,
    close,
    golden_of,
    step_of,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = ["test_public_weights_survive_the_way_there_and_back"]

LOSSES = {
    "label_error": "class",
    "margin": "saliency",
    "contrastive": "contrastive_align",
    "guidance": "prob_guidance",
}

golden = golden_of("bm_detr")
step = step_of("bm_detr")
shifted = step_of("bm_detr", steps=[("b", "train_shift")])
any_step = step_of("bm_detr", steps=[("b", "train"), ("b", "train_shift"), ("q", "train")])


def with_sampled_text(golden: Golden) -> Batch:
    """The public code samples a wrong text for every video; here it is given."""
    wrong, mask = golden.inputs["neg_src_txt"], golden.inputs["neg_src_txt_mask"]
    return replace(golden.batch, wrong_text=wrong, wrong_text_mask=mask.bool())


def with_views(golden: Golden) -> RetrievalModel:
    """With the second order of the clips, which `train_shift` has."""
    model = create_model(**{**golden.in_training().recipe, "shift": "reverse"})
    fill(model, MODELS.get("bm_detr").official, golden.weights)
    return model.train()


def check_found(found: Predictions, golden: Golden, prefix: str, batch: Batch) -> None:
    """Moments and saliency, and whether video and text belong together where that is kept."""
    check_predictions(found, golden, prefix, real=batch.video_mask)
    if f"{prefix}.vid_logits" in golden.tensors:
        close(found.extras["relevance"], golden.tensors[f"{prefix}.vid_logits"])


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, model = golden.tensors, golden.load()
    trace = model.trace(golden.batch, passes=False)
    check_trace(trace, golden)
    close(trace.predictions.extras["relevance"], gold["eval.vid_logits"])
    contrast = model.criterion.terms["contrastive"]
    assert isinstance(contrast, PooledContrastTerm)
    video, text = contrast.embed(trace)
    close(video, gold["eval.proj_vid_mem"])
    close(text, gold["eval.proj_txt_mem"])


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model, batch = step.in_training(), with_sampled_text(step)
    check_found(model(batch), step, "train", batch)
    check_step(model, step, LOSSES, batch=batch)


def test_a_step_with_a_second_order_of_the_clips_equals_the_public_code(shifted: Golden) -> None:
    model, batch = with_views(shifted), with_sampled_text(shifted)
    view = model.views[0].change(batch)
    check_found(model(batch), shifted, "train_shift", batch)
    check_found(model(view), shifted, "train_shift.shifting", view)
    check_step(model, shifted, LOSSES, batch=batch, views=("", "shifting."))


@torch.no_grad()
def test_matched_indices_equal_the_public_code(any_step: Golden) -> None:
    model = with_views(any_step).eval()
    calls = any_step.step["matched_indices_in_call_order"]
    batches = (any_step.batch, model.views[0].change(any_step.batch))
    assert len(calls) == (2 if any_step.variant == "train_shift" else 1)
    for batch, call in zip(batches, calls, strict=False):
        found = model(batch)
        check_matches(model, [(found.logits, found.spans)], batch, [call])


def test_single_functions_give_the_same(shared: Path) -> None:
    pure = load_file(shared / "golden" / "retrieval" / "pure" / "bm_detr.safetensors")
    anchors = pure["anchor_sine_256_width_first.anchors"]
    close(AnchorSine(256, width_first=True)(anchors), pure["anchor_sine_256_width_first.out"])
    guidance = probability_guidance(
        pure["probability_guidance.probs"],
        pure["probability_guidance.inside"].bool(),
        pure["probability_guidance.mask"].bool(),
    )
    close(guidance, pure["probability_guidance.loss"])
    video, text = pure["contrastive_pooled.video"], pure["contrastive_pooled.text"]
    everyone = torch.ones(len(video), len(video), dtype=torch.bool)
    close(pooled_contrast(video, text, everyone), pure["contrastive_pooled.loss"])
