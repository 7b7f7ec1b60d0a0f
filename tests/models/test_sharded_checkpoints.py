"""Checkpoints of many files: read by name and when used, strictly, whatever their container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import UsageError
from models.checkpoints import read_checkpoint
from models.large import build_empty, fill_from, fill_uniform
from models.shards import TensorFiles, read_folder, weights_files
from models.weights import fill_seeded

State = dict[str, Tensor]


class Net(nn.Module):
    """Two layers of which one is tied to an embedding, and a table that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("angles", torch.arange(4) / 3, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.words(ids)) + self.angles)
        return out


def scale(name: str, tensor: Tensor) -> tuple[float, float]:
    return (1.0, 0.1) if name.endswith("bias") else (0.0, 0.5)


def weights() -> State:
    made = Net()
    fill_seeded(made, 3, scale)
    return {key: value.clone() for key, value in made.state_dict().items()}


def write(folder: Path, state: State, suffix: str, container: str) -> Path:
    """Two shards and their index, as transformers writes them."""
    folder.mkdir()
    names = list(state)
    parts = [names[:1], names[1:]]
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05}-of-{len(parts):05}.{suffix}"
        tensors = {key: state[key] for key in part}
        if suffix == "safetensors":
            save_file(tensors, folder / file)
        else:
            zipped = container == "zip"
            torch.save(tensors, folder / file, _use_new_zipfile_serialization=zipped)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("suffix", "container"), [("safetensors", ""), ("bin", "zip"), ("bin", "before torch 1.6")]
)
def test_shards_are_read_by_name_from_every_container(
    suffix: str, container: str, tmp_path: Path
) -> None:
    state = weights()
    folder = write(tmp_path / "model", state, suffix, container)
    files = read_folder(folder)
    assert set(files) == set(state)
    assert all(torch.equal(files[name], state[name]) for name in state)
    whole = read_checkpoint(folder)
    assert all(torch.equal(whole[name], state[name]) for name in state)
    assert len(weights_files(folder)) == 3  # the index and two shards


def test_one_file_is_read_like_shards_and_a_wrapped_table_is_found(tmp_path: Path) -> None:
    state = weights()
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "model.safetensors")
    torch.save({"model": state, "epoch": 3}, tmp_path / "videochat.pth")
    for place in (tmp_path, tmp_path / "model.safetensors", tmp_path / "videochat.pth"):
        assert torch.equal(read_folder(place)["middle.bias"], state["middle.bias"])
    with pytest.raises(KeyError):
        read_folder(tmp_path)["nothing"]


def test_tensors_stay_in_the_file_until_they_are_used(tmp_path: Path) -> None:
    """64 MiB of weights cost under 8 MiB of memory of one's own until they are touched."""
    big = {f"w{i}": torch.ones(4 << 20) for i in range(4)}
    save_file(big, tmp_path / "model.safetensors")
    torch.save(big, tmp_path / "pytorch_model.bin")
    for name in ("model.safetensors", "pytorch_model.bin"):
        before = anonymous_kib()
        files = read_folder(tmp_path / name)
        tensors = [files[key] for key in files]
        assert sum(each.nbytes for each in tensors) == 64 << 20
        assert anonymous_kib() - before < 8 << 10
        assert float(tensors[3][-1]) == 1.0


def anonymous_kib() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory of one's own is read from /proc, which this system has not")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["RssAnon"].split()[0])


def break_index(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, r"has no table `weight_map` of tensors"),
        ([1], r"has no table `weight_map` of tensors"),
        ({"words.weight": "../secret.safetensors"}, r"names files that are not in its own folder"),
        ({"words.weight": "/etc/passwd"}, r"names files that are not in its own folder"),
        ({"words.weight": 3}, r"names files that are not in its own folder"),
        ({"words.weight": "model-00009-of-00009.safetensors"}, r"1 of 1 shards of .* are missing"),
        (
            {"other": "model-00001-of-00002.safetensors"},
            r"do not hold 1 tensors that the index says they do: other",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_folder_is_a_sentence(
    weight_map: Any, message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", weights(), "safetensors", "")
    break_index(folder, {"weight_map": weight_map})
    with pytest.raises(UsageError, match=message):
        read_folder(folder)


def test_a_truncated_shard_is_a_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", weights(), "safetensors", "")
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(UsageError, match=r"model-00002-of-00002.*cannot be read.*truncated"):
        read_folder(folder)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(UsageError, match=r"holds no weights.*it holds adapter_model.safetensors"):
        read_folder(tmp_path)


def test_a_network_is_built_without_memory_and_filled_as_any_other(tmp_path: Path) -> None:
    state = weights()
    folder = write(tmp_path / "model", state, "bin", "zip")
    before = torch.random.get_rng_state()
    net = build_empty(Net)
    assert torch.equal(before, torch.random.get_rng_state())
    assert net.middle.weight.is_meta
    made = fill_from(net, read_folder(folder), "a net", dtype=torch.float32)
    other = Net()
    other.load_state_dict(state)
    ids = torch.arange(7)
    assert torch.equal(net(ids), other(ids))
    assert net.head.weight.data_ptr() == net.words.weight.data_ptr()
    assert (made.kind, made.stored, made.source) == ("file", "float32", "model")
    assert not net.training
    assert not any(each.requires_grad for each in net.parameters())


def test_of_tied_tensors_a_checkpoint_may_hold_one(tmp_path: Path) -> None:
    state = weights()
    for left_out in ("words.weight", "head.weight"):
        part = {key: value for key, value in state.items() if key != left_out}
        net = build_empty(Net)
        fill_from(net, TensorFiles.of("part", part), "a net", dtype=torch.float32)
        assert torch.equal(net.head.weight, state["head.weight"])
        assert torch.equal(net.words.weight, state["words.weight"])


def test_numbers_are_converted_by_name_and_are_copies_of_the_file() -> None:
    state = weights()
    net = build_empty(Net)
    fill_from(
        net,
        TensorFiles.of("half", {key: value.half() for key, value in state.items()}),
        "a net",
        dtype=lambda name: torch.float32 if name.startswith("middle") else torch.bfloat16,
    )
    assert net.middle.weight.dtype == torch.float32
    assert net.words.weight.dtype == torch.bfloat16
    assert net.angles.dtype == torch.float32
    same = build_empty(Net)
    fill_from(same, TensorFiles.of("same", state), "a net", dtype=torch.float32)
    assert same.middle.bias.data_ptr() != state["middle.bias"].data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"middle.bias": None}, r"'files' does not fit a net; missing 1 tensors: middle\.bias"),
        ({"more": torch.ones(1)}, r"unexpected 1 tensors: more"),
        ({"middle.bias": torch.ones(5)}, r"middle\.bias is \(5,\), expected \(4,\)"),
        ({"middle.bias": torch.full((4,), torch.nan)}, r"middle\.bias is not finite"),
        ({"middle.bias": torch.full((4,), 1e6)}, r"not finite .* as torch\.float16"),
        ({"middle.bias": 3}, r"no tensor: middle\.bias is a int"),
    ],
)
def test_what_does_not_fit_names_the_tensor(change: dict[str, Any], message: str) -> None:
    state = {key: value for key, value in (weights() | change).items() if value is not None}
    with pytest.raises(UsageError, match=message):
        fill_from(build_empty(Net), TensorFiles.of("files", state), "a net", dtype=torch.float16)


def test_tensors_are_renamed_left_out_and_joined_without_reading_them() -> None:
    files = TensorFiles.of("a", {"x.w": torch.ones(1), "y": torch.zeros(1)})
    renamed = files.renamed(lambda name: None if name == "y" else name.removeprefix("x."))
    assert list(renamed) == ["w"]
    joined = renamed.joined(TensorFiles.of("b", {"v": torch.zeros(2)}))
    assert (set(joined), joined.source) == ({"w", "v"}, "a + b")
    with pytest.raises(UsageError, match=r"two tensors for z: x\.w and y"):
        files.renamed(lambda _: "z")
    with pytest.raises(UsageError, match=r"'a' and 'b' both hold w"):
        renamed.joined(TensorFiles.of("b", {"w": torch.zeros(2)}))


@pytest.mark.parametrize("threads", [1, 3])
def test_seeded_weights_are_those_of_small_networks(threads: int) -> None:
    net = build_empty(Net)
    fill_uniform(net, 3, scale, dtype=torch.float32, threads=threads)
    state = weights()
    for name, value in net.state_dict().items():
        if name != "head.weight":  # tied: the name that comes first is drawn
            assert torch.equal(value, state[name]) or name == "words.weight"
    assert torch.equal(net.middle.weight, state["middle.weight"])
