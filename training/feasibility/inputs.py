"""What the study reads: triplets of concepts, and a vector for every concept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, nearest
from data.foreign import json_object, text_lines

__all__ = ["Lift", "Triplets", "lifted", "read_embeddings", "read_triplets"]

Lift = Literal["pad", "orth", "tile"]


@dataclass(frozen=True)
class Triplets:
    """Triplets of a pair and a third concept that is far from both.

    Args:
        concepts: all of them, each once, in the order of their first appearance.
        rows: (N, 3) places of a, b and c among the concepts.
    """

    concepts: tuple[str, ...]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, found: Sequence[tuple[str, str, str]]) -> Triplets:
        """From the names."""
        concepts = tuple(dict.fromkeys(name for row in found for name in row))
        place = {name: i for i, name in enumerate(concepts)}
        return cls(concepts, np.array([[place[name] for name in row] for row in found]))


def read_triplets(path: Path) -> Triplets:
    """Triplets of a JSONL of `{"a": "sock", "b": "shoe", "c": "galaxy"}`; a and b are the pair.

    Raises:
        UsageError: no such file, no triplets, or a row that is none, with its line.
    """
    lines = text_lines(path, "the triplets")
    rows = [_names(text, f"{path}, line {number}") for number, text in lines]
    if not rows:
        raise UsageError(f"{path} holds no triplets; each line is {_EXAMPLE}")
    return Triplets.of(rows)


_EXAMPLE = '{"a": "sock", "b": "shoe", "c": "galaxy"}'


def _names(text: bytes, where: str) -> tuple[str, str, str]:
    row = json_object(text, where)
    given = [row.get(key) for key in "abc"]
    names = [each for each in given if isinstance(each, str) and each]
    if len(names) < 3:
        raise UsageError(f"{where}: a triplet is {_EXAMPLE}, got {str(row)[:200]}")
    if len(set(names)) < 3:
        raise UsageError(f"{where}: the concepts of a triplet must differ, got {', '.join(names)}")
    return names[0], names[1], names[2]


def read_embeddings(path: Path, concepts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of the concepts from an `.npz` with one array per concept, under its name.

    Returns:
        (C, E) float32 in the order of `concepts`.

    Raises:
        UsageError: no such file, a concept without a vector, or vectors that cannot be compared.
    """
    if not path.is_file():
        raise UsageError(f"no embeddings at {path}; an .npz with one vector per concept")
    try:
        with np.load(path, allow_pickle=False) as table:
            missing = [name for name in concepts if name not in table.files]
            if missing:
                raise UsageError(
                    f"{path} has no vector for {len(missing)} of {len(concepts)} concepts, "
                    f"first '{missing[0]}'; {nearest(missing[0], table.files)}"
                )
            rows = [np.asarray(table[name], np.float32) for name in concepts]
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is not an .npz of plain arrays: {error}") from error
    shapes = {row.shape for row in rows}
    if len(shapes) > 1 or rows[0].ndim != 1:
        raise UsageError(
            f"the vectors in {path} must be of one shape (E,), got "
            f"{', '.join(map(str, sorted(shapes)))}"
        )
    for name, row in zip(concepts, rows, strict=True):
        if not np.isfinite(row).all() or not row.any():
            raise UsageError(f"the vector of '{name}' in {path} is zero or not finite")
    return np.stack(rows)


def lifted(
    vectors: NDArray[np.float32], width: int, how: Lift, seed: int = 0
) -> NDArray[np.float32]:
    """Vectors of the width of the LLM, their similarities unchanged.

    Args:
        vectors: (C, E).
        width: W ≥ E.
        how: `pad` appends zeros; `orth` multiplies with a random matrix of orthonormal rows; `tile`
            repeats the vector as often as it fits, scaled to its length, and appends zeros.
        seed: of `orth`.

    Returns:
        (C, W) float32.

    Raises:
        UsageError: vectors wider than the LLM.
    """
    count, size = vectors.shape
    if size > width:
        raise UsageError(
            f"embeddings of {size} features do not fit an LLM of width {width} without changing "
            "their similarities; take a wider LLM or project the embeddings yourself"
        )
    if how == "orth":
        square = np.random.default_rng(seed).normal(size=(width, size))
        basis = np.linalg.qr(square)[0].T
        wide: NDArray[np.float32] = (vectors.astype(np.float64) @ basis).astype(np.float32)
        return wide
    times = width // size if how == "tile" else 1
    out = np.zeros((count, width), np.float32)
    out[:, : times * size] = np.tile(vectors, times) / math.sqrt(times)
    return out
