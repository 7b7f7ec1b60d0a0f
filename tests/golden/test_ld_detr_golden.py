"""LD-DETR in the `release` preset computes what its public code computes, and with `loops=3` what
that code computes once its loop runs (`ld_detr_loops3`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.retrieval import MODELS, RetrievalModel
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

SOURCES = ("ld_detr", "ld_detr_loops3")
LOSSES = {"margin + rank": "saliency", "distill_align": "align", "distill_sim": "sim"}
CONTEXTS = {"train": StepContext(epoch=1), "train_warmup": StepContext(0, 3, 10)}

golden = golden_of(*SOURCES)
step = step_of(*SOURCES, steps=[("b", "train"), ("b", "train_warmup"), ("q", "train")])


@pytest.fixture(scope="module")
def pure(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "retrieval" / "pure" / "ld_detr.safetensors")


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    model = golden.load()
    trace = model.trace(batch, passes=True)
    check_trace(trace, golden)
    close(trace.tokens.video, gold["eval.video_encoded"])
    close(trace.tokens.text, gold["eval.text_encoded"])
    close(trace.memory.extras["extracted"], gold["eval.v2t_extracted"], batch.video_mask)
    found = model.losses(batch)
    close(found["distill_align"] / 0.6, gold["eval.loss_align"])
    close(found["distill_sim"] / 0.6, gold["eval.loss_sim"])


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model = step.in_training()
    check_step(model, step, LOSSES, context=CONTEXTS[step.variant])
    check_state_after(model, step)
    check_predictions(model(step.batch), step, step.variant)


def check_state_after(model: RetrievalModel, step: Golden) -> None:
    """Queue, pointer, slow encoders and running statistics; of a long queue its first columns."""
    ours = official_state_dict(model, MODELS.get("ld_detr").official)
    after = {
        key.removeprefix(f"{step.variant}.after."): x
        for key, x in step.tensors.items()
        if key.startswith(f"{step.variant}.after.")
    }
    assert {"distill_align.vid_queue", "distill_align.txt_queue"} <= after.keys()
    for key, public in after.items():
        close(ours[key][..., : public.shape[-1]], public)
    assert ours["distill_align.queue_ptr"].item() == step.step["queue_ptr_after"]


def test_names_and_shapes_are_those_of_the_published_model(
    request: pytest.FixtureRequest, shared: Path
) -> None:
    shapes = public_shapes(read("ld_detr", "q", request).load())
    for name in ("vid", "txt"):  # the case has a shorter queue
        assert shapes[f"distill_align.{name}_queue"] == "(256, 1024)"
        shapes[f"distill_align.{name}_queue"] = "(256, 65536)"
    assert shapes == published(shared, "ld_keys.txt")


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
