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
from models.retrieval.testing import random_batch
from models.retrieval.types import StepContext

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 32,
    "heads": 4,
    "feedforward": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "dummies": 3,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "llm_width": 32,
    "llm_heads": 4,
    "numbers": "float32",
    "layers": (0, 1),
}
BATCH = random_batch([7, 5, 6], [3, 4, 2], moments=2)


def model(preset: Any = "fixed", **options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    weights = {} if preset == "release" else {"weights": "random"}
    return create_model("llmepet", preset=preset, **(SMALL | weights | options))


@pytest.mark.parametrize("preset", ["fixed", "paper"])
def test_every_enabled_loss_is_in_the_optimised_sum(preset: str) -> None:
    """The public code has weights for its event and position losses, and neither in the sum."""
    built = model(preset).train()
    losses = built.losses(BATCH, StepContext())
    for name, coefficient in (("event", "event_coef"), ("position", "position_coef")):
        assert built.recipe[coefficient] > 0
        assert name in losses
        twice = model(preset, **{coefficient: 2 * built.recipe[coefficient]}).train()
        assert twice.losses(BATCH, StepContext())[name].item() == pytest.approx(
            2 * losses[name].item()
        )
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    table = built.merges[0].get_parameter("table")
    assert table.grad is not None
    for name in ("event", "position"):
        without = model(preset, **{f"{name}_coef": 0.0, "places": "sine_mlp"})
        if name == "event":
            assert name not in without.criterion.terms


def test_a_refiner_stands_before_the_global_token_is_added() -> None:
    names = [type(each).__name__ for each in model().refiners]
    assert names == ["LLMRefiner", "AddGlobal"]
    assert [type(each).__name__ for each in model(weights="none").refiners] == ["AddGlobal"]


def test_the_release_has_neither_loss_and_its_batch_attention() -> None:
    built = model("release").train()
    assert not {"event", "position"} & built.losses(BATCH, StepContext()).keys()
    assert built.recipe["attend"] == "batch"
    assert not built.merges
    without = replace(BATCH, events=None, event_mask=None)
    built.losses(without, StepContext())
    with pytest.raises(UsageError, match="event regulation reads pseudo-events"):
        model().train().losses(without, StepContext())


@torch.no_grad()
def test_the_paper_reads_its_equations_literally() -> None:
    fixed, paper = model(), model("paper")
    assert paper.recipe["event_target"] == "moments"
    assert paper.recipe["position_reduction"] == "sum"
    assert len(fixed.heads) == len(paper.heads) + 1
    losses = paper.losses(BATCH, StepContext())
    assert losses["position"] > fixed.losses(BATCH, StepContext())["position"]


def public(**changes: Any) -> dict[str, Any]:
    options = {
        "hidden_dim": 32,
        "nheads": 4,
        "dim_feedforward": 24,
        "enc_layers": 1,
        "dec_layers": 2,
        "num_dummies": 3,
        "llama_heads": 4,
        "first_layer": 14,
        "n_layers": 16,
        "event_coef": 0.1,
        "pos_coef": 0.1,
    }
    built = model("release")
    with torch.no_grad():
        for name, x in built.state_dict().items():
            if name.startswith("refiners"):
                x.copy_(torch.randn_like(x) / 6)
    weights = official_state_dict(built, MODELS.get("llmepet").official)
    return {"model": weights, "opt": options | changes}


@torch.no_grad()
def test_a_public_checkpoint_is_read_from_a_mapping_and_from_a_file(tmp_path: Path) -> None:
    checkpoint = public()
    found = load_official("llmepet", checkpoint)
    assert found.recipe["layers"] == (14, 15)
    assert found.recipe["llm_width"] == 32
    file = {"model": checkpoint["model"], "opt": argparse.Namespace(**checkpoint["opt"])}
    torch.save(file, tmp_path / "model_best.ckpt")
    again = load_official("llmepet", tmp_path / "model_best.ckpt")
    assert torch.equal(again(BATCH).spans, found(BATCH).spans)


@torch.no_grad()
def test_an_imported_model_holds_the_language_model_of_its_checkpoint() -> None:
    found = load_official("llmepet", public())
    again = create_model(**found.recipe).eval()
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(BATCH).spans, found(BATCH).spans)


def test_a_public_option_that_is_none_is_one_that_was_not_given() -> None:
    checkpoint = public()
    less = {k: x for k, x in checkpoint["opt"].items() if k != "first_layer"}
    said: list[str] = []
    for options in (less, less | {"first_layer": None}):
        with pytest.raises(UsageError) as refused:  # layers 7 to 15, and the file holds two
            load_official("llmepet", {**checkpoint, "opt": options})
        said.append(str(refused.value))
    assert "63 missing" in said[0]  # seven layers of nine tensors
    assert "63 missing" in said[1]


def test_another_number_of_layers_than_the_checkpoint_holds_is_refused() -> None:
    with pytest.raises(UsageError, match=r"9 missing: .*llama\.layers\.2"):
        load_official("llmepet", public(n_layers=17))


def test_a_checkpoint_without_the_refiner_is_refused_with_its_tensors() -> None:
    checkpoint = public()
    weights = {k: x for k, x in checkpoint["model"].items() if "llama" not in k}
    with pytest.raises(UsageError, match=r"missing: .*transformer\.llama_dim_mapper1\.weight"):
        load_official("llmepet", {**checkpoint, "model": weights})
