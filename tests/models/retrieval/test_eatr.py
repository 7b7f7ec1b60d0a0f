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
from models.retrieval.eatr import SlotDecoder, TextGate
from models.retrieval.official import official_state_dict
from models.retrieval.testing import alone, random_batch
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


def small(**options: Any) -> RetrievalModel:
    """With span networks that do not start at zero: there all events are alike."""
    torch.manual_seed(0)
    model = create_model("eatr", **(SMALL | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def public_state(model: RetrievalModel) -> dict[str, torch.Tensor]:
    return official_state_dict(model, MODELS.get("eatr").official)


def event_loss(model: RetrievalModel, batch: Batch) -> float:
    with torch.no_grad():
        return float(model.losses(batch)["event"])


def gate_of(model: RetrievalModel) -> TextGate:
    assert isinstance(model.decoder, SlotDecoder)
    return model.decoder.gate


def test_eatr_of_published_sizes_has_the_published_tensors(shared: Path) -> None:
    listed = (shared / "specs" / "model_keys" / "eatr_keys.txt").read_text()
    public = {
        line.split(" ", 1)[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1])))
        for line in listed.splitlines()
    }
    model = create_model("eatr", video_dim=2818, text_dim=512, preset="release")
    ours = public_state(model)
    assert {key: tuple(x.shape) for key, x in ours.items()} == public
    # 8.97 M with the 8,704 values of txt_position_embed (specs/retrieval_models.md §3)
    count = sum(x.numel() for x in model.parameters()) + 8704
    assert count == pytest.approx(8.97e6, rel=1e-3)


def test_presets_of_eatr_choose_the_switches() -> None:
    fixed, release, paper = small(), small(preset="release"), small(preset="paper")
    switches = ("events", "text_max", "slot_padding", "width_floor")
    assert [fixed.recipe[key] for key in switches] == ["stored", "words", "masked", 1e-3]
    assert [release.recipe[key] for key in switches] == ["released"] * 3 + [0.0]
    assert [paper.recipe[key] for key in switches] == ["online", "words", "masked", 1e-3]
    assert release.decoding == Decoding.released()
    assert fixed.decoding == Decoding()


def test_the_refining_network_is_also_that_of_the_moments() -> None:
    model = small()
    assert isinstance(model.decoder, SlotDecoder)
    assert model.heads[0].span is model.decoder.moment_span
    assert model.heads[2].span is model.decoder.event_span
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(model.state_dict()) - 12


def test_all_events_and_moments_start_in_the_middle() -> None:
    torch.manual_seed(0)
    model = create_model("eatr", **SMALL).eval()
    found = model(random_batch([6, 4], [3, 2]))
    assert torch.equal(found.spans, torch.full_like(found.spans, 0.5))
    assert torch.equal(found.extras["event_spans"], found.spans)


def test_stored_events_are_asked_for_only_in_training() -> None:
    model, batch = small(), random_batch([6, 4], [3, 2], events=0)
    assert model(batch).spans.shape == (2, 10, 2)
    with pytest.raises(UsageError, match=r"data\.events: true.*events=online"):
        model.losses(batch)
    assert small(events="online").losses(batch)["event"].isfinite()


def test_stored_events_are_those_of_the_batch() -> None:
    batch = random_batch([6, 4], [3, 2])
    assert batch.events is not None
    other = replace(batch, events=batch.events.flip(0))
    assert event_loss(small(), batch) != pytest.approx(event_loss(small(), other), abs=1e-4)
    online = small(events="online")
    assert event_loss(online, batch) == event_loss(online, other)


@pytest.mark.parametrize("count", [0, 1, 25])
def test_there_may_be_fewer_events_than_slots_or_more(count: int) -> None:
    batch = random_batch([30, 30], [3, 2], events=max(1, count))
    if count == 0:
        batch = replace(batch, events=torch.zeros(2, 0, 3), event_mask=torch.zeros(2, 0).bool())
    assert (event_loss(small(), batch) > 0) == (count > 0)


@torch.no_grad()
def test_padded_words_join_the_text_only_as_released() -> None:
    words, mask = torch.randn(2, 4, 16), torch.tensor([[True] * 4, [True, True, False, False]])
    padded = words.masked_fill(~mask.unsqueeze(-1), 9.0)
    fixed, released = gate_of(small()), gate_of(small(preset="release"))
    assert torch.equal(fixed.summary(padded, mask)[1], words[1, :2].amax(0))
    assert torch.equal(released.summary(padded, mask)[1], torch.full((16,), 9.0))
    nothing = torch.zeros_like(mask)
    assert not fixed.summary(padded, nothing).any()


def test_a_public_checkpoint_of_eatr_brings_the_contrast_of_its_last_queries() -> None:
    align = {"align": True, "align_weight": 0.02, "align_width": 8}
    model, batch = small(preset="release", **align), random_batch([6, 4], [3, 2])
    weights = official_state_dict(model, MODELS.get("eatr").official)
    public = {
        "hidden_dim": 16,
        "nheads": 4,
        "dim_feedforward": 24,
        "dec_layers": model.recipe["decoder_layers"],
        "enc_layers": model.recipe["encoder_layers"],
        "num_queries": model.recipe["queries"],
        "contrastive_align_loss": True,
        "contrastive_align_loss_coef": 0.02,
        "contrastive_hdim": 8,
    }
    loaded = load_official("eatr", {"model": weights, "opt": public})
    losses = loaded.losses(batch)
    assert {name for name in losses if name.startswith("align")} == {"align"}
    assert losses["align"] == model.eval().losses(batch)["align"]
    public["contrastive_align_loss_coef"] = 0.0
    silent = load_official("eatr", {"model": weights, "opt": public})
    assert "align" not in silent.losses(batch)


def test_one_of_equal_words_has_the_gradient_of_the_greatest_value_as_released() -> None:
    words = torch.ones(1, 4, 16, requires_grad=True)
    gate_of(small(preset="release")).summary(words, torch.ones(1, 4).bool()).sum().backward()
    assert words.grad is not None
    assert torch.equal(words.grad.unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(words.grad.sum(1), torch.ones(1, 16))


@torch.no_grad()
def test_padded_clips_join_the_slots_only_as_released() -> None:
    batch = random_batch([9, 4], [3, 3])
    for padding, same in (("masked", True), ("released", False)):
        model = small(slot_padding=padding).eval()
        beside = model(batch).extras["event_spans"][1]
        by_itself = model(alone(batch, 1)).extras["event_spans"][0]
        assert torch.allclose(beside, by_itself, atol=1e-5) == same


def test_a_closed_anchor_is_survived_with_a_floor() -> None:
    batch = random_batch([6, 4], [3, 2])
    for floor, finite in ((1e-3, True), (0.0, False)):
        model = small(width_floor=floor).eval()
        assert isinstance(model.decoder, SlotDecoder)
        with torch.no_grad():
            model.decoder.event_span.layers[-1].bias[1] = -200.0
            assert bool(model(batch).spans.isfinite().all()) == finite


def test_events_of_the_slots_survive_a_second_run_of_the_decoder() -> None:
    model, batch = small().eval(), random_batch([6, 4], [3, 2])
    memory, decoder = model.trace(batch, passes=False).memory, model.decoder
    assert decoder is not None
    start = decoder.start(memory)
    once = decoder.run(memory, start)
    again = decoder.run(memory, replace(start, content=once.states[-1]))
    assert torch.equal(again.extras["event_states"], once.extras["event_states"])
    assert not torch.allclose(again.states, once.states, atol=1e-3)


def test_a_public_checkpoint_of_eatr_is_read_from_a_file(tmp_path: Path) -> None:
    model, batch = small(preset="release", slot_iterations=2), random_batch([6, 4], [3, 2])
    options: dict[str, Any] = {
        "hidden_dim": 16,
        "nheads": 4,
        "dim_feedforward": 24,
        "num_slot_iter": 2,
    }
    file = tmp_path / "model.ckpt"
    torch.save({"model": public_state(model), "opt": argparse.Namespace(**options)}, file)
    loaded = load_official("eatr", file)
    with torch.no_grad():
        assert torch.equal(loaded(batch).spans, model.eval()(batch).spans)
    options["query_dim"] = 4
    with pytest.raises(UsageError, match="query_dim=4"):
        load_official("eatr", {"model": public_state(model), "opt": options})


def test_the_training_step_of_eatr_is_one_graph() -> None:
    model = small(events="online", queries=6, decoder_layers=1)
    batch = random_batch([6, 4], [3, 2])
    compiled = torch.compile(lambda given: model.losses(given), backend="eager", fullgraph=True)
    plain, traced = model.losses(batch), compiled(batch)
    assert plain.keys() == traced.keys()
    assert all(torch.equal(plain[key], traced[key]) for key in plain)
