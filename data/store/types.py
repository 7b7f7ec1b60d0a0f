"""What goes into a store and comes out of it (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.grid import Grid
from data.identity import short_digest

__all__ = ["SCHEMA_VERSION", "ItemKey", "Recipe", "Row", "Schema", "StreamSpec"]

SCHEMA_VERSION = 1
"""Version of the layout of store.json, shards and recipes. Readers refuse any other."""


@dataclass(frozen=True)
class StreamSpec:
    """Declaration of one array of a stage.

    Args:
        shape: shape of one row of the array, e.g. `(512,)`; `()` for scalars.
        dtype: numpy dtype name from the allow-list of the store (`float16`, `float32`,
            `float64`, `int32`, `int64`, `uint8`).
        per: "clip": exactly `grid.n` rows for every video; "item": any number of rows.
    """

    shape: tuple[int, ...]
    dtype: str
    per: Literal["clip", "item"]


@dataclass(frozen=True)
class Schema:
    """All arrays and lists of texts that a stage writes for one item."""

    arrays: Mapping[str, StreamSpec] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for the recipe."""
        arrays = {
            name: {"shape": list(spec.shape), "dtype": spec.dtype, "per": spec.per}
            for name, spec in self.arrays.items()
        }
        return {"arrays": arrays, "texts": sorted(self.texts)}


@dataclass(frozen=True)
class ItemKey:
    """What resuming compares: one part of one item with its content.

    Args:
        id: video id (or query id).
        content: 64 hex that change when the input changes.
        part, parts: long items may be worked on in parts that the reader joins.
    """

    id: str
    content: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Row:
    """What one stage wrote for one (part of an) item.

    Args:
        key: which item, with which content.
        grid: the clips of the video; None for items that are not on a grid (queries).
        arrays: one array per declared stream, rows first.
        texts: one list of strings per declared text.
        facts: small JSON: flags, counts, provenance. No host names, no dates.
    """

    key: ItemKey
    grid: Grid | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.asarray(self.arrays[name])


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a stage's output except the input. Its hash is the recipe id.

    Args:
        stage: name of the stage.
        version: version of the stage's code; raised when the same parameters give other rows.
        params: parameters, weights hash, clip length, decoder: plain JSON.
        upstream: recipe ids of the stages that it reads.
        schema: what it writes.
    """

    stage: str
    version: int
    params: Mapping[str, Any]
    upstream: Mapping[str, str]
    schema: Schema

    def to_json(self) -> dict[str, Any]:
        """The whole recipe as plain JSON, with the schema version of the store."""
        return {
            "schema_version": SCHEMA_VERSION,
            "stage": self.stage,
            "version": self.version,
            "params": dict(self.params),
            "upstream": dict(self.upstream),
            "schema": self.schema.to_json(),
        }

    @property
    def id(self) -> str:
        """16 hex."""
        return short_digest(self.to_json())
