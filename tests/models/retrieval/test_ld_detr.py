"""What LD-DETR's options change, both ways, and its parts by themselves."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.retrieval import MODELS, RetrievalModel, create_model, load_official
from models.retrieval.official import official_state_dict
from models.retrieval.parts.conv_blocks import ConvBlock, MaskedBatchNorm
from models.retrieval.parts.distill import (
    DistillAlignTerm,
    FeatureQueue,
    distilled_contrast,
    pair_similarity,
    warmed_up,
)
from models.retrieval.testing import random_batch, take
from models.retrieval.types import Batch, StepContext

SIZES = {"video_dim": 18, "text_dim": 12, "hidden": 16, "heads": 2, "feedforward": 24}
STILL = {"dropout": 0.0, "input_dropout": 0.0, "queue_length": 8, "conv_blocks": 2}
LATER = StepContext(epoch=1)


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("ld_detr", **(SIZES | STILL | options))


def numbered(batch: Batch, *ids: int) -> Batch:
    """The batch with ids of samples and videos."""
    return replace(batch, sample_ids=torch.tensor(ids), video_ids=torch.tensor(ids))


def align(model: RetrievalModel) -> DistillAlignTerm:
    term = model.criterion.terms["distill_align"]
    assert isinstance(term, DistillAlignTerm)
    return term


def state(term: DistillAlignTerm) -> dict[str, Tensor]:
    return {key: x.clone() for key, x in term.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """The first word of all names whose tensors are equal."""
    return {key.split(".")[0] for key in a if torch.equal(a[key], b[key])}


def test_one_loop_is_the_decoder_alone_and_more_loops_differ() -> None:
    batch = random_batch([6, 4], [3, 2])
    one, three = small(loops=1).eval(), small(loops=3).eval()
    assert one.decoder is not None
    memory = one.trace(batch, passes=False).memory
    alone = one.decoder.run(memory, one.decoder.start(memory))
    assert torch.equal(one.decoder(memory).states, alone.states)
    assert not torch.allclose(one(batch).spans, three(batch).spans, atol=1e-4)


def test_loops_feed_the_content_back_and_start_from_the_learned_anchors() -> None:
    model = small(loops=2).eval()
    decoder = model.decoder
    assert decoder is not None
    memory = model.trace(random_batch([6, 4], [3, 2]), passes=False).memory
    start = decoder.start(memory)
    once = decoder.run(memory, start)
    twice = decoder.run(memory, replace(start, content=once.states[-1]))
    found = decoder(memory)
    torch.testing.assert_close(found.states, twice.states)
    assert found.references is not None
    assert torch.equal(found.references[0], start.anchors)


def test_gradients_reach_the_first_loop() -> None:
    batch = random_batch([6, 4], [3, 2])
    for loops, reached in ((1, False), (2, True)):
        model = small(loops=loops)
        torch.stack(list(model.losses(batch, LATER).values())).sum().backward()
        weight = model.get_parameter("decoder.layers.0.self_value.weight")
        assert weight.grad is not None
        assert bool(weight.grad.abs().max() > 1e-7) == reached


def test_what_layers_make_of_the_memory_is_made_once_for_all_loops() -> None:
    model, calls = small(loops=3), []
    for layer in model.decoder.layers:
        layer.cross_value.register_forward_hook(lambda *args: calls.append(1))
    model(random_batch([6, 4], [3, 2]))
    assert len(calls) == 2


def test_slow_encoders_and_queue_move_with_steps_and_not_with_evaluation() -> None:
    model, batch = small(), numbered(random_batch([6, 4], [3, 2]), 1, 2)
    term = align(model)
    before = state(term)
    model.eval().losses(batch, LATER)
    model.after_step(LATER)
    assert same(before, state(term)) == {"momentum", "temperature", "queue"}
    model.train().losses(batch, LATER)
    assert same(before, state(term)) == {"momentum", "temperature", "queue"}
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter += 1
    model.after_step(LATER)
    after = state(term)
    for key in before:
        if key.startswith("momentum"):
            torch.testing.assert_close(after[key], before[key] + 0.005)
    assert after["queue.pointer"].item() == 2
    assert after["queue.ids"][:2].tolist() == [1, 2]
    assert torch.equal(after["queue.video"][:, 2:], before["queue.video"][:, 2:])


def test_released_slow_encoders_move_whenever_the_loss_is_computed() -> None:
    model, batch = small(preset="release"), random_batch([6, 4], [3, 2])
    term = align(model)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter += 1
    before = state(term)
    model.eval().losses(batch, LATER)
    assert "momentum" not in same(before, state(term))
    assert "queue" in same(before, state(term))
    model.train().losses(batch, LATER)
    assert state(term)["queue.pointer"].item() == 2
    before = state(term)
    model.after_step(LATER)
    assert all(torch.equal(x, before[key]) for key, x in state(term).items())


def test_a_released_queue_skips_a_batch_that_does_not_divide_it() -> None:
    batch = random_batch([6, 4, 5], [3, 2, 2])
    for preset, pointer in (("release", 0), ("fixed", 3)):
        model = small(preset=preset)
        model.losses(batch, LATER)
        model.after_step(LATER)
        assert align(model).queue.pointer.item() == pointer


def test_a_view_of_a_batch_does_not_enter_the_queue() -> None:
    model, batch = small(), random_batch([6, 4], [3, 2])
    for view in (0, 1):
        context = replace(LATER, view=view)
        model.criterion(model.trace(batch, passes=True, context=context), batch, context)
    model.after_step(LATER)
    assert align(model).queue.pointer.item() == 2


def test_batches_of_one_step_enter_together_and_those_without_a_step_are_forgotten() -> None:
    model, batch = small(), random_batch([6, 4], [3, 2])
    for _ in range(20):
        model.losses(batch, LATER)
    assert sum(len(each[0]) for each in align(model)._waiting) <= 8 + 2
    model.after_step(LATER)
    assert not align(model)._waiting


def test_a_queue_is_a_ring_for_every_batch_size() -> None:
    queue, written = FeatureQueue(2, 5, ids=True), []
    assert queue.ids is not None
    for count in (3, 4, 1, 7):
        ids = torch.arange(len(written), len(written) + count)
        written += ids.tolist()
        rows = ids.float().unsqueeze(1).expand(-1, 2)
        queue.push(rows, -rows, ids)
        kept = written[-5:]
        places = [i % 5 for i in range(len(written) - len(kept), len(written))]
        assert queue.ids[places].tolist() == kept
        assert queue.video[0, places].tolist() == kept
        assert queue.text[1, places].tolist() == [-each for each in kept]
        assert queue.pointer.item() == len(written) % 5


def test_without_queue_and_soft_target_it_is_plain_contrast_with_slow_keys() -> None:
    torch.manual_seed(0)
    query, slow, keys = torch.randn(3, 4, 8)
    found = distilled_contrast(
        query, slow, keys, torch.empty(8, 0), temperature=torch.tensor(0.5), alpha=0.0
    )
    scores = query @ keys.T / 0.5
    torch.testing.assert_close(
        found, nn.functional.cross_entropy(scores, torch.arange(4), reduction="none")
    )


@pytest.mark.parametrize("mask", ["none", "same_sample", "same_video"])
def test_masks_leave_the_keys_of_the_same_sample_or_video_out(mask: str) -> None:
    batch = numbered(random_batch([6, 4], [3, 2]), 1, 2)
    model = small(queue_mask=mask)
    term = align(model)
    known = {"none": 0, "same_sample": 1, "same_video": 2}[mask]
    other = replace(batch, video_ids=torch.tensor([1, 1]))
    ids = other.video_ids if mask == "same_video" else other.sample_ids
    assert ids is not None
    term.queue.push(torch.ones(2, 16), torch.ones(2, 16), ids)
    hidden = term._hidden(term._ids(other))
    if mask == "none":
        assert hidden is None
        return
    assert hidden is not None
    assert not hidden[:, :2].diagonal().any()
    assert hidden[0, 2:].sum() == known
    assert hidden[0, 1] == (mask == "same_video")
    unknown = term._hidden(term._ids(replace(batch, sample_ids=None, video_ids=None)))
    assert unknown is not None
    assert not unknown.any()


def test_a_key_that_is_left_out_does_not_count() -> None:
    torch.manual_seed(0)
    query, slow, keys = nn.functional.normalize(torch.randn(3, 2, 8), dim=-1)
    queue, hidden = torch.randn(8, 3), torch.zeros(2, 5, dtype=torch.bool)
    hidden[:, 3] = True
    options = {"temperature": torch.tensor(0.1), "alpha": 0.4}
    masked = distilled_contrast(query, slow, keys, queue, hidden=hidden, **options)
    without = distilled_contrast(query, slow, keys, queue[:, [0, 2]], **options)
    torch.testing.assert_close(masked, without)


def test_the_soft_target_comes_in_during_the_first_epoch() -> None:
    steps = [StepContext(0, 0, 4), StepContext(0, 2, 4), StepContext(1, 4, 4)]
    assert [warmed_up(0.4, each) for each in steps] == [0.0, 0.2, 0.4]


def test_the_temperature_stays_in_its_range() -> None:
    model = small()
    with torch.no_grad():
        align(model).temperature.fill_(3.0)
    model.after_step(LATER)
    assert align(model).temperature.item() == 0.5


def test_a_loss_without_a_step_holds_the_temperature_too_and_keeps_its_gradient() -> None:
    model, batch = small(), random_batch([6, 4], [3, 2])
    found = []
    for temperature in (3.0, 0.5):  # 0.5 is where the public code holds it
        with torch.no_grad():
            align(model).temperature.fill_(temperature)
        found.append(model.eval().losses(batch, LATER)["distill_align"])
    assert found[0] == found[1]
    found[0].backward()
    assert align(model).temperature.grad


def test_the_slow_encoders_have_no_places_of_words_as_in_the_public_layout() -> None:
    model = small(preset="release", text_position="learned")
    public = official_state_dict(model, MODELS.get("ld_detr").official)
    assert "txt_position_embed.position_embeddings.weight" in public
    assert not any("position" in name for name in align(model).state_dict())


def test_the_slow_encoders_drop_out_features_unless_asked_not_to() -> None:
    batch = random_batch([6, 4], [3, 2])
    for kept in (True, False):
        term = align(small(momentum_dropout=kept, input_dropout=0.5))
        equal = torch.equal(term.momentum(batch).video, term.momentum(batch).video)
        assert equal != kept


def test_what_is_predicted_gets_no_gradient_if_asked() -> None:
    for stop in (True, False):
        video, text = torch.randn(2, 3, 4), torch.zeros(3, 4, requires_grad=True)
        pair_similarity(nn.Linear(4, 4), video[0], text, stop=stop).sum().backward()
        assert text.grad is not None
        assert bool(text.grad.abs().sum() > 0) != stop


def test_samples_without_known_moments_take_no_part_in_the_alignment() -> None:
    batch = random_batch([6, 6], [3, 3])
    assert batch.targets is not None
    known = replace(batch.targets, has_moments=torch.tensor([False, False]))
    found = small().losses(replace(batch, targets=known), LATER)
    assert found["distill_align"] == found["distill_sim"] == 0


def test_batch_norm_over_all_clips_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs, x = MaskedBatchNorm(4), nn.BatchNorm1d(4), torch.randn(3, 4, 5)
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("mask", "equal"), [("zero", True), ("none", False)])
def test_convolutions_and_their_statistics_see_padding_only_as_released(
    mask: Any, equal: bool
) -> None:
    torch.manual_seed(0)
    block, clips = ConvBlock(4, mask=mask), torch.randn(2, 5, 4)
    real = torch.ones(2, 5, dtype=torch.bool)
    wide = torch.cat([clips, torch.ones(2, 3, 4)], dim=1)
    known = torch.cat([real, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    narrow = block(clips, real)
    means = block.norm1.running_mean
    assert means is not None
    once = means.clone()
    padded = block(wide, known)[:, :5]
    assert torch.allclose(narrow, padded, atol=1e-5) == equal
    assert torch.allclose(means, once + 0.9 * once, atol=1e-5) == equal


def test_the_paper_has_its_own_extractor_label_and_saliency() -> None:
    batch = random_batch([6, 4], [3, 2])
    plain = small().eval()
    options: dict[str, Any]
    for options in (
        {"extract_relu": False},
        {"saliency_scale": "width"},
        {"moment_clips": "memory"},
    ):
        other = small(**options).eval()
        assert not torch.allclose(other(batch).saliency, plain(batch).saliency, atol=1e-5)
    cross = small(label="cross_entropy", background_weight=0.1)
    assert cross.losses(batch)["label"] > small().losses(batch)["label"]


def test_losses_of_weight_zero_are_absent_and_their_public_tensors_are_left_alone() -> None:
    model = small(preset="release", align_weight=0.0, sim_weight=0.0)
    batch = random_batch([6, 4], [3, 2])
    assert not {"distill_align", "distill_sim"} & model.losses(batch).keys()
    full = official_state_dict(small(preset="release"), MODELS.get("ld_detr").official)
    bare = official_state_dict(model, MODELS.get("ld_detr").official)
    assert {k: x.shape for k, x in bare.items()} == {k: x.shape for k, x in full.items()}


def test_a_public_checkpoint_of_tvsum_was_trained_on_highlights_alone() -> None:
    model = small(preset="release", heads=8, feedforward=1024)
    public = official_state_dict(model, MODELS.get("ld_detr").official)
    options = {"hidden_dim": 16, "num_convolutional_blocks": 2, "queue_length": 8}
    again = load_official("ld_detr", {"model": public, "opt": options | {"dset_name": "tvsum"}})
    assert again.losses(random_batch([6, 4], [3, 2])).keys() == {"margin", "rank"}


@pytest.mark.parametrize("part", ["t2v_layers", "encoder_layers", "second_layers", "conv_blocks"])
def test_every_part_of_the_fuser_after_the_extractor_can_be_left_out(part: str) -> None:
    whole, without = small(), small(**{part: 0})
    layers = {"t2v_layers": "t2v", "encoder_layers": "first", "second_layers": "second"}
    left_out = f"fuser.{layers.get(part, 'blocks')}."
    assert whole.state_dict().keys() - without.state_dict().keys() == {
        key for key in whole.state_dict() if key.startswith(left_out)
    }
    batch = random_batch([6, 4], [3, 2])
    assert not torch.equal(whole.eval()(batch).spans, without.eval()(batch).spans)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loops", [1, 3])
def test_a_public_file_with_its_options_comes_back(layers: int, loops: int, tmp_path: Path) -> None:
    built_in = {"heads": 8, "feedforward": 1024, "dropout": 0.1, "input_dropout": 0.5}
    model = small(preset="release", decoder_layers=layers, loops=loops, **built_in)
    options = argparse.Namespace(
        hidden_dim=16,
        num_decoder_layers=layers,
        num_decoder_loops=7,
        num_convolutional_blocks=2,
        queue_length=8,
        eos_coef=0.1,
        max_q_l=16,
    )
    file = tmp_path / "model.ckpt"
    public = official_state_dict(model, MODELS.get("ld_detr").official)
    torch.save({"model": public, "opt": options}, file)
    again = load_official("ld_detr", file, **({} if loops == 1 else {"loops": loops}))
    assert again.recipe == model.recipe
    batch = random_batch([6, 4], [3, 2])
    assert torch.equal(again(batch).spans, model.eval()(batch).spans)


def test_a_sample_gives_the_same_beside_others_in_evaluation() -> None:
    model, batch = small().eval(), random_batch([6, 4], [3, 2])
    torch.testing.assert_close(
        model(take(batch, [1])).saliency, model(batch).saliency[1:], atol=1e-5, rtol=1e-5
    )
