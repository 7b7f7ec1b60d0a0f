"""Shipped configurations on the small stores of the tests, narrow enough to train in a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.config import load_config
from data.store import Store
from models.retrieval import MODELS
from training.config import TrainerConfig

__all__ = ["CONFIGS", "NARROW", "SHIPPED", "dataset_of", "known_options", "on_small_store", "sets"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trainer"
SHIPPED = sorted(CONFIGS.rglob("*.yaml"))

NARROW: Mapping[str, Any] = {
    "hidden": 16,
    "heads": 2,
    "feedforward": 32,
    "queries": 4,
    "text_heads": 2,
    "dummies": 3,
    "slot_hidden": 16,
    "similarity_hidden": 16,
    "contrast_width": 16,
    "queue_length": 16,
    "llm_width": 16,
    "llm_heads": 2,
    "llm_hidden": 32,
    "numbers": "float32",
}
"""Of the options here a model takes those that it has; nothing else about it is changed."""

STREAMS = ("slowfast", "clip")
"""What the small stores hold."""


def dataset_of(path: Path) -> str:
    """The dataset that a configuration is for: the name of its file."""
    return path.stem


def known_options(config: TrainerConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that the model of a configuration has, as `model.options.NAME`."""
    known = MODELS.get(config.model.name).options.model_fields
    return {f"model.options.{key}": each for key, each in options.items() if key in known}


def on_small_store(path: Path, store: Store) -> dict[str, Any]:
    """What must be changed for any small store: no I3D, no VGG and no LLaMA is there."""
    config = load_config(TrainerConfig, path)
    changes: dict[str, Any] = {"data.store": store.path, "loop.device": "cpu"}
    if not set(config.data.streams) <= set(STREAMS):
        changes["data.streams"] = f"[{', '.join(STREAMS)}]"
    return changes | known_options(config, {"weights": "random"})


def sets(changes: Mapping[str, Any]) -> Iterable[str]:
    """`--set` for each change."""
    return [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
