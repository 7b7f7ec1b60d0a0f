"""`trainer llm-layers`: the small file of a refiner from a LLaMA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.llama_files import layers_file_sha256, read_layers
from models.retrieval import create_model
from tests.models.tiny_llama import hugging_face_folder, meta_folder
from tests.training.trainer_calls import call, good


@pytest.mark.parametrize("make", [hugging_face_folder, meta_folder])
def test_a_refiner_reads_what_the_command_wrote(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    source, out = tmp_path / "llama", tmp_path / "layers.safetensors"
    result = good("llm-layers", make(source), "--layers", "1-2", "--out", out)
    sha = layers_file_sha256(out)
    assert f"sha256 {sha}" in result.output
    assert "2 layers of llama (64 wide, 4 heads, 2 of keys and values)" in result.output
    for number, each in read_layers(out).sums.items():
        assert f"layer {number}: sha256 {each}" in result.output
    options = {"layers_file": str(out), "layers": [1, 2]}
    built = create_model(
        "qd_detr", video_dim=18, text_dim=12, hidden=16, heads=4, plugins={"llm_refiner": options}
    )
    assert built.recipe["plugins"]["llm_refiner"]["layers_sha256"] == sha


def test_a_folder_gets_a_file_that_names_hash_and_layers(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "llama")
    good("llm-layers", source, "--layers", "0,3", "--out", tmp_path, "--dtype", "float32")
    (written,) = tmp_path.glob("llama_layers_*.safetensors")
    assert written.name == f"llama_layers_{layers_file_sha256(written)[:8]}_0,3.safetensors"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--layers", "3-4"], "has 4: 0 to 3"),
        (["--layers", "x"], "no list of layers"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
    ],
)
def test_wrong_wishes_are_refused_and_nothing_is_written(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    source, out = hugging_face_folder(tmp_path / "llama"), tmp_path / "layers.safetensors"
    result = call("llm-layers", source, "--out", out, *arguments)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
    assert not out.exists()
