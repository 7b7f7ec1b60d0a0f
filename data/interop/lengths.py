"""How many rows a video should have, how many its file has, and what is done about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import InputError
from data.grid import Grid
from data.store import CatalogueEntry, StageReader, Store
from data.store.recipes import is_import

__all__ = [
    "Action",
    "Expected",
    "Fit",
    "Lengths",
    "Policy",
    "fit",
    "fitted",
    "imported_lengths",
    "pool",
    "pooled_rows",
]

Action: TypeAlias = Literal["kept", "cut", "repeated", "resampled"]
Policy: TypeAlias = Literal["repair", "resample"]


@dataclass(frozen=True)
class Fit:
    """What is done to the rows of a file so that they are the clips of the grid.

    Args:
        action: `kept`; `cut`: rows at the end are left out; `repeated`: the last row stands for the
            missing ones; `resampled`: means over equal stretches, as 2D-TAN does it.
        rows: rows that there are, after pooling.
        clips: clips of the grid.
    """

    action: Action
    rows: int
    clips: int

    @property
    def by(self) -> int:
        """How many rows are left out or repeated."""
        return abs(self.rows - self.clips)

    @property
    def told(self) -> str:
        """In words."""
        words = {
            "kept": "kept as they are",
            "cut": f"the last {self.by} cut",
            "repeated": f"the last one repeated {self.by} times",
            "resampled": f"resampled from {self.rows} to {self.clips}",
        }
        return words[self.action]


def fit(rows: int, clips: int, policy: Policy, most: int) -> Fit:
    """What to do with `rows` rows on a grid of `clips` clips.

    Args:
        rows, clips: at least 1.
        policy: "resample" changes all rows where the numbers differ; "repair" the last ones.
        most: how many rows `repair` may cut or repeat.

    Raises:
        InputError: `length`: they differ by more.
    """
    if rows == clips:
        return Fit("kept", rows, clips)
    if policy == "resample":
        return Fit("resampled", rows, clips)
    if abs(rows - clips) > most:
        more = "more" if rows > clips else "fewer"
        raise InputError(
            "length",
            f"has {rows} rows for {clips} clips: {abs(rows - clips)} {more}, at most {most} are "
            "mended (--most); --lengths resample takes means over equal stretches instead",
        )
    return Fit("cut" if rows > clips else "repeated", rows, clips)


def fitted(array: NDArray[Any], how: Fit) -> NDArray[Any]:
    """(clips, D): the rows of a file on the grid.

    Args:
        array: (rows, D).
        how: what `fit` decided.
    """
    if how.action == "resampled":
        return _resampled(array, how.clips)
    if how.action == "repeated":
        return np.concatenate([array, np.repeat(array[-1:], how.by, axis=0)])
    return array[: how.clips]


def _resampled(array: NDArray[Any], clips: int) -> NDArray[Any]:
    """Means over `clips` stretches (2D-TAN, lib/datasets: `average_to_fixed_length`).

    As there, edges are rounded half to even in float32 and end at the last row, which counts only
    where a stretch is empty: then its first row stands for it.
    """
    rows = len(array)
    edges = np.arange(0, clips + 1, dtype=np.float32) / np.float32(clips) * np.float32(rows)
    at = np.minimum(np.round(edges).astype(np.int64), rows - 1)
    means = [
        array[start:end].mean(axis=0, dtype=np.float32) if start < end else array[start]
        for start, end in pairwise(at.tolist())
    ]
    return np.stack(means).astype(array.dtype)


def pooled_rows(rows: int, per_clip: int) -> int:
    """Rows after `pool`: a last group counts from half of a clip on, as the grid's rule is."""
    return max(1, (2 * rows + per_clip) // (2 * per_clip))


def pool(array: NDArray[Any], per_clip: int) -> NDArray[Any]:
    """(n, D): the mean of each `per_clip` rows; the last one may be of fewer, but at least half.

    Args:
        array: (rows, D).
        per_clip: rows of the file in a clip of the grid.
    """
    if per_clip == 1:
        return array
    groups = [
        array[start * per_clip : (start + 1) * per_clip]
        for start in range(pooled_rows(len(array), per_clip))
    ]
    return np.stack([each.mean(axis=0, dtype=np.float32) for each in groups]).astype(array.dtype)


@dataclass(frozen=True)
class Expected:
    """How long a video is.

    Args:
        duration_s: seconds.
        by: who says so: `probe`, `annotations`, `stream clip`.
    """

    duration_s: float
    by: str


class Lengths:
    """How long videos are: as measured, else as annotated, else as in other streams.

    Args:
        catalogue: what the store measured.
        annotations: rows with durations.
        streams: other streams of the store.
    """

    def __init__(
        self,
        catalogue: Mapping[str, CatalogueEntry],
        annotations: Iterable[Annotation],
        streams: Sequence[StageReader],
    ) -> None:
        self._catalogue = catalogue
        self._stated: dict[str, float] = {}
        self.disputed: set[str] = set()
        """Videos with several durations in the annotations; the first one counts."""
        for row in annotations:
            stated = row.duration_s
            if stated is not None and self._stated.setdefault(row.video_id, stated) != stated:
                self.disputed.add(row.video_id)
        self._streams = streams

    def of(self, id: str, content: str) -> Expected | None:
        """How long a video is; None if nobody knows.

        Args:
            id: the video.
            content: its content: streams of another one say nothing.
        """
        if id in self._catalogue:
            return Expected(self._catalogue[id].facts.duration_s, "probe")
        if id in self._stated:
            return Expected(self._stated[id], "annotations")
        return next(
            (
                Expected(grid.duration_s, f"stream {name}")
                for name, grid in self.others(id, content)
            ),
            None,
        )

    def others(self, id: str, content: str) -> Iterable[tuple[str, Grid]]:
        """The grids of a video in other streams."""
        for reader in self._streams:
            if id in reader and reader.key(id).content == content:
                grid = reader.grid(id)
                if grid is not None:
                    yield reader.stage, grid


def imported_lengths(store: Store) -> dict[str, float]:
    """Seconds that the imported feature files of each video cover, by their number of rows.

    What the annotations say of a length does not come in, so that they can be checked against it.
    """
    found: dict[str, float] = {}
    for stage, recipe_id in store.current.items():
        if recipe_id not in store.recipes(stage) or not is_import(store.recipe(stage, recipe_id)):
            continue
        reader = store.reader(stage, recipe_id, strict=False)
        for id in reader.ids():
            facts = reader.facts(id)
            if "row_s" in facts:
                found.setdefault(id, facts["rows"] * facts["row_s"])
    return found
