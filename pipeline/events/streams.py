"""The features that events are made of: those of one or several stages, one row per clip.

The stage `events` and everything that looks at its features later (`tune`, KernelCPD, the figure)
take them from here, so that all compare the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError, UsageError
from data.grid import Grid
from data.store.types import Row
from pipeline.events.parser import combine
from pipeline.stage import STAGES

__all__ = ["compared", "stream_of"]

_MIN_CLIPS_OF_POSITIONS = 4
"""Two columns of fewer clips may look like positions by chance."""


def stream_of(stage: str) -> str:
    """Name of the per-clip features that a stage writes; imports bear the name of their stage.

    Raises:
        UsageError: a stage of the pipeline that writes none.
    """
    if stage not in STAGES:
        return stage  # an import, or nothing: the program knows the store and says so
    stream: str | None = getattr(STAGES.get(stage), "stream", None)
    if stream is None:
        allowed = [name for name in STAGES if hasattr(STAGES.get(name), "stream")]
        raise UsageError(
            f"events.streams: stage '{stage}' writes no features per clip; "
            f"allowed: {', '.join(allowed)}, and whatever was imported"
        )
    return stream


def compared(
    rows: Mapping[str, Row], weights: Mapping[str, float]
) -> tuple[NDArray[np.float64], Grid]:
    """What `parse` gets of one video: one matrix (N, D), and the grid of its clips.

    It is float64, so that boundaries do not depend on the machine.

    Args:
        rows: of one video, by stage.
        weights: by stage, the same ones.

    Raises:
        InputError: `not-features`, an import of something else; `not-finite` features;
            `clip-positions` among them.
    """
    streams = {stage: _checked(rows[stage], stage) for stage in sorted(rows)}
    first = next(iter(streams))
    grid = rows[first].grid
    assert grid is not None  # by _checked
    for stage in streams:
        other = rows[stage].grid
        if other is None or (other.n, other.clip_len_s) != (grid.n, grid.clip_len_s):
            raise InputError(
                "not-features",
                f"the streams of video {rows[stage].key.id} are not of the same clips: {grid} in "
                f"stage '{first}', {other} in stage '{stage}'; make or import one of them again",
            )
    if len(streams) == 1:
        return streams[first].astype(np.float64), grid
    return combine([(features, weights[stage]) for stage, features in streams.items()]), grid


def _checked(row: Row, stage: str) -> NDArray[Any]:
    """The features of one video from one stage, if content can be compared by them."""
    id_, name = row.key.id, stream_of(stage)
    found = row.arrays.get(name)
    if found is None or found.ndim != 2 or row.grid is None or len(found) != row.grid.n:
        shape = "nothing" if found is None else f"an array of shape {found.shape}"
        where = "without a grid" if row.grid is None else f"on {row.grid.n} clips"
        raise InputError(
            "not-features",
            f"stage '{stage}' holds {shape} as '{name}' of video {id_} {where}; events need one "
            "row of features per clip: name another stage in events.streams",
        )
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        clips = np.flatnonzero(~finite)
        raise InputError(
            "not-finite",
            f"the features of video {id_} (stage '{stage}') hold values that are not finite "
            f"numbers in {len(clips)} clips, first in clip {clips[0]}; compute them again",
        )
    if _ends_in_positions(found):
        raise InputError(
            "clip-positions",
            f"the last two columns of the features of video {id_} (stage '{stage}') are where the "
            "clips begin and end (TEF), which is no content; import the features without them",
        )
    return found


def _ends_in_positions(features: NDArray[Any]) -> bool:
    """Whether the last two columns are i / n and (i + 1) / n, as loaders of moment retrieval
    append them."""
    n, width = features.shape
    if n < _MIN_CLIPS_OF_POSITIONS or width < 2:
        return False
    edges = np.arange(n + 1) / n
    expected = np.stack([edges[:-1], edges[1:]], axis=1)
    return bool(np.allclose(features[:, -2:], expected, rtol=0.0, atol=1e-3))
