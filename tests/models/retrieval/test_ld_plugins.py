"""LD-DETR's three parts as plug-ins of other bases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import MODELS, RetrievalModel, create_model
from models.retrieval.build import Dims
from models.retrieval.parts.distill import DistillAlignTerm
from models.retrieval.plugins import loop_decoder
from models.retrieval.plugins.conv_fuser import ConvFuserOptions, ConvRefiner
from models.retrieval.plugins.loop_decoder import LoopDecoderOptions
from models.retrieval.testing import random_batch
from models.retrieval.types import StepContext

SIZES = {"video_dim": 18, "text_dim": 12, "hidden": 16, "heads": 2, "feedforward": 24}
STILL = {"dropout": 0.0, "input_dropout": 0.0}
CONV = {"blocks": 1, "layers": 1, "heads": 2, "feedforward": 24, "dropout": 0.0}


def small(name: str, **plugins: dict[str, Any]) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model(name, plugins=plugins, **(SIZES | STILL))


@torch.no_grad()
@pytest.mark.parametrize("name", ["qd_detr", "moment_detr"])
def test_the_loop_feeds_the_decoder_of_another_base(name: str) -> None:
    model, batch = small(name, loop_decoder={"loops": 2}).eval(), random_batch([6, 4], [3, 2])
    decoder = model.decoder
    assert decoder is not None
    memory = model.trace(batch, passes=False).memory
    start = decoder.start(memory)
    again = replace(start, content=decoder.run(memory, start).states[-1])
    torch.testing.assert_close(decoder(memory).states, decoder.run(memory, again).states)


@torch.no_grad()
def test_memory_projected_once_gives_what_it_gives_projected_anew() -> None:
    model = small("qd_detr").eval()
    decoder = model.decoder
    assert decoder is not None
    memory = model.trace(random_batch([6, 4], [3, 2]), passes=False).memory
    start, prepared = decoder.start(memory), decoder.prepare(memory)
    assert torch.equal(decoder.run(memory, start).states, decoder.run(prepared, start).states)


@torch.no_grad()
def test_convolutions_change_clips_and_leave_words_alone() -> None:
    torch.manual_seed(0)
    memory = small("moment_detr").eval().trace(random_batch([6, 4], [3, 2]), passes=False).memory
    refiner = ConvRefiner(16, ConvFuserOptions(**CONV)).eval()
    refined = refiner(memory)
    assert memory.kv.shape == (2, 9, 16)
    assert torch.equal(refined.kv[:, 6:], memory.kv[:, 6:])
    torch.testing.assert_close(refined.kv[:, :6], refined.clip)
    assert not torch.allclose(refined.clip, memory.clip, atol=1e-3)
    # rows of the decoder that are more than the clips keep what they have beside them
    more = refiner(replace(memory, kv=memory.kv + 1))
    torch.testing.assert_close(more.kv, refined.kv + 1)


def test_running_statistics_are_those_of_the_right_texts() -> None:
    """QD-DETR's wrong texts also pass the refiner; batch norms do not learn from them."""
    model, batch = small("qd_detr", conv_fuser=CONV).train(), random_batch([6, 4], [3, 2])
    refiner = model.refiners[0]
    assert isinstance(refiner, ConvRefiner)
    norm = refiner.get_submodule("blocks.0.norm1")
    model(batch)
    seen = norm.state_dict()["running_mean"].clone()
    other = small("qd_detr", conv_fuser=CONV).train()
    other.trace(batch, passes=False)
    expected = other.refiners[0].get_submodule("blocks.0.norm1").state_dict()
    torch.testing.assert_close(seen, expected["running_mean"])
    assert norm.state_dict()["num_batches_tracked"] == 1
    assert norm.training


def test_heads_that_do_not_divide_the_features_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot divide 16 features among 3 heads"):
        small("qd_detr", conv_fuser=CONV | {"heads": 3})


def test_distill_align_takes_the_place_of_tr_detrs_own_alignment_unless_told() -> None:
    own, new = {"video_text", "clip_text"}, {"distill_align", "distill_sim"}
    batch = random_batch([6, 4], [3, 2])
    replaced = small("tr_detr", distill_align={"queue_length": 8}).losses(batch).keys()
    assert new <= replaced
    assert not own & replaced
    kept = small("tr_detr", distill_align={"queue_length": 8, "own_alignment": "keep"})
    assert own | new <= kept.losses(batch).keys()


def test_the_queue_takes_one_batch_a_step_with_extra_passes_too() -> None:
    model, batch = small("qd_detr", distill_align={"queue_length": 8}), random_batch([6, 4], [3, 2])
    term = model.criterion.terms["distill_align"]
    assert isinstance(term, DistillAlignTerm)
    for step in range(3):
        model.losses(batch, StepContext(step=step))
        model.after_step(StepContext(step=step))
    assert term.queue.pointer.item() == 6
    assert not any(parameter.requires_grad for parameter in term.momentum.parameters())


@pytest.mark.parametrize(
    ("name", "plugin", "reason"),
    [
        ("univtg", "loop_decoder", "no decoder"),
        ("emb", "loop_decoder", "no decoder"),
        ("emb", "conv_fuser", "rows of proposals"),
        ("ld_detr", "loop_decoder", "own option loops"),
        ("ld_detr", "conv_fuser", "own option conv_blocks"),
        ("ld_detr", "distill_align", "LD-DETR's own alignment"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(name: str, plugin: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        create_model(name, video_dim=18, text_dim=12, plugins={plugin: {}})


def test_the_alignment_compares_clips_as_they_are_before_a_narrative_joins_them() -> None:
    """The slow encoders know of no narrative, and text is all that the clips are to resemble."""
    batch = random_batch([6, 4], [3, 2], side_dims={"narrative": 12})
    found = []
    for plugins in ({}, {"tea": {"merge": "add"}}):
        torch.manual_seed(0)
        model = create_model(
            "moment_detr",
            plugins={"distill_align": {}, **plugins},
            side_dims={"narrative": 12},
            **(SIZES | STILL),
        )
        found.append(model.losses(batch, StepContext(epoch=1)))
    alone, told = found
    assert alone["span"] != told["span"]
    assert alone["distill_align"] == told["distill_align"]
    assert alone["distill_sim"] == told["distill_sim"]


def test_a_base_without_a_decoder_that_no_table_names_cannot_loop() -> None:
    dims, options = Dims(18, 12), LoopDecoderOptions()
    blueprint = MODELS.get("univtg").build(dims, MODELS.get("univtg").options(hidden=16, heads=2))
    with pytest.raises(UsageError, match="the model has no decoder that could loop; choose a base"):
        loop_decoder.apply(blueprint, dims, options)


def test_a_view_of_the_batch_takes_no_place_in_the_queue() -> None:
    plugins = {"distill_align": {"queue_length": 16}}
    model = create_model("bm_detr", shift="reverse", plugins=plugins, **(SIZES | STILL)).train()
    term = model.criterion.terms["distill_align"]
    assert isinstance(term, DistillAlignTerm)
    model.losses(random_batch([6, 4], [3, 2]), StepContext(epoch=1))
    model.after_step(StepContext(epoch=1))
    assert term.queue.pointer.item() == 2
