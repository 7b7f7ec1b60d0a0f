"""Near-duplicate reuse: a caption for pictures that hardly differ from those it was given for.

Off by default: papers caption every timestamp. Pictures are compared with those of the last caption
that was *made* in this part of the video, not with the ones before them, so that a slow drift does
not travel; and a caption serves for `longest_s` seconds at most (specs/captioners.md §4.5). Parts
do not look at each other: they are made in any order, on any worker.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data.config import Group
from data.store.types import ItemKey

__all__ = ["Glance", "ReuseOptions", "Reused", "Reuser", "input_hash"]

_SIDE = 8


class ReuseOptions(Group):
    """Which pictures get the caption of earlier ones."""

    kind: Literal["off", "exact", "near"] = Field(
        "off",
        description="exact: pictures of which every byte is equal; near: the next two options.",
    )
    most_bits: int = Field(
        4, ge=0, le=64, description="near: bits of the 64 of the dHash that may differ."
    )
    most_change: float = Field(
        12.0,
        ge=0,
        le=255,
        description="near: by how many of 255 levels one of 8 x 8 places may change its colour.",
    )
    longest_s: float = Field(5.0, gt=0, description="How long one caption serves, in seconds.")

    @property
    def params(self) -> dict[str, Any]:
        """What a recipe says; nothing where nothing is reused."""
        if self.kind == "off":
            return {}
        without = {"most_bits", "most_change"} if self.kind == "exact" else set()
        return {"reuse": self.model_dump(exclude=without)}


@dataclass(frozen=True)
class Reused:
    """Whose caption serves.

    Args:
        unit: of the part, whose pictures were captioned.
        bits: of the dHash that differ, those of the frame where most do; 0 for equal pictures.
    """

    unit: int
    bits: int


def input_hash(frames: NDArray[np.uint8]) -> str:
    """32 hex of the pixels (k, H, W, 3) that a captioner was given: blake2b of shape and bytes."""
    made = hashlib.blake2b(repr(frames.shape).encode(), digest_size=16)
    made.update(np.ascontiguousarray(frames).data)
    return made.hexdigest()


@dataclass(frozen=True)
class Glance:
    """What is remembered of pictures.

    Args:
        bits: dHash of each frame (k, 64): whether the brightness falls from one of 9 columns to the
            next, in 8 rows.
        colours: mean colour of 8 x 8 places of each frame (k, 8, 8, 3), in levels of 255. The dHash
            is blind to it: a black picture and a white one have the same.
    """

    bits: NDArray[np.bool_]
    colours: NDArray[np.float64]

    @staticmethod
    def of(frames: NDArray[np.uint8]) -> Glance:
        """Of uint8 RGB frames (k, H, W, 3)."""
        red, green, blue = np.moveaxis(_means(frames, _SIDE, _SIDE + 1), -1, 0)
        # BT.601. Not a matrix product: its last bit depends on the place, and so would a flat grey.
        bright = 0.299 * red + 0.587 * green + 0.114 * blue
        falls = bright[:, :, :-1] > bright[:, :, 1:]
        return Glance(falls.reshape(len(frames), -1), _means(frames, _SIDE, _SIDE))

    def bits_from(self, other: Glance) -> int:
        """Hamming distance of the dHashes, of the frame where it is largest."""
        return int((self.bits != other.bits).sum(axis=1).max(initial=0))

    def change_from(self, other: Glance) -> float:
        """Largest change of a colour at a place, in levels of 255."""
        return float(np.abs(self.colours - other.colours).max(initial=0.0))


def _means(frames: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float64]:
    """Mean of each of `rows` x `columns` areas, (k, rows, columns, 3)."""
    height, width = frames.shape[1:3]
    tops = np.arange(rows) * height // rows
    lefts = np.arange(columns) * width // columns
    sums = np.add.reduceat(frames, tops, axis=1, dtype=np.int64)
    sums = np.add.reduceat(sums, lefts, axis=2)
    heights = np.maximum(np.diff(tops, append=height), 1)  # reduceat takes one of none
    widths = np.maximum(np.diff(lefts, append=width), 1)
    means: NDArray[np.float64] = sums / (heights[:, None] * widths)[None, :, :, None]
    return means


@dataclass
class _Chain:
    """What was decided about the units of one part, in their order, and the last captioned one."""

    decided: dict[int, Reused | None] = field(default_factory=dict)
    unit: int = 0
    time_s: float = 0.0
    input: str = ""
    glance: Glance | None = None


class Reuser:
    """Decides, unit by unit in the order of a part, what is captioned.

    Asked again about a unit it says the same: the engine may call a stage again for a batch that
    failed.

    Args:
        options: what counts as alike.
    """

    def __init__(self, options: ReuseOptions) -> None:
        self._options = options
        self._chains: dict[ItemKey, _Chain] = {}

    def source_of(
        self, key: ItemKey, unit: int, time_s: float, frames: NDArray[np.uint8], input: str
    ) -> Reused | None:
        """Whose caption serves for the pictures of a unit; None: they get one of their own.

        Args:
            key: the part.
            unit: its unit.
            time_s: when the unit is.
            frames: its pictures (k, H, W, 3).
            input: their `input_hash`.
        """
        if self._options.kind == "off":
            return None
        chain = self._chains.setdefault(key, _Chain())
        if unit not in chain.decided:
            chain.decided[unit] = self._decide(chain, unit, time_s, frames, input)
        return chain.decided[unit]

    def forget(self, key: ItemKey) -> None:
        """A part begins, or is finished."""
        self._chains.pop(key, None)

    def _decide(
        self, chain: _Chain, unit: int, time_s: float, frames: NDArray[np.uint8], input: str
    ) -> Reused | None:
        near = self._options.kind == "near"
        glance = Glance.of(frames) if near else None
        recent = bool(chain.input) and time_s - chain.time_s <= self._options.longest_s
        if recent and input == chain.input:
            return Reused(chain.unit, 0)
        if recent and glance is not None and chain.glance is not None:
            bits = glance.bits_from(chain.glance)
            change = glance.change_from(chain.glance)
            if bits <= self._options.most_bits and change <= self._options.most_change:
                return Reused(chain.unit, bits)
        chain.unit, chain.time_s, chain.input, chain.glance = unit, time_s, input, glance
        return None
