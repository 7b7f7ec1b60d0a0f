"""Features of the clips of a stored video, as the stage `events` compares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError, UsageError
from data.store import Store
from pipeline.events.streams import compared, stream_of

__all__ = ["Clips", "StoredClips"]


@dataclass(frozen=True)
class Clips:
    """One video.

    Args:
        features: one row per clip, shape (N, D), float64.
        clip_len_s: seconds per clip.
        duration_s: length of the video.
    """

    features: NDArray[np.float64]
    clip_len_s: float
    duration_s: float


class StoredClips:
    """The features of a store by video id.

    Args:
        store: with features per clip.
        streams: weight by stage; None: those of the current `events`, else stage `clip` alone.

    Raises:
        UsageError: a stage of `streams` is not in the store or writes no features per clip.
    """

    def __init__(self, store: Store, streams: Mapping[str, float] | None = None) -> None:
        params, upstream = _of_events(store)
        own = params.pop("streams", None)
        self.parameters: Mapping[str, Any] = params
        """Arguments of `parse` of the current `events`; {} where there are none."""
        if streams is None and own is not None:
            streams = own
        else:
            upstream = {}
        self.streams: Mapping[str, float] = dict(streams or {"clip": 1.0})
        for stage in self.streams:
            if stage not in store.current:
                raise UsageError(
                    f"store {store.path} has no stage '{stage}' to take features from; it has: "
                    f"{', '.join(sorted(store.current)) or 'none'}"
                )
        self._readers = {stage: store.reader(stage, upstream.get(stage)) for stage in self.streams}
        for stage in self.streams:
            name = stream_of(stage)
            spec = self._readers[stage].recipe.schema.arrays.get(name)
            if spec is None or spec.per != "clip" or len(spec.shape) != 1:
                raise UsageError(f"stage '{stage}' of {store.path} holds no features per clip")

    def ids(self) -> set[str]:
        """Videos of which every stream is there."""
        return set.intersection(*(set(reader.ids()) for reader in self._readers.values()))

    def clips(self, video_id: str) -> int:
        """How many clips a video has; reads nothing."""
        grid = next(iter(self._readers.values())).grid(video_id)
        return 0 if grid is None else grid.n

    def __call__(self, video_id: str, content: str | None = None) -> Clips:
        """The clips of a video.

        Args:
            video_id: one of `ids`.
            content: of which of its files, where it was replaced; None is the present one.

        Raises:
            UsageError: features that the stage `events` would refuse.
        """
        rows = {stage: each.row(video_id, content) for stage, each in self._readers.items()}
        try:
            features, grid = compared(rows, self.streams)
        except InputError as error:
            raise UsageError(str(error)) from None
        return Clips(features, grid.clip_len_s, grid.duration_s)


def _of_events(store: Store) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Parameters of the current `events` of a store, and the recipes that they were made of; both
    are empty where there are none, or events that name no streams."""
    if "events" not in store.current:
        return {}, {}
    recipe = store.recipe("events")
    return (dict(recipe.params), recipe.upstream) if "streams" in recipe.params else ({}, {})
