from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.retrieval import MODELS, RetrievalModel, create_model, load_official
from models.retrieval.decode import Decoding
from models.retrieval.official import official_state_dict
from models.retrieval.parts.frame_probability import probability_guidance
from models.retrieval.parts.shift import MovedMoment, ReversedVideo
from models.retrieval.testing import alone, random_batch
from models.retrieval.types import Batch, Targets

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "contrast_width": 8,
    "dropout": 0.0,
    "input_dropout": 0.0,
}


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("bm_detr", **(SMALL | options))


def ragged(**options: Any) -> Batch:
    return random_batch([11, 7, 5], [5, 2, 4], **options)


def known(batch: Batch) -> Targets:
    assert batch.targets is not None
    return batch.targets


def test_published_sizes_have_the_published_tensors(shared: Path) -> None:
    listed = (shared / "specs" / "model_keys" / "bm_keys.txt").read_text()
    public = {
        line.split(" ", 1)[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1])))
        for line in listed.splitlines()
    }
    model = create_model("bm_detr", video_dim=2818, text_dim=512, preset="release")
    ours = official_state_dict(model, MODELS.get("bm_detr").official)
    assert {key: tuple(x.shape) for key, x in ours.items()} == public
    assert sum(x.numel() for x in ours.values()) == pytest.approx(8.41e6, rel=1e-3)


def test_presets_choose_the_switches() -> None:
    fixed, release, paper = (small(preset=each) for each in ("fixed", "release", "paper"))
    assert release.recipe["clip_weights"] == "released"
    assert fixed.recipe["clip_weights"] == paper.recipe["clip_weights"] == "clips"
    assert "label_error" in release.criterion.terms
    assert "label_error" not in fixed.criterion.terms
    assert paper.recipe["contrast"] == "batch"
    assert release.decoding == Decoding.released()


@torch.no_grad()
def test_no_layer_refines_the_anchors_that_the_queries_start_from() -> None:
    decoded = small().eval().trace(ragged(), passes=False).decoded
    assert decoded is not None
    assert decoded.references is not None
    assert len(decoded.states) == 3
    assert len(decoded.references) == 1


@pytest.mark.parametrize("weights", ["clips", "released"])
@torch.no_grad()
def test_weights_of_clips_depend_on_padding_only_as_released(weights: str) -> None:
    model, batch = small(clip_weights=weights).eval(), ragged()
    together, by_itself = model(batch), model(alone(batch, 2))
    same = torch.allclose(together.saliency[2, :5], by_itself.saliency[0], atol=1e-6)
    assert same == (weights == "clips")
    torch.testing.assert_close(
        together.extras["relevance"][2, :5], by_itself.extras["relevance"][0], atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_a_clip_that_answers_a_wrong_text_is_less_relevant() -> None:
    model, batch = small(), ragged()
    plain = model.trace(batch, passes=False).predictions.extras["relevance"]
    found = model.trace(batch, passes=True).predictions.extras
    expected = plain * (1 - found["frame_probability_negative"])
    torch.testing.assert_close(found["relevance"], expected)


@torch.no_grad()
def test_without_another_video_nothing_lowers_the_relevance() -> None:
    batch = replace(ragged(), video_ids=torch.zeros(3, dtype=torch.int64))
    for negatives, same in (("roll_other_video", True), ("roll", False)):
        model = small(negatives=negatives)
        plain = model.trace(batch, passes=False).predictions.extras["relevance"]
        found = model.trace(batch, passes=True).predictions.extras["relevance"]
        assert torch.equal(plain, found) == same


@torch.no_grad()
def test_a_wrong_text_that_the_batch_brings_is_taken_whatever_its_length() -> None:
    model, batch = small(), ragged()
    wrong = random_batch([3, 3, 3], [9, 1, 2], seed=4)
    given = replace(batch, wrong_text=wrong.text, wrong_text_mask=wrong.text_mask)
    swapped = replace(batch, text=wrong.text, text_mask=wrong.text_mask)
    found = model.trace(given, passes=True).predictions.extras["frame_probability_negative"]
    expected = model.trace(swapped, passes=False).predictions.extras["frame_probability"]
    mask = batch.video_mask
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-6, rtol=1e-5)


def test_other_queries_of_a_video_are_contrasted_with_only_as_released() -> None:
    batch = ragged()
    one_video = replace(batch, video_ids=torch.zeros(3, dtype=torch.int64))
    fixed, released = small(), small(contrast="batch")
    assert fixed.losses(one_video)["contrastive"] == 0
    assert released.losses(one_video)["contrastive"] > 0
    apart = [each.losses(batch)["contrastive"] for each in (fixed, released)]
    torch.testing.assert_close(*apart)


def test_the_error_of_the_labels_shifts_the_sum_and_no_gradient() -> None:
    batch = ragged()
    with_it, without = small(label_error_weight=1.0), small()
    losses, plain = with_it.losses(batch), without.losses(batch)
    assert 0 <= losses["label_error"] <= 100
    assert not losses["label_error"].requires_grad
    sums = [torch.stack(list(each.values())).sum() for each in (losses, plain)]
    torch.testing.assert_close(sums[0], sums[1] + losses["label_error"])


def test_guidance_leaves_out_samples_without_a_clip_inside() -> None:
    relevance = torch.tensor([[0.9, 0.2, 0.1], [0.5, 0.5, 0.5]])
    inside = torch.tensor([[True, False, False], [False, False, False]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss = probability_guidance(relevance, inside, mask)
    assert loss.item() == pytest.approx(1 - 0.9 + 0.15)
    assert probability_guidance(relevance, inside & False, mask) == 0


def reversed_twice(batch: Batch) -> Batch:
    view = ReversedVideo()
    return view.change(view.change(batch))


def test_a_video_reversed_twice_is_the_video() -> None:
    batch = ragged(side_dims={"narrative": 4}, text_dims={"llama": 5}, moments=2)
    once, again = ReversedVideo().change(batch), reversed_twice(batch)
    assert torch.equal(once.texts["llama"].x, batch.texts["llama"].x)  # the query has no clips
    assert torch.equal(again.video, batch.video)
    assert torch.equal(again.side["narrative"].mask, batch.side["narrative"].mask)
    assert torch.equal(known(again).positive, known(batch).positive)
    torch.testing.assert_close(known(again).spans, known(batch).spans)


def features_inside(batch: Batch) -> list[Tensor]:
    """Without the TEF columns, of every sample."""
    inside = known(batch).in_moment
    return [x[rows][:, :-2] for x, rows in zip(batch.video, inside, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_a_moved_moment_is_the_same_clips_at_another_place(seed: int) -> None:
    torch.manual_seed(seed)
    batch = ragged(seed=seed)
    moved = MovedMoment().change(batch)
    for before, after in zip(features_inside(batch), features_inside(moved), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(moved.video[..., -2:], batch.video[..., -2:])
    assert torch.equal(moved.video[~batch.video_mask], batch.video[~batch.video_mask])
    # The span covers exactly the clips that are marked, as before.
    centre, width = known(moved).spans[:, 0].unbind(-1)
    clips = batch.video_mask.sum(1)
    index = torch.arange(batch.video_mask.shape[1]) + 0.5
    low, high = ((centre + sign * width / 2) * clips for sign in (-1, 1))
    covered = (index > low[:, None]) & (index < high[:, None]) & batch.video_mask
    assert torch.equal(covered, known(moved).in_moment)
    labels = known(moved).saliency.gather(1, known(moved).positive)
    assert torch.equal(labels, known(batch).saliency.gather(1, known(batch).positive))


def test_moments_reach_every_place_and_stay_where_there_is_no_other() -> None:
    torch.manual_seed(0)
    batch, view = random_batch([4, 1], [2, 2]), MovedMoment()
    spans = torch.tensor([[[0.375, 0.25]], [[0.5, 1.0]]])
    marked = torch.tensor([[False, True, False, False], [True, False, False, False]])
    batch = replace(batch, targets=replace(known(batch), spans=spans, in_moment=marked))
    starts = {tuple((known(view.change(batch)).spans[:, 0, 0]).tolist()) for _ in range(60)}
    assert starts == {(0.125, 0.5), (0.375, 0.5), (0.625, 0.5), (0.875, 0.5)}


def test_only_a_single_moment_moves() -> None:
    batch = random_batch([12, 12], [2, 2], moments=2)
    targets = known(batch)
    assert (targets.span_mask.sum(1) == 2).all()
    assert torch.equal(MovedMoment().change(batch).video, batch.video)
    released = MovedMoment(released=True).change(batch)
    assert known(released).spans.shape[1] == 1


def test_a_batch_of_which_no_moments_are_known_stays_as_it_is() -> None:
    batch = ragged()
    none = replace(known(batch), spans=torch.zeros(3, 0, 2), span_mask=torch.zeros(3, 0).bool())
    batch = replace(batch, targets=none)
    assert torch.equal(MovedMoment().change(batch).video, batch.video)


def test_the_released_shift_takes_the_places_along_and_loses_the_last_clip() -> None:
    torch.manual_seed(0)
    batch = random_batch([8], [2])
    spans = torch.tensor([[[0.5, 0.5]]])  # clips 2 to 5
    inside = torch.tensor([[False, False, True, True, True, True, False, False]])
    batch = replace(batch, targets=replace(known(batch), spans=spans, in_moment=inside))
    found = MovedMoment(released=True).change(batch)
    rows = known(found).in_moment[0].nonzero().squeeze(1)
    assert torch.equal(found.video[0, rows], batch.video[0, 2:6])
    assert known(found).spans[0, 0, 1].item() == pytest.approx(3 / 8)
    start = known(found).spans[0, 0, 0].item() - 1.5 / 8
    assert start * 8 == pytest.approx(rows[0].item(), abs=1e-5)


def test_the_loss_is_the_mean_over_the_video_and_its_other_order_in_training_alone() -> None:
    batch, plain, both = ragged(), small(), small(shift="reverse")
    expected = [plain.losses(each) for each in (batch, ReversedVideo().change(batch))]
    found = both.losses(batch)
    for name, loss in found.items():
        torch.testing.assert_close(loss, (expected[0][name] + expected[1][name]) / 2)
    evaluated, unshifted = both.eval().losses(batch), plain.eval().losses(batch)
    for name, loss in evaluated.items():
        torch.testing.assert_close(loss, unshifted[name])


@pytest.mark.parametrize("shift", ["moment", "released", "reverse"])
def test_every_shift_trains(shift: str) -> None:
    model = small(shift=shift)
    total = torch.stack(list(model.losses(ragged()).values())).sum()
    total.backward()
    assert total.isfinite()


def test_another_order_of_the_clips_has_no_pseudo_events() -> None:
    events, mask = torch.rand(3, 4, 3), torch.ones(3, 4, dtype=torch.bool)
    moved = MovedMoment().change(replace(ragged(), events=events, event_mask=mask))
    assert moved.event_mask is not None
    assert not moved.event_mask.any()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_public_checkpoint_brings_its_activation(activation: str) -> None:
    model = small(preset="release", activation=activation)
    assert not any("activation" in name for name, _ in model.named_parameters())
    state = official_state_dict(model, MODELS.get("bm_detr").official)
    public = {"hidden_dim": 16, "nheads": 4, "dim_feedforward": 24, "contrastive_hdim": 8}
    public |= {"enc_layers": 3, "dec_layers": 3, "transformer_activation": activation}
    loaded, batch = load_official("bm_detr", {"model": state, "opt": public}), ragged()
    assert loaded.recipe["activation"] == activation
    assert torch.equal(loaded(batch).spans, model.eval()(batch).spans)


def test_a_public_checkpoint_brings_its_shift(tmp_path: Path) -> None:
    model = small(preset="release")
    state = official_state_dict(model, MODELS.get("bm_detr").official)
    public = {
        "hidden_dim": 16,
        "nheads": 4,
        "dim_feedforward": 24,
        "enc_layers": 3,
        "dec_layers": 3,
        "contrastive_hdim": 8,
        "use_temporal_shifting": True,
        "aux_loss": True,  # its code does not read it
    }
    file = tmp_path / "best.ckpt"
    torch.save({"model": state, "opt": Namespace(**public)}, file)
    for given in (file, {"model": state, "opt": public}):
        loaded = load_official("bm_detr", given)
        assert loaded.recipe["shift"] == "released"
        assert not loaded.recipe["aux_loss"]
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, model.state_dict()[key]), key
    without = load_official(
        "bm_detr", {"model": state, "opt": public | {"lw_contrastive_loss_coef": 0}}
    )
    assert "contrastive" not in without.criterion.terms
