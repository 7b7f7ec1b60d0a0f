"""Labels and scores of clips that a dataset cut in its own way, on our grid and back.

YouTube Highlights labels overlapping clips of about 100 frames, one every 50 frames. Its labels
are put on the grid before training, and predictions are put back onto its clips before they are
written and scored, so that a prediction file has one score per labelled clip, as public files do.
Both are means weighted by the seconds that a clip of one kind shares with those of the other:
a constant stays that constant, and clips that are those of the grid keep their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spans", "on_grid", "on_labelled_clips"]

Floats = NDArray[np.float64]

Spans = Sequence[tuple[float, float]]
"""(start, end) of each clip in seconds."""


def on_grid(
    values: Floats, spans_s: Spans, clips: int, clip_len_s: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Numbers of labelled clips as numbers of the grid's clips.

    Args:
        values: (C,) of the labelled clips.
        spans_s: of the same clips; they may overlap and leave gaps.
        clips: L, of the grid.
        clip_len_s: of the grid.

    Returns:
        (L,) means, 0 where no labelled clip is, and (L,) bool, where one is.
    """
    return _means(values, _shared_s(spans_s, clips, clip_len_s).T)


def on_labelled_clips(scores: Sequence[float], spans_s: Spans, clip_len_s: float) -> list[float]:
    """Scores of the grid's clips as scores of labelled clips.

    Args:
        scores: L, of the grid, at least one.
        spans_s: C, of the labelled clips.
        clip_len_s: of the grid.

    Returns:
        C means. A labelled clip of which the grid has nothing (`data.max_clips` cut its video)
        gets the lowest score of the video: a model that has not seen it cannot recommend it.
    """
    grid = np.asarray(scores, np.float64)
    found, seen = _means(grid, _shared_s(spans_s, len(grid), clip_len_s))
    return [float(each) for each in np.where(seen, found, grid.min())]


def _shared_s(spans_s: Spans, clips: int, clip_len_s: float) -> Floats:
    """(C, L) seconds that each labelled clip shares with each clip of the grid."""
    edges = np.arange(clips + 1) * clip_len_s
    start, end = np.asarray(spans_s, np.float64).reshape(-1, 2).T[..., None]
    return np.asarray((np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])).clip(min=0.0))


def _means(values: Floats, weights: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    total = weights.sum(axis=1)
    seen = total > 0
    return np.divide(weights @ values, total, out=np.zeros_like(total), where=seen), seen
