"""QVHighlights (Lei et al., NeurIPS 2021, https://arxiv.org/abs/2107.09609).

`highlight_{train,val,test}_release.jsonl` of jayleicn/moment_detr: 7,218 / 1,550 / 1,542 queries.
The test file has no ground truth, `highlight_test_with_gt.jsonl` has. Videos are cut to 150 s at
most, clips have 2 s, three annotators scored each clip of a moment from 0 to 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.annotations.formats import DATASETS, PostProcessing
from data.annotations.jsonl import Fields, read_fields
from data.annotations.types import Annotation

__all__ = ["QVHighlights", "Row", "records_of"]


class QVHighlights:
    """Files in the QVHighlights format, of the dataset itself or of anybody's videos."""

    name = "qvhighlights"
    clip_len_s: float | None = 2.0
    post = PostProcessing(clamp_s=(0.0, 150.0), round_to_s=2.0)
    metrics: tuple[str, ...] = ("mr_hd",)

    def records(self, path: Path) -> Iterator[Row]:
        """The queries of a file, with ground truth or without."""
        return records_of(path)

    def clip_len_at(self, path: Path) -> float:
        """2 s, wherever the file lies."""
        del path
        return 2.0

    def source_of(self, video_id: str) -> str:
        """The YouTube id: videos are called `{youtube_id}_{start}_{end}`."""
        name, _, _ = video_id.rpartition("_")
        return name.rpartition("_")[0] or video_id


class Row(Fields):
    """One line. Moments alone, without saliency, are allowed: many files have no more."""

    def annotation(self) -> Annotation:
        """See `Record.annotation`."""
        row = super().annotation()
        if row.saliency is not None and row.windows is None:
            self.refuse("has saliency but lacks 'relevant_windows'")
        if row.windows == ():
            self.refuse("'relevant_windows' is empty; a query has at least one moment")
        return row


def records_of(path: Path) -> Iterator[Row]:
    """The queries of a file in this format."""
    for each in read_fields(path):
        yield Row(each.path, each.line, each.text, ("qid", "query", "duration", "vid"))


DATASETS.register(QVHighlights.name)(QVHighlights())
