"""Checkpoints: every loader refuses code, bombs and claims, with a sentence and without harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.errors import UsageError
from models.retrieval.public_file import read_checkpoint as read_official
from models.safe_load import load_plain
from models.weights import read_checkpoint
from training.checkpoint import load_checkpoint

Load = Callable[[Path], Any]

LOADERS: dict[str, Load] = {
    "backbones": read_checkpoint,
    "public retrieval models": read_official,
    "our trainer": load_checkpoint,
}


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _zip(path: Path, harm: Harm) -> None:
    torch.save({"format": 1, "model": {"w": torch.zeros(2)}, "opt": harm}, path)


def _legacy(path: Path, harm: Harm) -> None:
    torch.save({"format": 1, "model": harm}, path, _use_new_zipfile_serialization=False)


def _bare_pickle(path: Path, harm: Harm) -> None:
    path.write_bytes(pickle.dumps({"model": harm}))


def _tar(path: Path, harm: Harm) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(harm)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _program(path: Path, harm: Harm) -> None:
    del harm
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}))
        archive.writestr("m/constants.pkl", pickle.dumps(()))
        archive.writestr("m/code/__torch__.py", "import os")


def _object_array(path: Path, harm: Harm) -> None:
    torch.save({"format": 1, "model": np.array([harm], dtype=object)}, path)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("make", [_zip, _legacy, _bare_pickle, _tar, _program, _object_array])
def test_a_checkpoint_with_code_in_it_is_refused_and_runs_nothing(
    loader: str, make: Callable[[Path, Harm], None], tmp_path: Path
) -> None:
    harm = Harm(tmp_path / "harmed")
    make(tmp_path / "evil.pt", harm)
    with pytest.raises(
        UsageError, match=r"evil\.pt' (cannot be read safely|is refused: the pickle asks for)"
    ) as caught:
        LOADERS[loader](tmp_path / "evil.pt")
    assert not harm.folder.exists()
    assert "weights_only" not in str(caught.value)  # torch advises to switch it off
    assert "\n" not in str(caught.value)


def test_a_program_is_called_one(tmp_path: Path) -> None:
    _program(tmp_path / "x.pt", Harm(tmp_path))
    with pytest.raises(UsageError, match="it is a TorchScript program, not a file of tensors; use"):
        load_plain(tmp_path / "x.pt")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(25_000_000)}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert bomb.stat().st_size < 200_000
    with pytest.raises(UsageError, match=r"a compressed archive of 100,0.*save never writes"):
        load_plain(bomb)


def test_a_compressed_archive_that_saves_nothing_is_refused_too(tmp_path: Path) -> None:
    torch.save({"w": torch.rand(64)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        packed.writestr(zipfile.ZipInfo("archive/more"), bytes(4096))  # stored
    with pytest.raises(UsageError, match=r"which torch\.save never writes"):
        load_plain(tmp_path / "packed.pt")


def test_an_archive_whose_members_claim_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(64)}, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    entry = content.index(b"PK\1\2")  # the first of the central directory; its size is at 24
    struct.pack_into("<I", content, entry + 24, 1 << 30)
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UsageError, match=r"archive of 1,073,7.* bytes, which torch.save never"):
        load_plain(tmp_path / "x.pt")


def test_options_are_looked_into_as_mappings_are(tmp_path: Path) -> None:
    claim = Namespace(layers=[Namespace(w=torch.zeros(1).expand(10**12))])
    torch.save({"opt": claim}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"shape \(1000000000000,\) claims more numbers"):
        load_plain(tmp_path / "x.pt", also=[Namespace])


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="a tensor that is not plain numbers"):
        load_plain(tmp_path / "x.pt")


def test_a_tensor_that_repeats_one_number_a_trillion_times_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"shape \(1000000000000,\) claims more numbers"):
        load_plain(tmp_path / "x.pt")


def test_a_tensor_without_numbers_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.empty(10**12, device="meta")}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="a tensor that is not plain numbers"):
        load_plain(tmp_path / "x.pt")


def test_a_checkpoint_whose_values_refer_to_themselves_ends(tmp_path: Path) -> None:
    state: dict[str, Any] = {"w": torch.ones(2)}
    state["self"] = state
    torch.save(state, tmp_path / "x.pt")
    assert torch.equal(load_plain(tmp_path / "x.pt")["w"], torch.ones(2))


def test_shared_tensors_and_the_old_format_still_load(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    state = {"a": whole, "b": whole[2:4], "epoch": 3}
    for name, new in (("new.pt", True), ("old.pt", False)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=new)
        found = load_plain(tmp_path / name)
        assert torch.equal(found["b"], whole[2:4])
        assert found["epoch"] == 3


@pytest.mark.parametrize("size", [1 << 40, 1 << 62])
def test_a_safetensors_header_of_any_length_is_refused(size: int, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", size) + content[8:])
    with pytest.raises(UsageError, match=r"x\.safetensors' cannot be read"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {"model": 3, "opt": {}},
        {"model": {"w": "x"}, "opt": {}},
        {"model": {3: torch.zeros(1)}, "opt": {}},
        {"model": {"w": torch.zeros(1)}, "opt": 7},
    ],
)
def test_a_public_checkpoint_of_other_things_is_a_sentence(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="holds tensors by name in 'model' and options in 'opt'"):
        read_official(tmp_path / "x.ckpt")


def test_a_pipe_in_place_of_a_checkpoint_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    for load in (load_plain, load_checkpoint):
        with pytest.raises(UsageError, match="is a pipe, not a file"):
            load(tmp_path / "x.pt")
