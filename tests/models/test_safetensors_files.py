"""Our reader and writer of safetensors beside the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from models.safetensors_files import SafetensorsFile, safetensors_bytes

TENSORS = {
    "half": torch.randn(3, 2).half(),
    "brain": torch.randn(4).bfloat16(),
    "whole": torch.arange(5),
    "flag": torch.tensor([True, False, True]),
    "double": torch.randn(2, 0, 3, dtype=torch.float64),
    "one": torch.tensor(3.0),
}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"made": "here"})
    found = SafetensorsFile(tmp_path / "x.safetensors")
    assert same(found, TENSORS)
    assert found.metadata == {"made": "here"}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    content = safetensors_bytes(TENSORS, {"made": "here"})
    assert content == safetensors_bytes(dict(reversed(TENSORS.items())), {"made": "here"})
    assert same(load(content), TENSORS)
    # numbers begin at a multiple of eight, as the library lays them out
    assert int.from_bytes(content[:8], "little") % 8 == 0
    (tmp_path / "x.safetensors").write_bytes(content)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"made": "here"}
    assert same(SafetensorsFile(tmp_path / "x.safetensors"), TENSORS)


def test_a_file_without_tensors_is_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(safetensors_bytes({}, {}))
    assert len(SafetensorsFile(tmp_path / "x")) == 0


def test_numbers_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    file = written(tmp_path, {"x": entry(dtype="F32", shape=[1])}, b"\0\0\x80\x3f", spaces=1)
    assert SafetensorsFile(file)["x"].item() == load_file(file)["x"].item() == 1.0


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | changes


def written(
    folder: Path, header: Any, numbers: bytes = b"\0\0\0\0", *, spaces: int | None = None
) -> Path:
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8 + (spaces or 0))
    (folder / "x").write_bytes(len(told).to_bytes(8, "little") + told + numbers)
    return folder / "x"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ([], "no object"),
        ({"x": 3}, "no usable"),
        ({"x": entry(dtype="F3")}, "has type 'F3'"),
        ({"x": entry(shape=[-4])}, "no usable"),
        ({"x": entry(shape=[True, 4])}, "no usable"),
        ({"x": entry(shape=[5])}, "has 4 bytes"),
        ({"x": entry(shape=[2**31, 2**33])}, "has 4 bytes"),
        ({"x": entry(data_offsets=[0, 4, 8])}, "no usable"),
        ({"x": entry(shape=[8], data_offsets=[0, 8])}, "do not fill"),
        ({"x": entry(shape=[3], data_offsets=[1, 4])}, "do not fill"),
        ({"x": entry(), "y": entry()}, "do not fill"),
        ({}, "do not fill"),
        ({"__metadata__": [], "x": entry()}, "metadata"),
    ],
)
def test_a_header_that_does_not_fit_its_numbers_is_refused(
    header: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        SafetensorsFile(written(tmp_path, header))


@pytest.mark.parametrize("content", [b"", b"\1", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_shorter_than_its_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="its header should have"):
        SafetensorsFile(tmp_path / "x")


def test_a_header_above_the_librarys_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(100_000_100)  # of holes
    with pytest.raises(ValueError, match="its header should have 100,000,001 bytes"):
        SafetensorsFile(tmp_path / "x")
