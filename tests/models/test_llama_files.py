"""Layers of a LLaMA from both public layouts, as the small file of a refiner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import UsageError
from models.llama_files import (
    NORM,
    extract_layers,
    layers_bytes,
    layers_file_sha256,
    meta_name,
    name_of_layers_file,
    read_layers,
    tensor_shapes,
)
from tests.models.tiny_llama import HEADS, KV_HEADS, WIDTH, hugging_face_folder, meta_folder
from training.llm_layers_command import numbers_of


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hugging_face_folder(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return meta_folder(tmp_path_factory.mktemp("meta"))


def test_both_layouts_give_the_same_layers(hf: Path, meta: Path) -> None:
    a = extract_layers(hf, [1, 2], dtype="float32")
    b = extract_layers(meta, [1, 2], dtype="float32")
    assert a.spec == b.spec
    assert (a.spec.width, a.spec.heads, a.spec.kv_heads) == (WIDTH, HEADS, KV_HEADS)
    assert a.spec.rope_theta == 5000.0
    assert a.sums == b.sums
    assert a.sha256 == b.sha256
    assert list(a.layers) == [1, 2]
    assert all(torch.equal(a.layers[2][key], b.layers[2][key]) for key in tensor_shapes(a.spec))


def test_shards_and_a_bin_file_are_read(hf: Path, tmp_path: Path) -> None:
    assert (hf / "model.safetensors.index.json").is_file()
    index = json.loads((hf / "model.safetensors.index.json").read_text())["weight_map"]
    whole: dict[str, Tensor] = {}
    for shard in set(index.values()):
        whole |= load_file(hf / shard)
    torch.save(whole, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((hf / "config.json").read_text())
    expected = extract_layers(hf, [0, 3])
    assert extract_layers(tmp_path, [0, 3]).sha256 == expected.sha256


def test_a_file_comes_back_whole_and_in_part(hf: Path, tmp_path: Path) -> None:
    made = extract_layers(hf, [1, 2, 3])
    path = tmp_path / name_of_layers_file(made)
    path.write_bytes(layers_bytes(made))
    assert path.name == f"llama_layers_{made.sha256[:8]}_1-3.safetensors"
    back = read_layers(path)
    assert back.sha256 == layers_file_sha256(path) == made.sha256
    assert list(read_layers(path, [2]).layers) == [2]
    assert back.layers[1]["q"].dtype == torch.bfloat16
    assert torch.equal(back.norm, made.norm)
    assert {key.split(".")[-1] for key in load_file(path)} == {*tensor_shapes(made.spec), NORM}


def test_tensors_that_are_missing_are_named(hf: Path, tmp_path: Path) -> None:
    index = json.loads((hf / "model.safetensors.index.json").read_text())["weight_map"]
    whole: dict[str, Tensor] = {}
    for shard in set(index.values()):
        whole |= load_file(hf / shard)
    del whole["model.layers.2.mlp.up_proj.weight"]
    save_file(whole, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((hf / "config.json").read_text())
    with pytest.raises(UsageError, match=r"lacks 1 of 19 .*layers\.2\.mlp\.up_proj.*be random"):
        extract_layers(tmp_path, [1, 2])
    extract_layers(tmp_path, [1, 3])  # what is not asked for is not missed


@pytest.mark.parametrize("layers", [[4], [-1], [], [2, 1], [1, 1]])
def test_layers_that_do_not_exist_are_refused(hf: Path, layers: list[int]) -> None:
    with pytest.raises(UsageError, match=r"zero-based .* has 4: 0 to 3"):
        extract_layers(hf, layers)


def test_settings_of_another_model_are_refused(hf: Path, tmp_path: Path) -> None:
    for file in hf.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings: dict[str, Any] = json.loads((hf / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"intermediate_size": 8}))
    with pytest.raises(UsageError, match=r"gate_proj.*should be \(8, 64\)"):
        extract_layers(tmp_path, [0])
    # heads that are not the width's equal shares (Gemma, Mistral-Nemo) are not computed here
    (tmp_path / "config.json").write_text(json.dumps(settings | {"head_dim": 32}))
    with pytest.raises(UsageError, match=r"is not of a LLaMA.*head_dim 32 is not hidden_size"):
        extract_layers(tmp_path, [0])
    (tmp_path / "config.json").write_text(json.dumps(settings) + " " * (1 << 20))
    with pytest.raises(UsageError, match=r"the settings .* larger than the 1,048,576 bytes"):
        extract_layers(tmp_path, [0])
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        extract_layers(tmp_path, [0])


def test_a_meta_checkpoint_in_several_parts_is_refused(meta: Path, tmp_path: Path) -> None:
    for file in meta.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "consolidated.01.pth").touch()
    with pytest.raises(UsageError, match="several devices"):
        extract_layers(tmp_path, [0])


def test_settings_of_older_files_are_read(hf: Path, tmp_path: Path) -> None:
    for file in hf.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings: dict[str, Any] = json.loads((hf / "config.json").read_text())
    del settings["rope_parameters"]
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    (tmp_path / "config.json").write_text(json.dumps(settings | old))
    spec = extract_layers(tmp_path, [0]).spec
    assert (spec.rope_theta, spec.rope_kind) == (5e5, "llama3")


def test_metas_scaled_rotary_positions_are_noticed(meta: Path, tmp_path: Path) -> None:
    """`use_scaled_rope` of Llama 3.1's params.json."""
    for file in meta.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings: dict[str, Any] = json.loads((meta / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps(settings | {"use_scaled_rope": True}))
    assert extract_layers(tmp_path, [0]).spec.rope_kind == "scaled"
    assert extract_layers(meta, [0]).spec.rope_kind == "default"


def test_what_is_not_finite_is_refused(meta: Path, tmp_path: Path) -> None:
    state = torch.load(meta / "consolidated.00.pth", weights_only=True)
    state[f"layers.1.{meta_name('down')}"][0, 0] = torch.inf
    torch.save(state, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text((meta / "params.json").read_text())
    with pytest.raises(UsageError, match="not finite"):
        extract_layers(tmp_path, [1])


def test_a_changed_file_is_damaged(hf: Path, tmp_path: Path) -> None:
    whole = layers_bytes(extract_layers(hf, [1, 2]))
    # layer 1 comes first after the header, the last norm at the end
    places = ((8 + int.from_bytes(whole[:8], "little"), "of 1;"), (-3, "of the whole;"))
    for place, named in places:
        content = bytearray(whole)
        content[place] ^= 1
        (tmp_path / "layers.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match=f"is damaged: other checksums {named}"):
            read_layers(tmp_path / "layers.safetensors")


def test_a_part_of_no_layers_is_refused(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "layers.safetensors").write_bytes(layers_bytes(extract_layers(hf, [1, 2])))
    with pytest.raises(UsageError, match="holds layers 1-2, and asked for are none"):
        read_layers(tmp_path / "layers.safetensors", [])


def test_other_files_are_no_layers(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"no file of LLaMA layers.*trainer llm-layers"):
        read_layers(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        read_layers(tmp_path / "text.safetensors")
    with pytest.raises(UsageError, match="no file of LLaMA layers at"):
        read_layers(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "numbers"), [("13-16", [13, 14, 15, 16]), ("8, 31", [8, 31]), ("7", [7])]
)
def test_numbers_of_layers_are_read(text: str, numbers: list[int]) -> None:
    assert numbers_of(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "-1", "3-", "5-2"])
def test_what_names_no_layers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--layers"):
        numbers_of(text)
