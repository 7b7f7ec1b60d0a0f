"""TR-DETR in the `release` preset computes what its public code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from models.retrieval import MODELS
from models.retrieval.official import official_state_dict
from models.retrieval.parts.alignment import clip_text_loss, video_text_loss
from models.retrieval.types import StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_layers,
    check_matches,
    close,
    read,
)


@pytest.fixture(params=["a", "b", "c", "q"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("tr_detr", request.param, request)


@pytest.fixture(scope="module")
def pure(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "retrieval" / "pure" / "tr_detr.safetensors")


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_layers(trace.predictions, golden)
    close(trace.predictions.saliency, gold["eval.saliency_scores"], batch.video_mask)
    assert trace.decoded is not None
    assert trace.decoded.references is not None
    close(trace.decoded.states, gold["eval.hs"])
    close(trace.decoded.references, gold["eval.references"])
    close(trace.tokens.video, gold["eval.src_vid_ed"])
    close(trace.tokens.text, gold["eval.src_txt_ed"])
    close(trace.memory.extras["saliency_first"], gold["eval.saliency_first"], batch.video_mask)
    close(trace.memory.clip, gold["eval.memory"], batch.video_mask)


@pytest.mark.parametrize("case", ["b", "q"])
def test_a_training_step_equals_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("tr_detr", case, request)
    step, batch = golden.meta["train"]["train"], golden.batch
    model = golden.load(dropout=0.0, input_dropout=0.0).train()
    found = model(batch)
    close(found.logits, golden.tensors["train.pred_logits"])
    close(found.spans, golden.tensors["train.pred_spans"])
    close(found.saliency, golden.tensors["train.saliency_scores"], batch.video_mask)

    losses = model.losses(batch, StepContext())
    values = {name: loss.item() for name, loss in losses.items()}
    weights, public = step["weights"], step["losses"]
    assert values["margin"] + values["rank"] == pytest.approx(public["loss_saliency"], rel=1e-4)
    names = {"video_text": "vtc", "clip_text": "ctc"}
    for ours in ("span", "giou", "label", "span_0", "giou_0", "label_0", *names):
        theirs = f"loss_{names.get(ours, ours)}"
        assert values[ours] == pytest.approx(public[theirs] * weights[theirs], rel=1e-4), ours
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)


@pytest.mark.parametrize("case", ["b", "q"])
def test_matched_indices_equal_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("tr_detr", case, request)
    check_matches(golden.load(), golden)


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get("tr_detr").official
    back = official_state_dict(model, layout)
    unused = layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)


def test_names_and_shapes_are_those_of_the_published_model(
    request: pytest.FixtureRequest, shared: Path
) -> None:
    public = official_state_dict(
        read("tr_detr", "q", request).load(), MODELS.get("tr_detr").official
    )
    lines = (shared / "specs" / "model_keys" / "tr_keys.txt").read_text().splitlines()
    assert sorted(f"{key} {tuple(x.shape)}" for key, x in public.items()) == sorted(
        line for line in lines if " (" in line
    )


def test_whole_videos_and_sentences_are_aligned_as_in_the_public_code(
    pure: dict[str, Tensor],
) -> None:
    video, text = normalize(pure["vtc.video"], dim=1), normalize(pure["vtc.text"], dim=1)
    close(video_text_loss(video, text), pure["vtc.loss"])


def test_clips_and_sentences_are_aligned_as_in_the_public_code(pure: dict[str, Tensor]) -> None:
    given = {key.removeprefix("ctc."): x for key, x in pure.items() if key.startswith("ctc.")}
    found = clip_text_loss(
        given["video"] * given["video_mask"].unsqueeze(-1),
        given["text"],
        given["text_mask"].bool(),
        given["positive"].bool(),
        torch.ones_like(given["video_mask"], dtype=torch.bool),
    )
    close(found, given["loss"])
