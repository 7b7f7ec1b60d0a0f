"""LD-DETR in the `release` preset computes what its public code computes, and with `loops=3` what
that code computes once its loop runs (`ld_detr_loops3`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.retrieval import MODELS, RetrievalModel, load_official
from models.retrieval.official import official_state_dict
from models.retrieval.parts import losses
from models.retrieval.parts.distill import (
    FeatureQueue,
    distilled_contrast,
    pair_similarity,
    warmed_up,
)
from models.retrieval.types import StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_layers,
    check_matches,
    close,
    read,
)

SOURCES = {"ld_detr": {}, "ld_detr_loops3": {"loops": 3}}
NAMES = {
    "loss_align": "distill_align",
    "loss_sim": "distill_sim",
    **{f"loss_{name}": name for name in ("span", "giou", "label", "span_0", "giou_0", "label_0")},
}
STEPS = [
    (source, case, variant)
    for source in SOURCES
    for case, variant in (("b", "train"), ("b", "train_warmup"), ("q", "train"))
]
CONTEXTS = {"train": StepContext(epoch=1), "train_warmup": StepContext(0, 3, 10)}


def load(golden: Golden, **options: Any) -> RetrievalModel:
    given: dict[str, Any] = SOURCES[golden.meta["model"]] | options
    checkpoint = {"model": golden.weights, "opt": golden.meta["official_options"]}
    return load_official("ld_detr", checkpoint, **given)


@pytest.fixture(params=[(source, case) for source in SOURCES for case in "abcq"], ids="-".join)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(*request.param, request)


@pytest.fixture(scope="module")
def pure(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "retrieval" / "pure" / "ld_detr.safetensors")


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    model = load(golden)
    trace = model.trace(batch, passes=True)
    check_layers(trace.predictions, golden)
    close(trace.predictions.saliency, gold["eval.saliency_scores"], batch.video_mask)
    assert trace.decoded is not None
    assert trace.decoded.references is not None
    close(trace.decoded.states, gold["eval.hs"])
    close(trace.decoded.references, gold["eval.references"])
    close(trace.tokens.video, gold["eval.video_encoded"])
    close(trace.tokens.text, gold["eval.text_encoded"])
    close(trace.memory.extras["extracted"], gold["eval.v2t_extracted"], batch.video_mask)
    close(trace.memory.clip, gold["eval.memory"], batch.video_mask)
    found = model.losses(batch)
    close(found["distill_align"] / 0.6, gold["eval.loss_align"])
    close(found["distill_sim"] / 0.6, gold["eval.loss_sim"])


@pytest.mark.parametrize(("source", "case", "variant"), STEPS)
def test_a_training_step_equals_the_public_code(
    source: str, case: str, variant: str, request: pytest.FixtureRequest
) -> None:
    golden = read(source, case, request)
    step, batch = golden.meta["train"][variant], golden.batch
    model = load(golden, dropout=0.0, input_dropout=0.0).train()
    values = model.losses(batch, CONTEXTS[variant])
    public = step["losses"]
    saliency = (values["margin"] + values["rank"]).item()
    assert saliency == pytest.approx(public["loss_saliency"], rel=1e-4)
    for theirs, ours in NAMES.items():
        expected = public[theirs] * step["weights"][theirs]
        assert values[ours].item() == pytest.approx(expected, rel=1e-4), ours
    total = torch.stack(list(values.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)
    check_state_after(model, golden, variant)
    found = model(batch)
    close(found.logits, golden.tensors[f"{variant}.pred_logits"])
    close(found.spans, golden.tensors[f"{variant}.pred_spans"])
    close(found.saliency, golden.tensors[f"{variant}.saliency_scores"], batch.video_mask)


def check_state_after(model: RetrievalModel, golden: Golden, variant: str) -> None:
    """Queue, pointer, slow encoders and running statistics; of a long queue its first columns."""
    ours = official_state_dict(model, MODELS.get("ld_detr").official)
    after = {
        key.removeprefix(f"{variant}.after."): x
        for key, x in golden.tensors.items()
        if key.startswith(f"{variant}.after.")
    }
    assert {"distill_align.vid_queue", "distill_align.txt_queue"} <= after.keys()
    for key, public in after.items():
        close(ours[key][..., : public.shape[-1]], public)
    pointer = golden.meta["train"][variant]["queue_ptr_after"]
    assert ours["distill_align.queue_ptr"].item() == pointer


@pytest.mark.parametrize(("source", "case", "variant"), STEPS)
def test_matched_indices_equal_the_public_code(
    source: str, case: str, variant: str, request: pytest.FixtureRequest
) -> None:
    golden = read(source, case, request)
    check_matches(load(golden, dropout=0.0, input_dropout=0.0).train(), golden, variant)


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = load(golden)
    layout = MODELS.get("ld_detr").official
    back = official_state_dict(model, layout)
    unused = layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)


def test_names_and_shapes_are_those_of_the_published_model(
    request: pytest.FixtureRequest, shared: Path
) -> None:
    golden = read("ld_detr", "q", request)
    public = official_state_dict(load(golden), MODELS.get("ld_detr").official)
    shapes = {key: tuple(x.shape) for key, x in public.items()}
    for name in ("vid", "txt"):  # the case has a shorter queue
        assert shapes[f"distill_align.{name}_queue"] == (256, 1024)
        shapes[f"distill_align.{name}_queue"] = (256, 65536)
    lines = (shared / "specs" / "model_keys" / "ld_keys.txt").read_text().splitlines()
    assert sorted(f"{key} {shape}" for key, shape in shapes.items()) == sorted(
        line for line in lines if " (" in line
    )


@pytest.mark.parametrize("size", [3, 4, 7])
def test_distill_align_and_its_queue_equal_the_public_code(
    size: int, pure: dict[str, Tensor]
) -> None:
    queue = FeatureQueue(16, 24, ids=False)
    queue.video.copy_(pure["distill_align.vid_queue_start"])
    queue.text.copy_(pure["distill_align.txt_queue_start"])
    predictor = torch.nn.Linear(16, 16)
    with torch.no_grad():
        predictor.weight.copy_(pure["distill_align.h_weight"])
        predictor.bias.copy_(pure["distill_align.h_bias"])
    for step in range(4):
        given = {
            key.split(".")[1]: x
            for key, x in pure.items()
            if key.startswith(f"distill_align_batch{size}_step{step}.")
        }
        alpha = warmed_up(0.4, StepContext(epoch=int(step > 1), step=step, steps_per_epoch=4))
        leaves = [given["v"].clone(), given["t"].clone(), torch.tensor(0.07)]
        video, text, temperature = (x.requires_grad_() for x in leaves)
        pair, slow = (video, text), (given["vm"], given["tm"])
        queues = (queue.text.clone(), queue.video.clone())
        both = [
            distilled_contrast(
                pair[i], slow[i], slow[1 - i], queues[i], temperature=temperature, alpha=alpha
            )
            for i in range(2)
        ]
        align = torch.stack(both).mean()
        sim = -pair_similarity(predictor, video, text, stop=False).mean()
        close(align, given["loss_align"])
        close(sim, given["loss_sim"])
        found = torch.autograd.grad(align + sim, leaves)
        for gradient, name in zip(found, ("grad_v", "grad_t", "grad_temp"), strict=True):
            close(gradient, given[name], atol=1e-4)
        if 24 % size == 0:
            queue.push(given["vm"], given["tm"], torch.zeros(size, dtype=torch.int64))
        close(queue.video, given["vid_queue_after"])
        close(queue.text, given["txt_queue_after"])
        assert queue.pointer.item() == given["ptr_after"].item()


def test_label_loss_equals_the_public_code(pure: dict[str, Tensor]) -> None:
    logits = pure["label_focal.logits"].requires_grad_()
    matched = torch.zeros(2, 10, dtype=torch.bool)
    matched[0, [2, 5]] = matched[1, 7] = True
    loss = losses.label_focal(logits, matched)
    close(loss, pure["label_focal.loss"])
    close(torch.autograd.grad(loss, logits)[0], pure["label_focal.grad"])


def test_saliency_loss_equals_the_public_code(pure: dict[str, Tensor]) -> None:
    given = {k.split(".")[1]: x for k, x in pure.items() if k.startswith("saliency_rank.")}
    scores, mask = given["scores"].requires_grad_(), given["mask"].bool()
    pairs = torch.ones_like(given["pos"], dtype=torch.bool)
    margin = losses.margin_loss(scores, given["pos"], given["neg"], pairs, margin=0.2)
    loss = margin + losses.rank_losses(scores, given["labels"], mask).mean()
    close(loss, given["loss"])
    close(torch.autograd.grad(loss, scores)[0], given["grad"])
