"""Every wrong checkpoint is a sentence that says what it is and what was expected."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from data.errors import UsageError
from models.backbones import create
from models.backbones.base import Backbone
from models.backbones.slowfast import caffe2_name
from models.layouts import LAYOUTS, recognised

TINY = {"preset": "tiny"}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """Weights of narrow networks."""
    made = {}
    for name in ("clip", "slowfast", "i3d"):
        made[name] = dict(create(name, **TINY, calibrated=False).net.state_dict())
    return made


def refused(name: str, checkpoint: Any) -> str:
    made: list[Backbone] = []
    with pytest.raises(UsageError) as caught:
        made.append(create(name, checkpoint, preset="tiny"))
    assert not made
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_network_is_called_by_its_name(
    states: dict[str, State], tmp_path: Path
) -> None:
    torch.save(states["i3d"], tmp_path / "rgb_imagenet.pt")
    text = refused("slowfast", tmp_path / "rgb_imagenet.pt")
    assert "'rgb_imagenet.pt' is no checkpoint of slowfast" in text
    assert "it is an I3D in piergiaj's layout, which 'i3d' reads; expected" in text
    torch.save({"model_state": states["slowfast"]}, tmp_path / "sf.pyth")
    assert "a SlowFast in PySlowFast's layout, which 'slowfast'" in refused(
        "i3d", tmp_path / "sf.pyth"
    )


def test_every_layout_that_a_backbone_reads_is_recognised(states: dict[str, State]) -> None:
    found = {name: recognised(state) for name, state in states.items() if name != "clip"}
    assert {name: each.give_to for name, each in found.items() if each} == {
        "slowfast": "slowfast",
        "i3d": "i3d",
    }
    for each in LAYOUTS:
        first = recognised(each.probes)
        assert first is each


def test_tensors_of_nobody_are_named(states: dict[str, State]) -> None:
    del states
    assert "its tensors are called a, b; known layouts" in refused(
        "i3d", {"a": torch.ones(1), "b": torch.ones(1)}
    )


def page(path: Path) -> None:
    path.write_text("\n <!DOCTYPE html><html><title>Quota exceeded</title></html>")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 50000000\n")


def empty(path: Path) -> None:
    path.touch()


def text_file(path: Path) -> None:
    path.write_text("Not Found")


def cut(path: Path) -> None:
    torch.save({"w": torch.ones(50_000)}, path)
    path.write_bytes(path.read_bytes()[:100_000])


def cut_old(path: Path) -> None:
    torch.save({"w": torch.ones(50_000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:100_000])


def cut_safe(path: Path) -> None:
    file = path.with_suffix(".safetensors")
    save_file({"w": torch.ones(50_000)}, file)
    file.write_bytes(file.read_bytes()[:100_000])
    file.rename(path)


def listed(path: Path) -> None:
    torch.save([torch.ones(2)], path)


def optimiser(path: Path) -> None:
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, path)


def whole_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def answer(path: Path) -> None:
    path.write_text('\ufeff{"error": "not found"}\n')


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pt", b"weights")


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def evil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Runs()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (page, "is a web page, not weights"),
        (pointer, "is a pointer of git-lfs, not weights; run `git lfs pull`"),
        (empty, "is empty (0 bytes)"),
        (text_file, "is text, not weights; it begins with '"),
        (answer, 'is text, not weights; it begins with \'{"error": "not found"}\''),
        (zipped, "is an archive of other files (w.pt); unpack it first"),
        (evil_pickle, "the pickle asks for posix.system"),
        (cut, "truncated, or of another kind"),
        (cut_old, "truncated or damaged"),
        (listed, "holds a list, expected a table of tensors"),
        (optimiser, "holds the state of an optimiser and no network; expected the file"),
        (whole_module, "torch.nn.modules.linear.Linear, which is more than plain tensors"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth"])
def test_what_a_download_or_a_trainer_leaves_instead_of_weights_is_a_sentence(
    tmp_path: Path, make: Callable[[Path], None], message: str, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    make(path)
    text = refused("i3d", path)
    assert message in text
    assert not Path("ran").exists()
    assert "weights" in text


@pytest.mark.parametrize("make", [page, pointer, empty])
@pytest.mark.parametrize("suffix", [".pkl", ".safetensors", ".pt"])
def test_they_are_told_whatever_the_file_is_called(
    tmp_path: Path, make: Callable[[Path], None], suffix: str
) -> None:
    make(tmp_path / f"weights{suffix}")
    assert ", not weights" in (text := refused("i3d", tmp_path / f"weights{suffix}")) or (
        "is empty" in text
    )


def test_a_truncated_safetensors_file_is_a_sentence(tmp_path: Path) -> None:
    cut_safe(tmp_path / "w.safetensors")
    assert "cannot be read" in refused("i3d", tmp_path / "w.safetensors")


def containers(state: State) -> Iterator[Any]:
    yield {f"module.{key}": value for key, value in state.items()}
    yield {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3}
    yield {"model": {"model_state": {f"module.{k}": v for k, v in state.items()}}, "cfg": "x"}
    yield {"model_state_dict": {f"_orig_mod.module.{k}": v for k, v in state.items()}}


def test_wrappers_and_nested_containers_are_looked_into(
    states: dict[str, State], tmp_path: Path
) -> None:
    want = create("i3d", states["i3d"], **TINY).weights.sha256
    for index, each in enumerate(containers(states["i3d"])):
        torch.save(each, tmp_path / f"{index}.pt")
        assert create("i3d", tmp_path / f"{index}.pt", **TINY).weights.sha256 == want


def as_numpy(state: State, order: str = "<") -> dict[str, Any]:
    """Read-only arrays, in either order of bytes."""
    arrays = {key: np.asarray(value.numpy()) for key, value in state.items()}
    arrays = {key: each.astype(each.dtype.newbyteorder(order)) for key, each in arrays.items()}
    for each in arrays.values():
        each.setflags(write=False)
    return arrays


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wrapped", ["", "model_state", "blobs"])
def test_arrays_of_numpy_are_tensors_too(
    states: dict[str, State], order: str, wrapped: str
) -> None:
    arrays = as_numpy(states["slowfast"], order)
    given = {wrapped: arrays} if wrapped else arrays
    want = create("slowfast", states["slowfast"], **TINY).weights.sha256
    assert create("slowfast", given, **TINY).weights.sha256 == want


def test_arrays_in_memory_are_not_shared_with_the_network(states: dict[str, State]) -> None:
    arrays = {key: value.numpy().copy() for key, value in states["i3d"].items()}
    backbone = create("i3d", arrays, **TINY)
    for each in arrays.values():
        each[...] = 0
    assert float(backbone.net.state_dict()["Mixed_3b.b1a.conv3d.weight"].abs().max()) > 0


def test_a_file_is_read_by_what_it_is_whatever_it_is_called(
    states: dict[str, State], tmp_path: Path
) -> None:
    want = create("i3d", states["i3d"], **TINY).weights.sha256
    for name in ("w.pt", "w.bin", "w.pkl", "w"):
        save_file(states["i3d"], tmp_path / name)
        assert create("i3d", tmp_path / name, **TINY).weights.sha256 == want
    torch.save(states["i3d"], tmp_path / "torch.pkl")
    assert create("i3d", tmp_path / "torch.pkl", **TINY).weights.sha256 == want
    own = states["slowfast"]
    blobs = {caffe2_name(key): value.numpy() for key, value in own.items() if caffe2_name(key)}
    (tmp_path / "caffe2.pyth").write_bytes(pickle.dumps({"blobs": blobs}, 2))
    caffe2 = create("slowfast", tmp_path / "caffe2.pyth", **TINY).weights
    assert (caffe2.layout, caffe2.stored) == ("Caffe2", "float32")
    assert caffe2.sha256 == create("slowfast", own, **TINY).weights.sha256


@pytest.mark.parametrize("given", [3, b"w.pt", ["w.pt"], ""])
def test_what_is_no_checkpoint_at_all_is_a_sentence(given: Any) -> None:
    assert "is no checkpoint: expected a path, a name" in refused("i3d", given)


def test_a_wrong_file_for_clip_is_called_by_its_name(
    states: dict[str, State], tmp_path: Path
) -> None:
    torch.save(states["i3d"], tmp_path / "rgb.pt")
    assert refused("clip", tmp_path / "rgb.pt").startswith("'rgb.pt' is no checkpoint of CLIP")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: each.to_sparse(), "without plain numbers"),
        (lambda each: each.to("meta"), "without plain numbers"),
        (lambda each: each[0, 0, 0, 0, 0], r"is (), expected"),
    ],
)
def test_tensors_that_cannot_be_computed_with_are_named(
    states: dict[str, State], change: Callable[[Tensor], Tensor], message: str
) -> None:
    state = dict(create("i3d", **TINY, classes=400, calibrated=False).net.state_dict())
    name = "logits.conv3d.weight"
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        create("i3d", state | {name: change(state[name])}, preset="tiny", classes=400)
    assert name in str(caught.value)


def test_a_variance_below_zero_is_named(states: dict[str, State]) -> None:
    name = "Mixed_3b.b1a.bn.running_var"
    broken = states["i3d"] | {name: -torch.ones_like(states["i3d"][name])}
    assert f"1 tensors with a variance below 0: {name}" in refused("i3d", broken)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(states: dict[str, State], bad: float) -> None:
    name = "Mixed_3b.b1a.conv3d.weight"
    broken = states["i3d"] | {name: torch.full_like(states["i3d"][name], bad)}
    assert f"1 tensors not finite (NaN or infinity): {name}" in refused("i3d", broken)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_no_floating_point_are_named(
    states: dict[str, State], dtype: torch.dtype
) -> None:
    name = "Mixed_3b.b1a.conv3d.weight"
    broken = states["i3d"] | {name: states["i3d"][name].to(dtype)}
    assert f"1 tensors not of floating point: {name}" in refused("i3d", broken)


def test_half_precision_is_taken_and_told(states: dict[str, State]) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in states["i3d"].items()}
    backbone = create("i3d", half, **TINY)
    assert backbone.weights.stored == "float16"
    assert backbone.net.state_dict()["Mixed_3b.b1a.conv3d.weight"].dtype == torch.float32


def test_the_index_of_a_sharded_folder_without_a_table_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "has no table `weight_map` of tensors; download the folder again" in refused(
        "clip", tmp_path
    )
