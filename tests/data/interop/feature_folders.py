"""Small feature files in the layouts of public code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.store import Store

CLIP_LEN_S = 2.0
WIDTH = 6


def rows(count: int, seed: int = 0, width: int = WIDTH, dtype: str = "float32") -> NDArray[Any]:
    """(count, width), not normalised."""
    return (3 * np.random.default_rng(seed).standard_normal((count, width))).astype(dtype)


def npz_folder(folder: Path, arrays: Mapping[str, NDArray[Any]], key: str = "features") -> Path:
    """`{vid}.npz`, as Moment-DETR has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.savez(folder / f"{name}.npz", **{key: array})
    return folder


def npy_folder(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """`{vid}.npy`, as VSLNet has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def h5_file(path: Path, arrays: Mapping[str, NDArray[Any]], key: str | None = None) -> Path:
    """`/{vid}` as 2D-TAN has them, or `/{vid}/{key}` as the ActivityNet challenge has them."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            place = name if key is None else f"{name}/{key}"
            file.create_dataset(place, data=array, compression="gzip")
    return path


def annotation(video: str, duration_s: float | None, qid: int | str = 0) -> Annotation:
    """A query of its own sentence, with one moment."""
    return Annotation(qid, f"sentence {qid}", video, duration_s, ((0.0, 2.0),))


def new_store(path: Path, clip_len_s: float = CLIP_LEN_S) -> Store:
    """An empty one."""
    return Store.create(path, dataset="custom", clip_len_s=clip_len_s)
