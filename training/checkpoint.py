"""Checkpoints: one file that is whole or absent, and read without running anything in it."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import UsageError
from data.store.files import atomic_write
from models.safe_load import load_plain

__all__ = ["FORMAT", "load_checkpoint", "random_state", "restore_random_state", "save_checkpoint"]

FORMAT = 1
"""Version of the layout of a checkpoint; others are refused."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, replacing an old one at once.

    Args:
        path: of the file.
        state: tensors, numbers, strings and containers of them; configuration, environment and
            history travel as JSON strings.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    atomic_write(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing but tensors and plain values is unpickled.

    Raises:
        UsageError: no such file, not a checkpoint of Storyline, or of another format.
    """
    if not path.exists():
        raise UsageError(f"there is no checkpoint '{path}'; run `trainer fit` first")
    try:
        state = load_plain(path, device)
        _check_sums(path)
    except UsageError as error:
        raise UsageError(
            f"'{path}' is not a whole checkpoint of Storyline: {error}; "
            "use the other checkpoint of the run (best.pt or last.pt)"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UsageError(
            f"'{path}' has checkpoint format {found}, this version reads format {FORMAT}"
        )
    return state


def _check_sums(path: Path) -> None:
    """Compare the checksums in the file, which `torch.load` does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise UsageError(str(error)) from None
    if damaged is not None:
        raise UsageError(f"the checksum of {damaged} in it is wrong")


def random_state(device: torch.device) -> dict[str, Any]:
    """States of every random generator that training may draw from, in plain types."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue where `random_state` stood."""
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"].cpu(), device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(
        ("MT19937", keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached)
    )
