"""What a model says about a query, without tensors: files of predictions need no torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What a model says about one query: a row of the QVHighlights submission format.

    Args:
        qid: id of the query as in the annotations.
        query: the sentence.
        video_id: the video.
        windows: `(start_s, end_s, score)`, best first; none from a model that never saw a moment.
        saliency: one score per clip of the grid, or per labelled clip where the dataset cut its
            videos in its own way; None for moment-retrieval-only models.
    """

    qid: int | str
    query: str
    video_id: str
    windows: tuple[tuple[float, float, float], ...]
    saliency: tuple[float, ...] | None = None
