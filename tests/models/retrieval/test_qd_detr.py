from __future__ import annotations

import math
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
from models.retrieval.parts.attention import attend
from models.retrieval.parts.negatives import other_video
from models.retrieval.parts.projection import clip_position
from models.retrieval.testing import random_batch, take
from models.retrieval.types import StepContext

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
}


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("qd_detr", **(SMALL | options))


def test_published_sizes_have_the_published_tensors(shared: Path) -> None:
    listed = (shared / "specs" / "model_keys" / "qd_keys.txt").read_text()
    public = {
        line.split(" ", 1)[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1])))
        for line in listed.splitlines()
    }
    model = create_model("qd_detr", video_dim=2818, text_dim=512, preset="release")
    ours = official_state_dict(model, MODELS.get("qd_detr").official)
    assert {key: tuple(x.shape) for key, x in ours.items()} == public
    # 7.59 M with the 8,704 values of txt_position_embed (specs/retrieval_models.md §3)
    assert sum(x.numel() for x in ours.values()) == pytest.approx(7.59e6, rel=1e-3)


def test_presets_choose_the_switches() -> None:
    fixed, release = small(), small(preset="release")
    assert release.recipe["t2v_mask"] == "released"
    assert fixed.recipe["t2v_mask"] == "words"
    assert release.decoding == Decoding.released()
    assert fixed.decoding == Decoding()
    assert small(preset="paper").recipe["negatives"] == "roll"


@torch.no_grad()
def test_released_text_mask_lets_other_samples_hide_words() -> None:
    batch = random_batch([8, 3, 5], [6, 2, 4])
    for preset, depends in (("release", True), ("fixed", False)):
        model = small(preset=preset).eval()
        by_itself = model(take(batch, [0])).spans
        assert torch.allclose(model(batch).spans[:1], by_itself, atol=1e-5) != depends


def test_wrong_text_comes_from_the_next_sample_of_another_video() -> None:
    partner, found = other_video(torch.tensor([7, 7, 9, 7]))
    assert partner.tolist() == [2, 2, 3, 2]
    assert found.all()
    assert not other_video(torch.tensor([7, 7]))[1].any()
    assert not other_video(torch.tensor([7]))[1].any()


def test_a_sample_without_a_wrong_text_is_left_out_of_the_negative_losses() -> None:
    batch = random_batch([5, 5], [3, 3])
    batch = replace(batch, video_ids=torch.zeros(2, dtype=torch.int64))
    assert small().losses(batch, StepContext())["negative_pair"] == 0
    assert small(negatives="roll").losses(batch, StepContext())["negative_pair"] > 0


@torch.no_grad()
def test_one_larger_batch_gives_the_negative_pass_what_a_pass_of_its_own_does() -> None:
    batch, model = random_batch([6, 4], [3, 2]), small(negatives="roll").eval()
    together = model.trace(batch, passes=True).predictions.extras["saliency_negative"]
    model.fuser.mixes_samples = True
    apart = model.trace(batch, passes=True).predictions.extras["saliency_negative"]
    torch.testing.assert_close(together, apart)
    rolled = model(
        replace(batch, text=batch.text.roll(-1, 0), text_mask=batch.text_mask.roll(-1, 0))
    )
    mask = batch.video_mask
    torch.testing.assert_close(together[mask], rolled.saliency[mask])


@torch.no_grad()
def test_a_wrong_text_keeps_its_own_places_unless_released() -> None:
    batch = random_batch([6, 4], [3, 3])
    swapped = replace(batch, text=batch.text.flip(0), text_mask=batch.text_mask.flip(0))
    for places, equal in (("own", True), ("right", False)):
        model = small(text_position="learned", negative_places=places).eval()
        found = model.trace(batch, passes=True).predictions.extras["saliency_negative"]
        assert torch.allclose(found, model(swapped).saliency, atol=1e-5) == equal


def test_a_public_checkpoint_of_a_highlight_set_trains_by_saliency_alone() -> None:
    weights = official_state_dict(small(preset="release"), MODELS.get("qd_detr").official)
    public = {"hidden_dim": 16, "nheads": 4, "dim_feedforward": 24, "dset_name": "tvsum"}
    model = load_official("qd_detr", {"model": weights, "opt": public})
    assert set(model.criterion.terms) == {"margin", "rank", "negative_pair"}


def test_passes_run_in_training_and_not_in_prediction() -> None:
    model, batch = small(), random_batch([6, 4], [3, 2])
    assert "saliency_negative" in model.train()(batch).extras
    assert "saliency_negative" not in model.eval()(batch).extras


def test_closed_anchors_are_survived_in_fixed_and_not_in_release() -> None:
    batch = random_batch([6, 4], [3, 2])
    for preset, finite in (("fixed", True), ("release", False)):
        model = small(preset=preset)
        assert model.decoder is not None
        with torch.no_grad():
            model.decoder.init.anchors.weight[:, 1] = -200.0
        found = model(batch)
        assert bool(found.spans.isfinite().all()) == finite
        if finite:
            torch.stack(list(model.losses(batch).values())).sum().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_refinement_starts_as_the_identity_in_fixed() -> None:
    batch = random_batch([6], [3])
    for preset, still in (("fixed", True), ("release", False)):
        decoded = small(preset=preset).trace(batch, passes=False).decoded
        assert decoded is not None
        assert decoded.references is not None
        first, second = decoded.references
        assert torch.allclose(first, second, atol=1e-6) == still


def test_weights_of_the_losses_are_those_of_the_options() -> None:
    batch = random_batch([6, 4], [3, 2])
    plain, heavy = small().losses(batch), small(saliency_weight=3.0, span_weight=0.0).losses(batch)
    assert "span" not in heavy
    for name in ("margin", "rank", "negative_pair"):
        torch.testing.assert_close(heavy[name], 3 * plain[name])


def test_earlier_layers_are_trained_unless_asked_not_to() -> None:
    batch = random_batch([6, 4], [3, 2])
    assert {"span_0", "giou_0", "label_0"} <= small().losses(batch).keys()
    assert "span_0" not in small(aux_loss=False).losses(batch)
    assert {"span_0", "span_1"} <= small(decoder_layers=3).losses(batch).keys()


def test_one_decoder_layer_has_nothing_to_refine() -> None:
    model = small(decoder_layers=1, preset="release")
    public = official_state_dict(model, MODELS.get("qd_detr").official)
    assert public["transformer.decoder.bbox_embed.layers.2.weight"].shape == (2, 16)
    assert not model(random_batch([6], [3])).layers


def test_learned_word_places_are_the_public_ones() -> None:
    model = small(text_position="learned", preset="release", max_words=9)
    layout = MODELS.get("qd_detr").official
    public = official_state_dict(model, layout)
    assert layout.unused(model.recipe) == {}
    assert public["txt_position_embed.position_embeddings.weight"].shape == (9, 16)


def test_more_words_than_places_are_refused() -> None:
    with pytest.raises(UsageError, match="5 words and the model's table of places 4"):
        small(text_position="learned", max_words=4)(random_batch([6], [5]))


def test_the_last_clip_of_every_video_is_at_two_pi() -> None:
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    code = clip_position(mask, 8)
    torch.testing.assert_close(code[0, 3], code[1, 1], atol=1e-5, rtol=0)
    expected = [math.sin(math.pi), math.cos(math.pi)]
    assert code[0, 1, :2].tolist() == pytest.approx(expected, abs=1e-4)


def test_attention_equals_torchs_and_is_zero_where_nothing_may_be_seen() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    allowed = torch.tensor([[True] * 4 + [False], [False] * 5])
    out = attend(x, y, y, heads=2, allowed=allowed)
    layer = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
        layer.out_proj.weight.copy_(torch.eye(8))
    expected, _ = layer(x[:1], y[:1], y[:1], key_padding_mask=~allowed[:1])
    torch.testing.assert_close(out[:1], expected)
    assert (out[1] == 0).all()


def test_the_training_step_is_one_graph() -> None:
    model, batch = small(), random_batch([6, 4], [3, 2], moments=2)
    compiled = torch.compile(lambda given: model.losses(given), backend="eager", fullgraph=True)
    plain, traced = model.losses(batch), compiled(batch)
    assert plain.keys() == traced.keys()
    assert all(torch.equal(plain[key], traced[key]) for key in plain)
