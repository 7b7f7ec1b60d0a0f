from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from data.errors import UsageError
from models.backbones import BACKBONES
from models.checkpoints import read_checkpoint
from models.zoo import ZOO, in_hub, is_named, places, resolve


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing downloaded."""
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "STORYLINE_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def put(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.ones(2)}, file)
    return file


@pytest.mark.parametrize("name", ZOO)
def test_every_row_names_a_source_a_licence_and_hashes_of_the_right_length(name: str) -> None:
    entry = ZOO[name]
    assert entry.url.startswith("https://")
    assert entry.licence
    assert entry.licence_url.startswith("https://")
    assert entry.network in {*BACKBONES, "i3d_flow"}
    assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", entry.sha256)
    assert entry.git is None or re.fullmatch(r"[0-9a-f]{40}", entry.git)


def test_hashes_in_the_names_of_publishers_are_those_of_the_table() -> None:
    for entry in ZOO.values():
        if entry.sha256 is not None:
            assert entry.sha256 in entry.url


@pytest.mark.parametrize(
    "where",
    [
        "own/SLOWFAST_8x8_R50.pyth",
        ".cache/storyline/weights/SLOWFAST_8x8_R50.pyth",
        ".cache/torch/hub/checkpoints/SLOWFAST_8x8_R50.pyth",
        ".cache/clip/SLOWFAST_8x8_R50.pyth",
    ],
)
def test_a_name_is_found_in_every_place(
    home: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("STORYLINE_WEIGHTS", f"{home}/nothing:{home}/own")
    name = "zoo:slowfast-r50-8x8-kinetics400-pytorchvideo"
    file = put(home / where)
    assert resolve(name) == file
    assert torch.equal(read_checkpoint(Path(name))["w"], torch.ones(2))


def test_the_folders_that_a_user_names_come_first(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYLINE_WEIGHTS", f"{home}/own")
    put(home / ".cache/storyline/weights/ViT-B-32.pt")
    assert resolve("zoo:clip-vit-b-32-openai") == home / ".cache/storyline/weights/ViT-B-32.pt"
    mine = put(home / "own/ViT-B-32.pt")
    assert resolve("zoo:clip-vit-b-32-openai") == mine
    assert places()[0] == home / "own"


def test_what_is_not_found_says_where_it_was_looked_for_the_licence_and_the_command(
    home: Path,
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve("zoo:vgg16-imagenet")
    text = str(caught.value)
    for part in (
        f"{home}/.cache/storyline/weights",
        f"{home}/.cache/torch/hub/checkpoints",
        "STORYLINE_WEIGHTS",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "licence: not stated for the weights; code BSD-3-Clause",
        "pipeline weights fetch vgg16-imagenet",
    ):
        assert part in text


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zoo:vgg16-imagnet", "unknown weights 'zoo:vgg16-imagnet'; did you mean 'vgg16-imagenet'"),
        ("vgg16-imagenet", "did you mean 'zoo:vgg16-imagenet'"),
        ("nothing.pt", "'nothing.pt' does not exist; give the path"),
        ("openai/clip-vit-base-patch32", "does not exist"),
        ("hf:openai/clip-vit-base-patch32", "not in the local Hugging Face cache"),
        ("hf:no-slash", "names no model; write hf:ORG/NAME"),
        ("hf:../../etc", "names no model"),
    ],
)
def test_a_wrong_name_is_a_sentence(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert message in str(caught.value)


def hub_model(home: Path, *revisions: str, main: str | None = None) -> Path:
    folder = home / ".cache/huggingface/hub/models--org--name"
    for each in revisions:
        put(folder / "snapshots" / each / "pytorch_model.bin")
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


def test_a_model_of_the_hub_is_its_main_snapshot(home: Path) -> None:
    folder = hub_model(home, "aaa", "bbb", main="bbb\n")
    assert resolve("hf:org/name") == folder / "snapshots/bbb"
    assert resolve("org/name") == folder / "snapshots/bbb"
    assert in_hub("org/name")
    assert torch.equal(read_checkpoint("hf:org/name")["w"], torch.ones(2))


def test_of_two_snapshots_without_a_main_none_is_guessed(home: Path) -> None:
    hub_model(home, "aaa", "bbb")
    with pytest.raises(UsageError, match="not in the local Hugging Face cache"):
        resolve("hf:org/name")


def test_a_path_wins_over_a_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_model(home, "aaa", main="aaa")
    monkeypatch.chdir(home)
    put(home / "org/name")
    assert resolve("org/name") == Path("org/name")
    assert not is_named("org/name")


def test_the_file_of_a_folder_with_a_configuration_means_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "pytorch_model.bin")
    put(tmp_path / "other.bin")
    assert resolve(tmp_path / "pytorch_model.bin") == tmp_path / "pytorch_model.bin"
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path / "pytorch_model.bin") == tmp_path
    assert resolve(tmp_path / "other.bin") == tmp_path / "other.bin"
