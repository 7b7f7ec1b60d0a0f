"""Checkpoints are whole or absent, and reading one runs nothing."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from training.checkpoint import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)

CPU = torch.device("cpu")


def test_a_checkpoint_reads_back_equal(tmp_path: Path) -> None:
    state = {"model": {"w": torch.arange(3.0)}, "progress": {"epoch": 2, "records": "[]"}}
    save_checkpoint(tmp_path / "a" / "last.pt", state)
    found = load_checkpoint(tmp_path / "a" / "last.pt")
    assert torch.equal(found["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert found["progress"] == state["progress"]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"epoch": 2, "bad": lambda: None})
    assert load_checkpoint(path)["epoch"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (touched,)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"format": 1, "model": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(UsageError, match="is not a whole checkpoint of Storyline") as caught:
            load_checkpoint(tmp_path / name)
        assert "weights_only" not in str(caught.value)  # torch advises to switch it off
    assert not touched.exists()


def test_a_checkpoint_with_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"w": torch.full((100,), 7.0)}})
    whole = path.read_bytes()
    at = whole.index(np.full(100, 7.0, np.float32).tobytes()) + 40
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UsageError, match=r"not a whole checkpoint .* the checksum of .* is wrong"):
        load_checkpoint(path)


@pytest.mark.parametrize("kept", [0, 100, -50])
def test_a_cut_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"w": torch.zeros(100)}})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match="is not a whole checkpoint"):
        load_checkpoint(path)


def test_a_missing_checkpoint_and_another_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no checkpoint '.*last\.pt'"):
        load_checkpoint(tmp_path / "last.pt")
    torch.save({"format": 99}, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="has checkpoint format 99, this version reads format 1"):
        load_checkpoint(tmp_path / "last.pt")


def test_random_generators_continue_where_they_stood(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [torch.rand(1).item(), random.random(), np.random.rand(), random.gauss(0, 1)]

    draw()
    save_checkpoint(tmp_path / "r.pt", {"random": random_state(CPU)})
    expected = draw()
    restore_random_state(load_checkpoint(tmp_path / "r.pt")["random"], CPU)
    assert draw() == expected
