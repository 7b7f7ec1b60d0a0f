"""What TR-DETR's options change, both ways."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import MODELS, RetrievalModel, create_model, load_official
from models.retrieval.official import official_state_dict
from models.retrieval.parts.gru_saliency import MomentGRUSaliency, SummedLinear, moment_slice
from models.retrieval.testing import random_batch, take
from models.retrieval.types import Batch

SIZES = {"video_dim": 18, "text_dim": 12, "hidden": 16, "heads": 2, "feedforward": 24}
STILL = {"dropout": 0.0, "input_dropout": 0.0}


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("tr_detr", **(SIZES | STILL | options))


def wider(batch: Batch, clips: int = 3) -> Batch:
    """The same samples with more padding."""
    assert batch.targets is not None
    pad = torch.nn.functional.pad
    targets = replace(
        batch.targets,
        saliency=pad(batch.targets.saliency, (0, clips)),
        in_moment=pad(batch.targets.in_moment, (0, clips)),
    )
    return replace(
        batch,
        video=pad(batch.video, (0, 0, 0, clips)),
        video_mask=pad(batch.video_mask, (0, clips)),
        targets=targets,
    )


@pytest.mark.parametrize("name", ["margin", "rank", "video_text", "clip_text"])
def test_only_released_losses_depend_on_the_padding(name: str) -> None:
    batch = random_batch([6, 4], [3, 2])
    for preset, same in (("fixed", True), ("release", False)):
        model = small(preset=preset)
        narrow, wide = (model.losses(each)[name] for each in (batch, wider(batch)))
        assert torch.allclose(narrow, wide, atol=1e-5) == same, preset


@torch.no_grad()
def test_the_first_saliency_weighs_padding_only_as_released() -> None:
    batch = random_batch([6, 4], [3, 2])
    for choice, same in (("real", True), ("padded", False)):
        model = small(first_saliency=choice).eval()
        narrow, wide = (model(each).spans for each in (batch, wider(batch)))
        assert torch.allclose(narrow, wide, atol=1e-5) == same, choice


@torch.no_grad()
def test_padding_of_another_sample_hides_words_only_as_released() -> None:
    batch = random_batch([6, 4], [3, 1])
    for choice, same in (("words", True), ("released", False)):
        model = small(t2v_mask=choice).eval()
        alone = model(take(batch, [0])).spans
        assert torch.allclose(model(batch).spans[:1], alone, atol=1e-6) == same, choice


SPANS = torch.tensor([[0.5, 0.5], [0.1, 0.6], [0.99, 0.4], [0.2, 0.0]])
MASK = torch.arange(8) < torch.tensor([[8], [8], [4], [4]])


def test_a_moment_is_cut_to_the_real_clips() -> None:
    start, count = moment_slice(SPANS, MASK, "masked")
    assert start.tolist() == [2, 0, 3, 0]
    assert count.tolist() == [5, 4, 1, 1]
    # a moment of nothing at the very end is the last clip
    start, count = moment_slice(torch.tensor([[1.0, 0.0]]), MASK[2:3], "masked")
    assert (start.item(), count.item()) == (3, 1)


def test_a_released_moment_that_begins_before_the_video_is_sliced_from_the_end() -> None:
    start, count = moment_slice(SPANS, MASK, "released")
    clips = torch.arange(8)
    for row, (centre, width) in enumerate(SPANS.tolist()):
        first, last = int((centre - width / 2) * 8 // 1), int((centre + width / 2) * 8 // 1)
        expected = clips[first : last + 1].tolist()
        assert [int(start[row]) + i for i in range(int(count[row]))] == expected
    assert count[1] == 0


@torch.no_grad()
def test_saliency_is_read_from_the_clips_of_the_best_moment() -> None:
    model, batch = small().eval(), random_batch([6], [3])
    trace = model.trace(batch, passes=False)
    found = trace.predictions
    best = found.logits.softmax(-1)[0, :, 0].argmax()
    start, count = moment_slice(found.spans[:, best], batch.video_mask, "masked")
    video = trace.tokens.video
    head = model.heads[1]
    assert isinstance(head, MomentGRUSaliency)
    _, state = head.gru(video[:, int(start) : int(start + count)])
    score = model.fuser.score
    weighed = trace.memory.clip * (1 + (video * state[0]).sum(-1, keepdim=True))
    torch.testing.assert_close(found.saliency, score(weighed), atol=1e-5, rtol=1e-5)


def test_a_summed_layer_is_the_layer_and_then_the_sum() -> None:
    layer, x = SummedLinear(8), torch.randn(3, 8)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias).sum(-1)
    torch.testing.assert_close(layer(x), plain / 8**0.5)
    assert SummedLinear(8, "width").scale == 1 / 8


def test_alignment_losses_leave_out_samples_without_known_moments() -> None:
    batch = random_batch([6, 6], [3, 3])
    assert batch.targets is not None
    known = replace(batch.targets, has_moments=torch.tensor([True, False]))
    model = small()
    both = model.losses(replace(batch, targets=known))["clip_text"]
    first = model.losses(take(batch, [0]))["clip_text"]
    torch.testing.assert_close(both, first)


def test_the_label_loss_is_chosen_by_name() -> None:
    batch = random_batch([6, 4], [3, 2])
    focal, cross = small(), small(label="cross_entropy", background_weight=0.1)
    assert focal.losses(batch)["label"] < cross.losses(batch)["label"]


def test_a_weight_of_the_background_needs_the_cross_entropy() -> None:
    with pytest.raises(UsageError, match="the focal loss has no weight for the background"):
        small(background_weight=0.1)


def test_alignment_losses_of_weight_zero_are_absent() -> None:
    model = small(video_text_weight=0.0, clip_text_weight=0.0)
    assert not {"video_text", "clip_text"} & model.losses(random_batch([6], [3])).keys()


def test_a_public_checkpoint_of_tvsum_was_not_trained_on_moments() -> None:
    model = small(preset="release")
    public = official_state_dict(model, MODELS.get("tr_detr").official)
    options = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 24, "dset_name": "tvsum"}
    again = load_official("tr_detr", {"model": public, "opt": options})
    losses = again.losses(random_batch([6, 4], [3, 2]))
    assert losses.keys() == {"margin", "rank", "video_text", "clip_text"}


@pytest.mark.parametrize("layers", [1, 2])
def test_a_public_file_with_its_options_comes_back(layers: int, tmp_path: Path) -> None:
    model = small(preset="release", decoder_layers=layers, dropout=0.1, input_dropout=0.5)
    options = argparse.Namespace(
        hidden_dim=16, nheads=2, dim_feedforward=24, dec_layers=layers, eos_coef=0.1, pre_norm=False
    )
    file = tmp_path / "model.ckpt"
    public = official_state_dict(model, MODELS.get("tr_detr").official)
    torch.save({"model": public, "opt": options}, file)
    again = load_official("tr_detr", file)
    assert again.recipe == model.recipe
    batch = random_batch([6, 4], [3, 2])
    assert torch.equal(again(batch).spans, model.eval()(batch).spans)
