"""One's own videos and queries: rows as QVHighlights, nothing done to predictions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.annotations.formats import DATASETS, PostProcessing
from data.annotations.qvhighlights import Row, records_of
from data.annotations.synthetic import Synthetic

__all__ = ["Custom"]


class Custom:
    """Any dataset without a file of its own here.

    Clip ids of saliency scores count clips of `clip_len_s` of a `dataset.json` beside the
    annotations, or of 2 s as in QVHighlights where there is none.
    """

    name = "custom"
    clip_len_s: float | None = None
    post = PostProcessing()
    metrics: tuple[str, ...] = ("mr_hd",)

    def records(self, path: Path) -> Iterator[Row]:
        """The queries of a file."""
        return records_of(path)

    def clip_len_at(self, path: Path) -> float:
        """What `dataset.json` beside the file says, else 2 seconds."""
        stated = (path if path.is_dir() else path.parent) / "dataset.json"
        return Synthetic().clip_len_at(path) if stated.is_file() else 2.0

    def source_of(self, video_id: str) -> str:
        """The video itself."""
        return video_id


DATASETS.register(Custom.name)(Custom())
