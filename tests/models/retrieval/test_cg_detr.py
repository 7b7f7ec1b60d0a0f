from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data.errors import UsageError
from models.retrieval import MODELS, RetrievalModel, create_model, load_official
from models.retrieval.decode import Decoding
from models.retrieval.flow import Memory
from models.retrieval.official import official_state_dict
from models.retrieval.parts.attention import DropPath
from models.retrieval.parts.dummies import AdaptiveCrossAttention, AddGlobal, WordAttention
from models.retrieval.parts.losses import negative_pair_losses, rank_losses
from models.retrieval.parts.negatives import WrongText
from models.retrieval.testing import random_batch, take
from models.retrieval.types import Batch, StepContext

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "dummies": 3,
    "prompts": 4,
}
OWN_LOSSES = (
    "margin_attention",
    "rank_attention",
    "negative_pair_attention",
    "cover_attention",
    "ms_align",
    "distill",
    "orthogonal",
)


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("cg_detr", **(SMALL | options))


def of_videos(batch: Batch, *videos: int) -> Batch:
    return replace(batch, video_ids=torch.tensor(videos))


def padded(batch: Batch, clips: int, words: int) -> Batch:
    """The same with more padding."""
    assert batch.targets is not None
    pad = functional.pad
    targets = replace(
        batch.targets,
        saliency=pad(batch.targets.saliency, (0, clips)),
        in_moment=pad(batch.targets.in_moment, (0, clips)),
    )
    return replace(
        batch,
        video=pad(batch.video, (0, 0, 0, clips)),
        video_mask=pad(batch.video_mask, (0, clips)),
        text=pad(batch.text, (0, 0, 0, words)),
        text_mask=pad(batch.text_mask, (0, words)),
        targets=targets,
    )


def test_published_sizes_have_the_published_tensors(shared: Path) -> None:
    listed = (shared / "specs" / "model_keys" / "cg_keys.txt").read_text()
    public = {
        line.split(" ", 1)[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1])))
        for line in listed.splitlines()
    }
    model = create_model("cg_detr", video_dim=2818, text_dim=512, preset="release")
    ours = official_state_dict(model, MODELS.get("cg_detr").official)
    assert {key: tuple(x.shape) for key, x in ours.items()} == public
    # 12.62 M with what its code does not read (specs/retrieval_models.md §3)
    assert sum(x.numel() for x in ours.values()) == pytest.approx(12.62e6, rel=1e-3)


def test_presets_choose_the_switches() -> None:
    fixed, release, paper = small(), small(preset="release"), small(preset="paper")
    assert fixed.recipe["negatives"] == "roll_other_video"
    assert paper.recipe["negatives"] == "next_if_other_video"
    for switch in ("t2v_mask", "false_negatives", "dummy_labels"):
        assert release.recipe[switch] == "released"
        assert paper.recipe[switch] == fixed.recipe[switch] != "released"
    assert release.decoding == Decoding.released()


@torch.no_grad()
def test_released_text_mask_lets_other_samples_hide_words() -> None:
    batch = random_batch([8, 3, 5], [6, 2, 4])
    for mask, depends in (("released", True), ("words", False)):
        model = small(t2v_mask=mask).eval()
        by_itself = model(take(batch, [0])).spans
        assert torch.allclose(model(batch).spans[:1], by_itself, atol=1e-5) != depends


@torch.no_grad()
@pytest.mark.parametrize("reads", [True, False])
def test_the_saliency_token_reads_words_unless_it_is_the_released_one(reads: bool) -> None:
    batch = random_batch([6], [3])
    model = small(sal_token_attends_text=reads).eval()
    model.fuser.prompts.zero_()  # leaves the mean of the clips
    seen: list[Tensor] = []
    model.fuser.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 0]))
    model(batch)
    model(replace(batch, text=torch.randn_like(batch.text)))
    assert torch.equal(*seen) != reads


@torch.no_grad()
def test_attention_goes_to_dummies_and_to_real_words() -> None:
    batch = random_batch([6, 4], [4, 0])
    memory = small().eval().trace(batch, passes=False).memory
    weight = memory.extras["word_attention"]
    torch.testing.assert_close(weight.sum(-1), torch.ones(2, 6))
    assert (weight[1, :, 3:] == 0).all()
    found = small().eval()(batch)
    torch.testing.assert_close(found.extras["attention"], weight[..., 3:].sum(-1))


def test_padding_gets_no_attention_where_there_is_nothing_else() -> None:
    rows, nothing = torch.randn(1, 3, 8), torch.zeros(1, 2, dtype=torch.bool)
    attention = AdaptiveCrossAttention(8, 2, 0.0)
    found, weight = attention(rows, rows[:, :2], rows[:, :2], nothing, 0)
    assert torch.equal(weight, torch.zeros(1, 3, 2))
    assert torch.equal(found, torch.zeros(1, 3, 8))  # the output has no bias at the start


def test_the_global_token_is_added_to_all_that_the_decoder_reads() -> None:
    clip, kv, token = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 4)
    masks = (torch.ones(2, n, dtype=torch.bool) for n in (3, 5))
    memory = Memory(clip, next(masks), clip, kv, next(masks), kv, global_token=token)
    added = AddGlobal()(memory)
    assert torch.equal(added.clip, clip + token[:, None])
    assert torch.equal(added.kv, kv + token[:, None])


def test_only_the_next_sample_gives_the_wrong_text_as_released() -> None:
    batch = of_videos(random_batch([5, 5, 5], [3, 3, 3]), 7, 7, 9)
    for preset, found in (("release", [False, True, True]), ("fixed", [True, True, True])):
        extras = small(preset=preset).train()(batch).extras
        assert extras["negative_mask"].tolist() == found


@pytest.mark.parametrize(
    ("videos", "counted"),
    [((7, 7, 9, 8), 0), ((7, 7, 7, 9), 1), ((1, 2, 3, 4), 0), ((7, 7, 7, 7), 1)],
    ids=["one false", "two false", "none", "all"],
)
def test_released_false_negatives_have_a_mean_of_their_own_or_are_lost(
    videos: tuple[int, ...], counted: int
) -> None:
    batch = of_videos(random_batch([5, 6, 4, 6], [3, 3, 2, 3]), *videos)
    assert batch.targets is not None
    model = small(preset="release").train()
    extras = (found := model(batch)).extras
    other, labels = extras["negative_mask"], batch.targets.saliency
    mask = torch.cat([batch.video_mask, batch.video_mask & other[:, None]], dim=1)
    labels = torch.cat([labels, torch.zeros_like(labels)], dim=1)
    scores = torch.cat([found.saliency, extras["saliency_negative"]], dim=1)
    each = rank_losses(scores, labels, mask)
    expected = each[other].sum() / other.sum().clamp(min=1)
    expected = expected + counted * each[~other].sum() / (~other).sum().clamp(min=1)
    torch.testing.assert_close(model.losses(batch)["rank"], expected)

    scores = torch.cat([extras["attention"], extras["attention_negative"]], dim=1)
    each = rank_losses(scores, labels, mask)
    some = other if other.any() else ~other  # the attention of false negatives is lost
    torch.testing.assert_close(model.losses(batch)["rank_attention"], each[some].mean())


def test_fixed_false_negatives_count_as_the_others() -> None:
    batch = of_videos(random_batch([5, 6], [3, 3]), 7, 7)
    assert batch.targets is not None
    model = small().train()
    losses, found = model.losses(batch), model(batch)
    each = rank_losses(found.saliency, batch.targets.saliency, batch.video_mask)
    torch.testing.assert_close(losses["rank"], each.mean())
    assert losses["negative_pair"] == 0
    assert losses["negative_pair_attention"] == 0


def test_samples_without_a_wrong_text_count_as_zero_in_the_papers_mean() -> None:
    """As released they have no share in it (`false_negatives`)."""
    batch = of_videos(random_batch([5, 6, 4], [3, 3, 2]), 7, 7, 8)
    model = small(preset="paper").train()
    extras = model(batch).extras
    wrong = extras["negative_mask"]
    assert wrong.tolist() == [False, True, True]
    each = negative_pair_losses(extras["saliency_negative"], batch.video_mask & wrong[:, None])
    torch.testing.assert_close(model.losses(batch)["negative_pair"], each.sum() / 3)


def test_an_attention_of_one_is_survived_in_fixed_and_not_in_release() -> None:
    batch = random_batch([6, 5, 6], [4, 3, 4])
    for log, finite in (("softplus", True), ("log", False)):
        model = small(negative_log=log, heads=1).train()
        with torch.no_grad():  # words so loud that no dummy is heard
            model.encoders.text.linears[-1].weight *= 1e3
        losses = model.losses(batch)
        assert bool(losses["negative_pair_attention"].isfinite()) == finite
        if finite:
            torch.stack(list(losses.values())).sum().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_only_released_dummy_labels_depend_on_the_order_of_the_batch() -> None:
    batch = random_batch([6, 6, 6], [4, 4, 4])
    for labels, depends in (("released", True), ("own", False)):
        model = small(dummy_labels=labels).train()
        here = model.losses(batch)["ms_align"]
        there = model.losses(take(batch, [2, 0, 1]))["ms_align"]
        assert torch.allclose(here, there, atol=1e-6) != depends


def test_only_counted_padding_changes_losses() -> None:
    batch = random_batch([6, 5, 6], [4, 3, 4])
    more = padded(batch, clips=3, words=2)
    changed = {"ms_align", "distill", "cover_attention"}
    for padding, differ in (("masked", set[str]()), ("counted", changed)):
        model = small(padding=padding).train()
        here, there = model.losses(batch), model.losses(more)
        assert {
            name for name in here if not torch.allclose(here[name], there[name], atol=1e-5)
        } == differ


def test_a_sample_of_which_the_moments_are_unknown_does_not_count_in_the_alignment() -> None:
    batch = random_batch([6, 5, 6], [4, 3, 4])
    assert batch.targets is not None
    known = torch.tensor([True, False, True])
    targets = replace(batch.targets, has_moments=known)
    inside = targets.in_moment.clone()
    inside[1] = ~inside[1] & batch.video_mask[1]
    model = small().train()
    here = model.losses(replace(batch, targets=targets))
    there = model.losses(replace(batch, targets=replace(targets, in_moment=inside)))
    torch.testing.assert_close(here["distill"], there["distill"])
    torch.testing.assert_close(here["ms_align"], there["ms_align"])


def test_the_cross_entropies_are_pytorchs() -> None:
    batch = random_batch([6, 5, 6], [4, 3, 4])
    assert batch.targets is not None
    model = small(padding="counted").train()
    attention = model(batch).extras["attention"]
    expected = functional.binary_cross_entropy(attention, batch.targets.saliency.clamp(0, 1))
    torch.testing.assert_close(model.losses(batch)["cover_attention"], expected)
    saturated = small(negative_log="log").train().losses(batch)["ms_align"]
    exact = small().train().losses(batch)["ms_align"]
    torch.testing.assert_close(saturated, exact, rtol=1e-4, atol=0)


def test_branches_are_dropped_for_whole_samples() -> None:
    dropped = [m.p for m in small(dropout=0.25).modules() if isinstance(m, DropPath)]
    # 2 over clips and words, 1 over clips, 2 of dummies, 1 each of moment, sentence; 2 decoder
    assert dropped == [0.25] * 9


def test_what_is_left_of_dropped_branches_is_scaled_up() -> None:
    """By 1 / (1 − p), so that the expectation stays (Huang et al., 2016)."""
    torch.manual_seed(0)
    branch, x = DropPath(0.25), torch.ones(64, 3, 2)
    found = branch(x)
    assert torch.equal(found, found[:, :1, :1].expand_as(x))
    torch.testing.assert_close(found.unique(), torch.tensor([0.0, 4 / 3]))
    assert torch.equal(branch.eval()(x), x)


def test_weights_of_the_losses_are_those_of_the_options() -> None:
    batch = random_batch([6, 4], [3, 2])
    plain = small().losses(batch)
    assert plain.keys() >= set(OWN_LOSSES)
    heavy = small(saliency_weight=3.0, attention_weight=2.0, negative_weight=0.0).losses(batch)
    assert "negative_pair" not in heavy
    assert "negative_pair_attention" not in heavy
    torch.testing.assert_close(heavy["margin"], 3 * plain["margin"])
    torch.testing.assert_close(heavy["cover_attention"], 6 * plain["cover_attention"])


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_public_checkpoint_of_a_highlight_set_trains_by_saliency_alone(
    tmp_path: Path, in_a_file: bool
) -> None:
    layout = MODELS.get("cg_detr").official
    weights = official_state_dict(small(preset="release"), layout)
    public = {
        "hidden_dim": 16,
        "nheads": 4,
        "dim_feedforward": 24,
        "enc_layers": 1,
        "dec_layers": 2,
        "num_dummies": 3,
        "total_prompts": 4,
        "dset_name": "youtube_uni",
    }
    checkpoint: Any = {"model": weights, "opt": public}
    if in_a_file:
        checkpoint = tmp_path / "model_best.ckpt"
        torch.save({"model": weights, "opt": argparse.Namespace(**public)}, checkpoint)
    model = load_official("cg_detr", checkpoint)
    assert set(model.criterion.terms) == {
        "margin",
        "rank",
        "margin_attention",
        "rank_attention",
        "cover_attention",
    }
    assert official_state_dict(model, layout).keys() == weights.keys()
    for key, shape in layout.unused(model.recipe).items():
        assert tuple(weights[key].shape) == shape


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompts_chosen": 5}, "prompts_chosen 5 must be at most prompts 4"),
        ({"hidden": 12}, "hidden 12 must be a multiple of text_heads 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        small(**options)


@torch.no_grad()
def test_a_wrong_text_keeps_its_own_places_unless_released() -> None:
    batch = random_batch([6, 4], [3, 3])
    swapped = replace(batch, text=batch.text.flip(0), text_mask=batch.text_mask.flip(0))
    for places, equal in (("own", True), ("right", False)):
        model = small(text_position="learned", negative_places=places).eval()
        found = model.trace(batch, passes=True)
        right = model.trace(swapped, passes=False)
        for name in ("saliency", "attention"):
            here = found.predictions.extras[f"{name}_negative"]
            there = (
                right.predictions.saliency if name == "saliency" else right.predictions.extras[name]
            )
            assert torch.allclose(here, there, atol=1e-5) == equal


@torch.no_grad()
def test_dummies_of_the_wrong_text_read_its_own_places_also_where_clips_do_not() -> None:
    """The public code lets the dummies read the words before it pairs them with other videos."""
    batch = random_batch([6, 4], [3, 3])
    model = small(text_position="learned", negative_places="right").eval()
    trace, (wrong,) = model.trace(batch, passes=True), model.passes
    assert isinstance(wrong, WrongText)
    tokens, _ = wrong.change(trace.tokens, batch, model.encoders, StepContext())
    alone = model.fuser(tokens)
    attention = WordAttention()(alone, None, {})["attention"]
    torch.testing.assert_close(trace.predictions.extras["attention_negative"], attention)


def test_the_training_step_is_one_graph() -> None:
    model, batch = small(), random_batch([6, 4], [3, 2], moments=2)
    compiled = torch.compile(lambda given: model.losses(given), backend="eager", fullgraph=True)
    plain, traced = model.losses(batch), compiled(batch)
    assert plain.keys() == traced.keys()
    assert all(torch.equal(plain[key], traced[key]) for key in plain)


@pytest.mark.parametrize("preset", ["fixed", "release", "paper"])
def test_a_video_of_one_clip_does_not_drown_the_gradient_of_the_others(preset: str) -> None:
    norms = []
    for lengths in ([9, 2, 6], [9, 1, 6]):
        model = small(preset=preset)
        losses = model.losses(random_batch(lengths, [4, 1, 3]))
        torch.stack(list(losses.values())).sum().backward()
        found = [x.grad.norm() for x in model.parameters() if x.grad is not None]
        norms.append(float(torch.stack(found).norm()))
    assert norms[1] < 20 * norms[0]
