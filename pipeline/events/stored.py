"""Features of the clips of a stored video, as the stage `events` compares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError
from data.store import Store
from pipeline.stages.events import stream_of, weighted

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
        stored = store.recipe("events") if "events" in store.current else None
        upstream: Mapping[str, str] = {}
        if streams is None and stored is not None and "streams" in stored.params:
            streams, upstream = stored.params["streams"], stored.upstream
        self.streams: Mapping[str, float] = dict(streams or {"clip": 1.0})
        for stage in self.streams:
            if stage not in store.current:
                raise UsageError(
                    f"store {store.path} has no stage '{stage}' to take features from; it has: "
                    f"{', '.join(sorted(store.current)) or 'none'}"
                )
        params = {} if stored is None else dict(stored.params)
        params.pop("streams", None)
        self.parameters: Mapping[str, Any] = params
        """Arguments of `parse` of the current `events`; {} where there are none."""
        self._arrays = {stage: stream_of(stage) for stage in sorted(self.streams)}
        self._readers = {stage: store.reader(stage, upstream.get(stage)) for stage in self._arrays}
        for stage, name in self._arrays.items():
            spec = self._readers[stage].recipe.schema.arrays.get(name)
            if spec is None or spec.per != "clip" or len(spec.shape) != 1:
                raise UsageError(f"stage '{stage}' of {store.path} holds no features per clip")

    def ids(self) -> set[str]:
        """Videos of which every stream is there."""
        return set.intersection(*(set(reader.ids()) for reader in self._readers.values()))

    def __call__(self, video_id: str) -> Clips:
        """The clips of a video (stores hold finite numbers only); UsageError if it has no grid."""
        rows = {stage: reader.row(video_id) for stage, reader in self._readers.items()}
        grid = next(iter(rows.values())).grid
        if grid is None:
            raise UsageError(f"the features of video '{video_id}' come without a grid of clips")
        arrays = {stage: row[self._arrays[stage]] for stage, row in rows.items()}
        features = weighted(arrays, self.streams)
        return Clips(features, grid.clip_len_s, grid.duration_s)
