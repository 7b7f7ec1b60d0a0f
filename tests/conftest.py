"""Fixtures of the whole suite: seeds, the shared folder of real files, one local Ray."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations, predictions, media and reference outputs; not in the repository."""
    folder = Path(os.environ.get("STORYLINE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the project's shared folder of real files, not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray for the session: loopback, no dashboard, logical CPUs above the real ones."""
    # Read when Ray is imported: binds its services to loopback (`pipeline.engine.ray_workers`).
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()
