"""The one-shot detector of EaTR and of LLMEPET's public code.

specs/llmepet_and_pseudo_events.md §4.1;
https://github.com/jinhyunj/EaTR, models/model.py, `generate_pseudo_event`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events.scores import boundary_scores

__all__ = ["EATR_HALF_WIDTH", "eatr_clips", "oneshot_clips"]

EATR_HALF_WIDTH = 2
"""Clips on each side of EaTR's 5x5 kernel, whatever a clip's length."""


def oneshot_clips(scores: NDArray[np.float64], resolution: float = 1e-9) -> NDArray[np.int64]:
    """Boundary clips of the one-shot detector for one unpadded video, ends left out.

    A clip counts if its score reaches the mean and both neighbours'; the ends are boundaries by
    decree, so their neighbours never are. Scores up to `resolution` are rounding, not boundaries.
    """
    clips = _peaks(scores, float(scores.mean()))
    return clips[scores[clips] > resolution]


def eatr_clips(features: NDArray[Any], padded_len: int | None = None) -> NDArray[np.int64]:
    """Boundary clips as the public code finds them in a video padded with rows of zeros.

    The padding lowers the threshold, a mean over padded clips too, so more boundaries are found.
    Not copied: the span of negative width that a batch of odd size adds to one of its videos, and
    boundaries in the padding itself.

    Args:
        features: of the video alone, shape (L, D).
        padded_len: length of the batch that the video was in; None for no padding.

    Raises:
        ValueError: `padded_len` below L, or values that are not finite.
    """
    n = len(features)
    padding = 0 if padded_len is None else padded_len - n
    if padding < 0:
        raise ValueError(f"padded_len must be at least the video's {n} clips, got {padded_len}")
    # Beyond its half width the kernel sees nothing but padding, and the scores there are zero.
    seen = np.pad(features, ((0, min(padding, EATR_HALF_WIDTH)), (0, 0)))
    scores = boundary_scores(seen, EATR_HALF_WIDTH, "box", "zero")
    return _peaks(scores[:n], float(scores.sum()) / (n + padding))


def _peaks(scores: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """Inner clips that reach the threshold and both neighbours; the ends count as unreachable."""
    if len(scores) < 3:
        return np.empty(0, np.int64)
    raised = scores.copy()
    raised[[0, -1]] = np.inf
    inner = raised[1:-1]
    peaks = (inner >= raised[:-2]) & (inner >= raised[2:]) & (inner >= threshold)
    return np.flatnonzero(peaks) + 1
