from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import UsageError
from models.weights import (
    fill_seeded,
    load_strictly,
    own_layout,
    read_checkpoint,
    renaming_layout,
    tensors_sha256,
)

OWN = own_layout("own", "a.weight")
OTHER = renaming_layout(
    "other", "x/weight", lambda name: name.replace("a.", "x/"), ignored=lambda name: name == "lr"
)


def net() -> nn.Module:
    made = nn.Module()
    made.a = nn.Linear(3, 2)
    fill_seeded(made, 1, lambda *_: (0.0, 1.0))
    return made


def load(target: nn.Module, checkpoint: object) -> object:
    return load_strictly(target, checkpoint, (OWN, OTHER), "a small net")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "folder", "mapping"])
def test_a_checkpoint_loads_from_every_container_with_the_same_hash(
    kind: str, tmp_path: Path
) -> None:
    state = {key: value + 1 for key, value in net().state_dict().items()}
    path: object = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "pt":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save({"model_state": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    elif kind == "folder":
        (tmp_path / "weights.folder").mkdir()
        save_file(state, tmp_path / "weights.folder" / "model.safetensors")
    else:
        path = state
    target = net()
    weights = load(target, path)
    assert torch.equal(target.a.weight, state["a.weight"])
    assert weights.kind == "file"  # type: ignore[attr-defined]
    assert weights.sha256 == tensors_sha256(target)  # type: ignore[attr-defined]
    assert weights.sha256 != tensors_sha256(net())  # type: ignore[attr-defined]


def test_another_layout_is_recognised_renamed_and_its_training_state_ignored() -> None:
    target = net()
    weights = load(
        target,
        {"x/weight": torch.ones(2, 3), "x/bias": torch.zeros(2), "lr": torch.tensor(0.1)},
    )
    assert weights.layout == "other"  # type: ignore[attr-defined]
    assert torch.equal(target.a.weight, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": None}, r"missing 1 tensors: a\.bias"),
        ({"c.weight": torch.ones(1)}, r"unexpected 1 tensors: c\.weight"),
        ({"a.bias": torch.ones(5)}, r"a\.bias is \(5,\), expected \(2,\)"),
        ({"a.weight": None}, r"is no checkpoint of a small net.*a\.bias"),
        ({"a.bias": 3}, r"entries that are no tensors: a\.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_tensor(
    change: dict[str, Tensor | None], message: str
) -> None:
    state = {k: v for k, v in (net().state_dict() | change).items() if v is not None}
    target = net()
    before = tensors_sha256(target)
    with pytest.raises(UsageError, match=message):
        load(target, state)
    assert tensors_sha256(target) == before


def test_counters_of_batches_may_be_missing() -> None:
    norm = nn.BatchNorm3d(2)
    state = {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    load_strictly(norm, state, (own_layout("own", "weight"),), "a norm")


def test_a_missing_or_truncated_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UsageError, match=r"neither model\.safetensors nor"):
        read_checkpoint(tmp_path)
    path = tmp_path / "cut.pt"
    torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"cannot be read.*truncated"):
        read_checkpoint(path)


def test_caffe2_pickles_are_read_and_anything_but_arrays_in_them_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c2.pkl"
    array = np.arange(3, dtype=np.float32)
    path.write_bytes(pickle.dumps({"blobs": {"x": array, "epoch": 3}}, protocol=2))
    assert torch.equal(read_checkpoint(path)["x"], torch.arange(3.0))

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harmed"),)

    path.write_bytes(pickle.dumps({"blobs": {"x": Harm()}}))
    with pytest.raises(UsageError, match="mkdir; only numpy arrays and numbers are allowed"):
        read_checkpoint(path)
    assert not (tmp_path / "harmed").exists()


def test_torch_files_with_code_in_them_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_checkpoint(path)


def test_seeded_values_depend_on_name_and_seed_and_on_no_random_state() -> None:
    torch.manual_seed(1)
    first = net()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = nn.Module()
    second.z = nn.Linear(2, 2)  # another module in front
    second.a = nn.Linear(3, 2)
    torch.set_rng_state(state)
    fill_seeded(second, 1, lambda *_: (0.0, 1.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.a.weight, second.a.weight)
    fill_seeded(second, 2, lambda *_: (0.0, 1.0))
    assert not torch.equal(first.a.weight, second.a.weight)
    # The stream is numpy's, so these values hold on every machine and version of torch.
    # Written down from a run; a change means that every random network has changed.
    assert first.a.bias.tolist() == [-0.27657759189605713, 0.5667668581008911]
