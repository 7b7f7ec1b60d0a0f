from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import models.clip
from data.errors import UsageError
from models.backbones import create

SMALL = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}
"""Dimensions of the golden `clip_small`."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.clip, "_TINY", SMALL)


def filled(goldens: Any) -> dict[str, torch.Tensor]:
    meta = goldens.meta("clip_small")
    shapes = {name: shape for name, shape, _ in meta["keys"]}
    weights: dict[str, torch.Tensor] = goldens.weights(shapes, meta["weights"]["gain"])
    return weights


def in_hugging_face_layout(
    state: dict[str, torch.Tensor], key_map: list[list[str]]
) -> dict[str, torch.Tensor]:
    made = {}
    for theirs, own, how in key_map:
        value = state[own]
        if how.startswith("rows"):
            value = value.chunk(3)[int(how[5])]
        made[theirs] = value.T.contiguous() if how == "transpose" else value.contiguous()
    return made


@pytest.mark.usefixtures("small")
def test_image_features_equal_the_public_ones_on_filled_weights(goldens: Any) -> None:
    backbone = create("clip", filled(goldens), model="tiny")
    frames = np.stack([goldens.frames(name, 1, 64, 64)[0] for name in ("pub_a", "pub_b")])
    want = goldens.outputs("clip_small")["image_feature"]
    np.testing.assert_allclose(backbone.encode(frames), want, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("small")
def test_hugging_face_weights_give_the_same_network(goldens: Any) -> None:
    state = filled(goldens)
    theirs = in_hugging_face_layout(state, goldens.meta("clip_small")["hf_key_map"])
    loaded = create("clip", theirs, model="tiny")
    assert loaded.weights.layout == "Hugging Face"
    assert loaded.weights.sha256 == create("clip", state, model="tiny").weights.sha256
    del theirs["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(UsageError, match=r"missing 1 .*resblocks\.1\.attn\.in_proj_bias"):
        create("clip", theirs, model="tiny")


@pytest.mark.usefixtures("small")
def test_weights_of_openai_in_a_network_with_plain_gelu_are_refused(
    goldens: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models.clip, "_TINY", SMALL | {"quick_gelu": False})
    facts = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    with pytest.raises(UsageError, match="trained with QuickGELU, model 'tiny' computes GELU"):
        create("clip", filled(goldens) | facts, model="tiny")
    save_file(filled(goldens), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "gelu"}}))
    create("clip", tmp_path, model="tiny")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}}))
    with pytest.raises(UsageError, match="use model 'tiny-quickgelu'"):
        create("clip", tmp_path, model="tiny")


@pytest.mark.usefixtures("small")
def test_the_three_facts_in_openais_files_are_no_unexpected_tensors(goldens: Any) -> None:
    facts = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    assert create("clip", filled(goldens) | facts, model="tiny").weights.kind == "file"


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'ViT-B-32"):
        create("clip", model="ViT-B-23")


def test_one_frame_per_clip_is_taken_from_its_centre() -> None:
    backbone = create("clip", preset="tiny", calibrated=False)
    # ffmpeg's fps=1/2 looks up output frame i at (i + 1/2) * 2 s.
    assert backbone.clip_times(np.array([0.0, 2.0]), 2.0).tolist() == [[1.0], [3.0]]


def test_the_default_is_the_published_architecture_with_512_dimensions() -> None:
    net = models.clip._network(models.clip.DEFAULT_MODEL)
    assert sum(each.numel() for each in net.parameters()) == 151_277_313  # specs §2.1
    assert net.visual.output_dim == 512
    assert any(type(each).__name__ == "QuickGELU" for each in net.modules())
