"""Coarser partitions of a video from the tree of its pseudo-events."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["coarser"]


def coarser(
    spans_s: NDArray[Any], boundary_depth: NDArray[Any], depth: int
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The events that are there after so many levels of splits.

    A split lies deeper in the tree than those around it that came before, so leaving out the deep
    ones joins whole parts: the result partitions the video as the given events do, and its
    boundaries are some of theirs.

    Args:
        spans_s: `[start, end)` of the events, one after the other, shape (E, 2).
        boundary_depth: level of the boundary between each two, 0 the first split, shape (E - 1,).
        depth: levels that are kept; 0 joins everything.

    Returns:
        spans (F, 2) with F <= E, and how many splits led to each, shape (F,).

    Raises:
        ValueError: the boundaries are not those between the events.
    """
    if len(boundary_depth) != len(spans_s) - 1:
        raise ValueError(f"{len(boundary_depth)} boundaries between {len(spans_s)} events")
    kept = np.flatnonzero(boundary_depth < depth)
    first = np.concatenate([[0], kept + 1])
    last = np.concatenate([kept, [len(spans_s) - 1]])
    spans = np.stack([spans_s[first, 0], spans_s[last, 1]], axis=1)
    around = np.concatenate([[-1], boundary_depth[kept], [-1]])
    return spans, (np.maximum(around[:-1], around[1:]) + 1).astype(np.int32)
