"""One's own videos and queries: rows described in docs/datasets.md, nothing done to predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.annotations.formats import DATASETS, PostProcessing, Ratings, Sample, stated_beside
from data.annotations.published import Row, read_rows
from data.annotations.qvhighlights import looks_like_qvhighlights
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
    ratings = Ratings()

    def records(self, path: Path) -> Iterator[OwnRow]:
        """The queries of a file."""
        return read_rows(path, OwnRow)

    def clip_len_at(self, path: Path) -> float:
        """What `dataset.json` beside the file says, else 2 seconds."""
        return Synthetic().clip_len_at(path) if stated_beside(path).is_file() else 2.0

    def source_of(self, video_id: str) -> str:
        """The video itself."""
        return video_id

    def claims(self, sample: Sample) -> bool:
        """Rows with nothing of a public dataset; saliency where its clip length is stated."""
        if sample.form != "rows" or not {"qid", "query", "vid"} & sample.fields:
            return False
        return "label" not in sample.fields and not looks_like_qvhighlights(sample)


@dataclass(frozen=True)
class OwnRow(Row):
    """One line (docs/datasets.md): moments, saliency of clips, both, or neither."""

    required: ClassVar[tuple[str, ...]] = ("qid", "query", "duration", "vid")


DATASETS.register(Custom.name)(Custom())
