"""EMB in its `release` preset computes what the public code computes
(tests/golden/retrieval/README.md)."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.retrieval import MODELS, load_official
from models.retrieval.decode import ranked
from models.retrieval.official import official_state_dict
from models.retrieval.parts.elastic import Elastic, Found, between, moment_places
from models.retrieval.parts.word_encoders import place_code
from models.retrieval.types import StepContext
from tests.golden.public_golden import (
    Golden,
    check_step,
    close,
    golden_of,
    read,
    step_of,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = ["test_public_weights_survive_the_way_there_and_back"]

#: public options and epoch that give the threshold of each training case
THRESHOLDS = {"1.0": ({"threshold": 1.0}, 0), "0.75": ({}, 50), "0.5": ({}, 1000)}


LOSSES = {"location": "location", "highlight": "highlight", "proposal": "ranking"}

golden = golden_of("emb")
step = step_of(
    "emb", steps=[(case, f"train_threshold_{each}") for each in THRESHOLDS for case in ("b", "q")]
)


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    found = golden.load()(batch)
    mask = batch.video_mask
    close(found.extras["start_logits"], gold["eval.start_logits"], mask)
    close(found.extras["end_logits"], gold["eval.end_logits"], mask)
    close(found.saliency, gold["eval.highlight"])
    exists = found.extras["proposal_mask"]
    assert torch.equal(exists, gold["eval.proposal_mask"].bool())
    assert torch.equal(found.extras["proposals"], gold["eval.proposals"])
    close(found.extras["proposal_logits"].sigmoid(), gold["eval.proposal_scores"], exists)


@torch.no_grad()
def test_the_best_span_is_the_public_one(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    found = golden.load()(batch)
    length = batch.video_mask.sum(1)
    start, end = gold["eval.start_index"], gold["eval.end_index"]
    best = ranked(found)[:, 0]
    close(best[:, 0], start / length)
    close(best[:, 1], (end + 1) / length)
    p_start, p_end = (gold[f"eval.{edge}_logits"].softmax(1) for edge in ("start", "end"))
    row = torch.arange(len(length))
    close(best[:, 2], p_start[row, start] * p_end[row, end])


@torch.no_grad()
def test_elastic_sets_around_the_best_span_equal_the_public_ones(golden: Golden) -> None:
    gold = golden.tensors
    found = golden.load()(golden.batch).extras
    moment = gold["eval.start_index"], gold["eval.end_index"]
    chosen = Elastic(threshold="none", end="exclusive").choose(
        moment, found["proposals"], found["proposal_logits"], found["proposal_mask"], 0.0
    )
    size = gold["eval.elastic_start"].shape[1]
    assert torch.equal(_set(chosen, "start", size), gold["eval.elastic_start"])
    assert torch.equal(_set(chosen, "end", size), gold["eval.elastic_end"])


def _set(chosen: Found, edge: str, size: int) -> Tensor:
    return between(getattr(chosen, edge), getattr(chosen, f"other_{edge}"), size)


@torch.no_grad()
def test_the_vectors_of_the_table_give_what_its_ids_give(golden: Golden) -> None:
    batch = golden.batch
    ids = batch.text.clamp(min=2).where(batch.text_mask, torch.tensor(0))  # 1 is the unknown word
    names = (f"embedding_net.word_emb.{row}_vec" for row in ("pad", "unk", "glove"))
    table = torch.cat([golden.weights[name] for name in names])
    checkpoint = {"model": golden.weights, "opt": golden.meta["official_options"]}
    by_vectors = load_official("emb", checkpoint, words="vectors")
    assert not any(name.startswith("encoders.words") for name in by_vectors.state_dict())
    found = by_vectors(replace(batch, text=table[ids]))
    expected = golden.load()(replace(batch, text=ids))
    close(found.extras["start_logits"], expected.extras["start_logits"], batch.video_mask)
    close(found.extras["end_logits"], expected.extras["end_logits"], batch.video_mask)
    close(found.saliency, expected.saliency)


def test_the_annotated_clips_come_back_from_the_moment(golden: Golden) -> None:
    batch = golden.batch
    assert batch.targets is not None
    size = batch.video_mask.shape[1]
    start, end = moment_places(batch.targets.spans[:, 0], batch.video_mask.sum(1), size)
    assert torch.equal(start, golden.inputs["start"])
    assert torch.equal(end, golden.inputs["end"])


def test_the_threshold_falls_as_in_the_public_code(golden: Golden) -> None:
    elastic = Elastic(low=0.5, epochs=100)
    public = golden.meta["threshold_schedule_100_epochs"]
    ours = {epoch: elastic.least_overlap(StepContext(epoch=int(epoch))) for epoch in public}
    assert ours == pytest.approx(public, abs=1e-12)


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    options, epoch = THRESHOLDS[step.variant.rsplit("_", 1)[1]]
    check_step(step.in_training(**options), step, LOSSES, context=StepContext(epoch=epoch))


def test_written_back_the_sine_table_is_that_of_its_formula(golden: Golden) -> None:
    model, layout = golden.load(), MODELS.get("emb").official
    table = official_state_dict(model, layout)["position.pe"]
    assert torch.equal(table, place_code(*table.shape))
    unused = layout.unused(model.recipe)
    assert {key for key in unused if "char_emb" not in key} == {"position.pe"}


def test_a_public_file_with_a_namespace_is_read(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    golden = read("emb", "a", request)
    options = argparse.Namespace(**golden.meta["official_options"])
    torch.save({"model": golden.weights, "opt": options}, tmp_path / "best.ckpt")
    model = load_official("emb", tmp_path / "best.ckpt")
    with torch.no_grad():
        assert torch.equal(model(golden.batch).logits, golden.load()(golden.batch).logits)
