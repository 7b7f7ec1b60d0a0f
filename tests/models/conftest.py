"""The public reference outputs of extractors and the rule that makes their weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from models.compat import ensure_torchvision


@dataclass(frozen=True)
class Goldens:
    """Reader of /shared/golden/extractors; `fill_ext.py` there makes weights and inputs by name."""

    folder: Path
    rule: Any

    def meta(self, name: str) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return meta

    def outputs(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        return load_file(self.folder / f"{name}.safetensors")

    def weights(
        self, shapes: Mapping[str, Any], gain: float = 1.0, salt: int = 0
    ) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(self.rule.fill_tensor(name, shape, gain, salt))
            for name, shape in shapes.items()
            if not name.endswith("num_batches_tracked")
        }

    def state(self, meta: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The weights of a fixture whose json lists its tensors."""
        rule = meta["weights"]
        shapes = {name: shape for name, shape, _ in meta["keys"]}
        return self.weights(shapes, rule["gain"], rule["salt"])

    def inputs(self, meta: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The clips of a fixture, uint8 (1, T, H, W, C), by name."""
        asked = [each["frames"] for each in meta["inputs"]]
        return {
            i["name"]: self.rule.make_frames(i["name"], i["t"], i["h"], i["w"], i["c"], i["salt"])[
                None
            ]
            for i in asked
        }

    def frames(self, name: str, count: int, height: int, width: int) -> np.ndarray[Any, Any]:
        frames: np.ndarray[Any, Any] = self.rule.make_frames(name, count, height, width)
        return frames[None]


@pytest.fixture(scope="session", autouse=True)
def torchvision_loads() -> None:
    """Tests may import open_clip themselves, each of them alone and in any order."""
    ensure_torchvision()


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Goldens:
    folder = shared / "golden" / "extractors"
    spec = importlib.util.spec_from_file_location("fill_ext", folder / "fill_ext.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    return Goldens(folder, rule)
