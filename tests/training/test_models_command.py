"""`trainer models` shows what is registered, and its sizes are those of built models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trainer_calls import call, good

from models.retrieval import MODELS, PLUGINS, PRESETS, create_model


def test_every_model_and_plugin_is_listed_with_its_options(tmp_path: Path) -> None:
    out = tmp_path / "family.json"
    shown = good("models", "--video-dim", 18, "--text-dim", 12, "--json", out).output
    found = json.loads(out.read_text())
    assert list(found["models"]) == list(MODELS)
    assert list(found["plugins"]) == list(PLUGINS)
    for name, each in found["models"].items():
        assert name in shown
        assert list(each["presets"]) == list(PRESETS)
        assert each["options"].keys() == MODELS.get(name).options.model_fields.keys()
        assert each["paper"]


@pytest.mark.parametrize("name", ["qd_detr", "lmr"])
def test_sizes_are_those_of_built_models(name: str, tmp_path: Path) -> None:
    out = tmp_path / "family.json"
    good("models", "--video-dim", 18, "--text-dim", 12, "--json", out)
    found = json.loads(out.read_text())["models"][name]["parameters"]["paper"]
    model = create_model(
        name, video_dim=18, text_dim=12, preset="paper", side_dims={"narrative": 12}
    )
    assert found == dict.fromkeys(("all", "trained"), sum(x.numel() for x in model.parameters()))


def test_json_on_standard_output_stands_alone() -> None:
    assert "models" in json.loads(good("models", "--json", "-").stdout)


def test_a_width_without_room_for_the_place_of_a_clip_is_refused() -> None:
    assert call("models", "--video-dim", 2).exit_code == 2
