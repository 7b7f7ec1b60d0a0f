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
        duration_s: length of the video in seconds as the annotation states it; None if it does not.
        windows: moments, `(start, end)` in seconds, finite, as the file has them: they may be
            reversed, empty or past the end (`data.annotations.mend` makes them usable). None
            when the file has no moments (no ground truth, or highlight detection only).
        clip_ids: clips (of the dataset's clip length) that carry saliency scores; None without.
        saliency: for each of `clip_ids`, one score per annotator (0..4 for QVHighlights).
        clip_spans_s: for each of `clip_ids`, `(start, end)` in seconds of that clip, where the
            dataset cut its videos in another way than into clips of one length (YouTube
            Highlights); None where clip `i` is `[i * clip_len_s, (i + 1) * clip_len_s)`.
        extra: other fields of the row, kept for the dataset's own metrics.
    """

    qid: int | str
    query: str
    video_id: str
    duration_s: float | None = None
    windows: tuple[tuple[float, float], ...] | None = None
    clip_ids: tuple[int, ...] | None = None
    saliency: tuple[tuple[float, ...], ...] | None = None
    clip_spans_s: tuple[tuple[float, float], ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
