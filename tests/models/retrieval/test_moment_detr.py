from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import MODELS, RetrievalModel, create_model, load_official
from models.retrieval.decode import Decoding
from models.retrieval.official import official_state_dict
from models.retrieval.testing import random_batch, take
from models.retrieval.types import Batch

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
}
PUBLIC = {"hidden_dim": 16, "nheads": 4, "dim_feedforward": 24, "use_txt_pos": False}
ALIGN = {"align": True, "align_weight": 0.02, "align_width": 8}


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("moment_detr", **(SMALL | options))


def public_state(model: RetrievalModel) -> dict[str, torch.Tensor]:
    return official_state_dict(model, MODELS.get("moment_detr").official)


def align_of(model: RetrievalModel, batch: Batch) -> torch.Tensor:
    return model.losses(batch)["align"]


def test_moment_detr_of_published_sizes_has_the_published_tensors(shared: Path) -> None:
    listed = (shared / "specs" / "model_keys" / "mdetr_keys.txt").read_text()
    public = {
        line.split(" ", 1)[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1])))
        for line in listed.splitlines()
    }
    model = create_model("moment_detr", video_dim=2818, text_dim=512, preset="release")
    ours = public_state(model)
    assert {key: tuple(x.shape) for key, x in ours.items()} == public
    assert sum(x.numel() for x in ours.values()) == pytest.approx(4.82e6, rel=2e-3)


def test_presets_of_moment_detr_choose_the_switches() -> None:
    assert small().decoding == Decoding()
    assert small(preset="release").decoding == Decoding.released()
    assert small(preset="release").recipe["align_words"] == "released"
    assert small(preset="paper").recipe | {"preset": "fixed"} == small().recipe


@torch.no_grad()
def test_the_memory_is_clips_then_words() -> None:
    batch = random_batch([6, 4], [3, 2])
    memory = small().eval().trace(batch, passes=False).memory
    torch.testing.assert_close(
        memory.kv, torch.cat([memory.clip, memory.extras["words"]], dim=1), atol=0, rtol=0
    )
    assert memory.kv_mask.sum(1).tolist() == [9, 6]


@torch.no_grad()
def test_a_decoder_run_again_starts_from_what_it_is_given() -> None:
    model, batch = small().eval(), random_batch([6, 4], [3, 2])
    decoder, memory = model.decoder, model.trace(batch, passes=False).memory
    assert decoder is not None
    start = decoder.start(memory)
    once = decoder.run(memory, start).states[-1]
    assert not start.content.any()
    again = decoder.run(memory, replace(start, content=once)).states[-1]
    assert not torch.allclose(once, again, atol=1e-3)
    assert torch.equal(once, decoder(memory).states[-1])


def test_the_contrast_with_the_words_is_off_unless_asked_for() -> None:
    batch = random_batch([6, 4], [3, 2])
    assert not any(name.startswith("align") for name in small().losses(batch))
    assert {"align", "align_0"} <= small(**ALIGN).losses(batch).keys()
    with pytest.raises(UsageError, match=r"align_weight .* no effect without align: true"):
        small(align_weight=0.1)


def test_padded_words_join_the_contrast_only_as_released() -> None:
    batch = random_batch([6, 6], [5, 2])
    noisy = replace(
        batch, text=batch.text.where(batch.text_mask.unsqueeze(-1), torch.randn(2, 5, 12))
    )
    words, released = small(**ALIGN), small(**ALIGN, align_words="released")
    torch.testing.assert_close(align_of(words, batch), align_of(words, noisy))
    assert (align_of(released, batch) - align_of(released, noisy)).abs() > 1e-4


def test_samples_without_moments_do_not_count_in_the_contrast() -> None:
    batch, model = random_batch([6, 6], [3, 3]), small(**ALIGN)
    assert batch.targets is not None
    mask = batch.targets.span_mask & torch.tensor([[True], [False]])
    half = replace(batch, targets=replace(batch.targets, span_mask=mask))
    torch.testing.assert_close(align_of(model, half), align_of(model, take(batch, [0])))
    nothing = replace(batch.targets, span_mask=torch.zeros_like(mask))
    assert align_of(model, replace(batch, targets=nothing)) == 0


def test_a_public_checkpoint_with_the_contrast_is_read(tmp_path: Path) -> None:
    model = small(preset="release", **ALIGN)
    state = public_state(model)
    assert "contrastive_align_projection_vid.weight" in state
    options = PUBLIC | {
        "contrastive_align_loss": True,
        "contrastive_align_loss_coef": 0.02,
        "contrastive_hdim": 8,
    }
    file = tmp_path / "model.ckpt"
    torch.save({"model": state, "opt": argparse.Namespace(**options)}, file)
    loaded = load_official("moment_detr", file)
    assert loaded.recipe["align_weight"] == 0.02
    untrained = options | {"contrastive_align_loss_coef": 0.0}
    loaded = load_official("moment_detr", {"model": state, "opt": untrained})
    batch = random_batch([6, 4], [3, 2])
    with torch.no_grad():
        assert torch.equal(loaded(batch).spans, model.eval()(batch).spans)
    assert "align" not in loaded.losses(batch)


def test_public_options_without_a_part_are_refused() -> None:
    state = public_state(small(preset="release"))
    with pytest.raises(UsageError, match=r"span_loss_type='ce'.*'l1'"):
        load_official("moment_detr", {"model": state, "opt": PUBLIC | {"span_loss_type": "ce"}})


def test_words_may_have_learned_places() -> None:
    batch = random_batch([6], [3])
    model = small(preset="release", text_position="learned")
    state = public_state(model)
    loaded = load_official("moment_detr", {"model": state, "opt": PUBLIC | {"use_txt_pos": True}})
    with torch.no_grad():
        assert torch.equal(loaded(batch).spans, model.eval()(batch).spans)
        assert not torch.equal(loaded(batch).spans, small(preset="release").eval()(batch).spans)


def test_the_training_step_of_moment_detr_is_one_graph() -> None:
    model, batch = small(**ALIGN), random_batch([6, 4], [3, 2], moments=2)
    compiled = torch.compile(lambda given: model.losses(given), backend="eager", fullgraph=True)
    plain, traced = model.losses(batch), compiled(batch)
    assert plain.keys() == traced.keys()
    assert all(torch.equal(plain[key], traced[key]) for key in plain)
