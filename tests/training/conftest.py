"""Fixtures of the trainer's tests: a small store and a configuration that fits it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_store import Annotations, annotation, small_values, write_store

from data.store import Store


@pytest.fixture(scope="session")
def splits() -> Annotations:
    """Annotations of three splits that share no video."""
    rng = np.random.default_rng(7)
    sizes = {"train": 24, "val": 10, "test": 4}
    return {
        split: [annotation(split, video, rng) for video in range(size)]
        for split, size in sizes.items()
    }


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, splits: Annotations) -> Store:
    """The splits with their features."""
    return write_store(tmp_path_factory.mktemp("trainer") / "store", splits)


@pytest.fixture
def values(store: Store) -> dict[str, Any]:
    """A configuration that a test may change."""
    return small_values(store)


@pytest.fixture
def config_file(tmp_path: Path, values: dict[str, Any]) -> Callable[..., Path]:
    """Writes the configuration with changes given as `a__b=value`."""

    def write(**changes: Any) -> Path:
        for key, value in changes.items():
            *groups, name = key.split("__")
            place = values
            for group in groups:
                place = place.setdefault(group, {})
            place[name] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
