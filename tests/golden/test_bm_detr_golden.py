"""BM-DETR with `release` computes what its public code computes (golden/retrieval/README.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.retrieval import MODELS, RetrievalModel, create_model
from models.retrieval.official import fill, official_state_dict
from models.retrieval.parts.frame_probability import (
    PooledContrastTerm,
    pooled_contrast,
    probability_guidance,
)
from models.retrieval.parts.projection import AnchorSine
from models.retrieval.types import Batch, Predictions, StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_input_gradients,
    close,
    read,
    with_gradients,
)

PUBLIC_NAMES = {
    "span": "span",
    "giou": "giou",
    "label": "label",
    "label_error": "class",
    "margin": "saliency",
    "contrastive": "contrastive_align",
    "guidance": "prob_guidance",
}


@pytest.fixture(params=["a", "b", "c", "q"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("bm_detr", request.param, request)


def with_sampled_text(golden: Golden) -> Batch:
    """The public code samples a wrong text for every video; here it is given."""
    wrong, mask = golden.inputs["neg_src_txt"], golden.inputs["neg_src_txt_mask"]
    return replace(golden.batch, wrong_text=wrong, wrong_text_mask=mask.bool())


def in_training(golden: Golden, **options: str) -> RetrievalModel:
    still = golden.load(dropout=0.0, input_dropout=0.0)
    model = create_model(**{**still.recipe, **options})
    fill(model, MODELS.get("bm_detr").official, golden.weights)
    return model.train()


def check_predictions(
    ours: Predictions, gold: dict[str, Tensor], prefix: str, batch: Batch
) -> None:
    close(ours.logits, gold[f"{prefix}.pred_logits"])
    close(ours.spans, gold[f"{prefix}.pred_spans"])
    close(ours.saliency, gold[f"{prefix}.saliency_scores"], batch.video_mask)
    if f"{prefix}.vid_logits" in gold:
        close(ours.extras["relevance"], gold[f"{prefix}.vid_logits"])


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch, model = golden.tensors, golden.batch, golden.load()
    trace = model.trace(batch, passes=False)
    check_predictions(trace.predictions, gold, "eval", batch)
    assert trace.decoded is not None
    assert trace.decoded.references is not None
    close(trace.decoded.states, gold["eval.hs"])
    close(trace.decoded.references, gold["eval.references"])
    close(trace.memory.kv, gold["eval.memory"], trace.memory.kv_mask)
    contrast = model.criterion.terms["contrastive"]
    assert isinstance(contrast, PooledContrastTerm)
    video, text = contrast.embed(trace)
    close(video, gold["eval.proj_vid_mem"])
    close(text, gold["eval.proj_txt_mem"])


@pytest.mark.parametrize("case", ["b", "q"])
def test_a_training_step_equals_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("bm_detr", case, request)
    step, batch = golden.meta["train"]["train"], with_gradients(with_sampled_text(golden))
    model = in_training(golden)
    check_predictions(model(batch), golden.tensors, "train", batch)
    losses = model.losses(batch, StepContext())
    assert losses.keys() == PUBLIC_NAMES.keys()
    for ours, theirs in PUBLIC_NAMES.items():
        weighted = step["losses"][f"loss_{theirs}"] * step["weights"][f"loss_{theirs}"]
        assert losses[ours].item() == pytest.approx(weighted, rel=1e-4), ours
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)
    check_input_gradients(batch, golden)


def test_a_step_with_a_second_order_of_the_clips_equals_the_public_code(
    request: pytest.FixtureRequest,
) -> None:
    golden = read("bm_detr", "b", request)
    step, batch = golden.meta["train"]["train_shift"], with_gradients(with_sampled_text(golden))
    model = in_training(golden, shift="reverse")
    view = model.views[0].change(batch)
    check_predictions(model(batch), golden.tensors, "train_shift", batch)
    check_predictions(model(view), golden.tensors, "train_shift.shifting", view)
    losses = model.losses(batch, StepContext())
    for ours, theirs in PUBLIC_NAMES.items():
        both = [step["losses"][f"{which}loss_{theirs}"] for which in ("", "shifting.")]
        weighted = sum(both) / 2 * step["weights"][f"loss_{theirs}"]
        assert losses[ours].item() == pytest.approx(weighted, rel=1e-4), ours
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)
    check_input_gradients(batch, golden, "train_shift")


@pytest.mark.parametrize(
    ("case", "variant"), [("b", "train"), ("b", "train_shift"), ("q", "train")]
)
@torch.no_grad()
def test_matched_indices_equal_the_public_code(
    case: str, variant: str, request: pytest.FixtureRequest
) -> None:
    golden = read("bm_detr", case, request)
    model = in_training(golden, shift="reverse").eval()
    batches = (golden.batch, model.views[0].change(golden.batch))
    calls = golden.meta["train"][variant]["matched_indices_in_call_order"]
    for batch, call in zip(batches, calls, strict=variant == "train_shift"):
        assert batch.targets is not None
        found = model(batch)
        matched = model.criterion.matcher(
            found.logits, found.spans, batch.targets.spans, batch.targets.span_mask
        )
        for row, (queries, moments) in zip(matched.tolist(), call, strict=True):
            assert {moment: row[moment] for moment in moments} == dict(
                zip(moments, queries, strict=True)
            )


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get("bm_detr").official
    back, unused = official_state_dict(model, layout), layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)


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
