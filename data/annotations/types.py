"""The normal form of an annotated query, whatever dataset it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Annotation"]


@dataclass(frozen=True)
class Annotation:
    """One query on one video.

    Args:
        qid: id of the query as the dataset gives it (a number or a string; kept as it is).
        query: the sentence.
        video_id: id of the video.
        duration_s: length of the video as the annotation states it; None if it does not.
        windows: moments, `(start, end)` in seconds; None when the file has no ground truth.
        clip_ids: clips (of the dataset's clip length) that carry saliency scores; None without.
        saliency: for each of `clip_ids`, one score per annotator (0..4 for QVHighlights).
        extra: other fields of the row, kept for the dataset's own metrics.
    """

    qid: int | str
    query: str
    video_id: str
    duration_s: float | None = None
    windows: tuple[tuple[float, float], ...] | None = None
    clip_ids: tuple[int, ...] | None = None
    saliency: tuple[tuple[float, ...], ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
