"""QVHighlights (Lei et al., NeurIPS 2021, https://arxiv.org/abs/2107.09609).

`highlight_{train,val,test}_release.jsonl` of jayleicn/moment_detr: 7,218 / 1,550 / 1,542 queries.
The test file has no ground truth, `highlight_test_with_gt.jsonl` has. Videos are cut to 150 s at
most, clips have 2 s, three annotators scored each clip of a moment from 0 to 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.annotations.formats import DATASETS, PostProcessing, Ratings, Sample, stated_beside
from data.annotations.published import Row, read_rows
from data.annotations.types import Annotation

__all__ = ["QVHighlights", "RatedRow", "looks_like_qvhighlights"]

_CUT = re.compile(r"(.+)_[0-9]+\.[0-9]+_[0-9]+\.[0-9]+")
"""With the point: `kitchen_1_2` is a name that people give to videos of their own."""

_YOUTUBE = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]+\.[0-9]+_[0-9]+\.[0-9]+")


class QVHighlights:
    """Files in the QVHighlights format, of the dataset itself or of anybody's videos."""

    name = "qvhighlights"
    clip_len_s: float | None = 2.0
    post = PostProcessing(clamp_s=(0.0, 150.0), round_to_s=2.0)
    metrics: tuple[str, ...] = ("mr_hd",)
    ratings = Ratings(highest=4.0)

    def records(self, path: Path) -> Iterator[RatedRow]:
        """The queries of a file, with ground truth or without."""
        return read_rows(path, RatedRow)

    def clip_len_at(self, path: Path) -> float:
        """2 s, wherever the file lies."""
        del path
        return 2.0

    def source_of(self, video_id: str) -> str:
        """The YouTube id: videos are called `{youtube_id}_{start}_{end}`, as in `x_60.0_210.0`."""
        cut = _CUT.fullmatch(video_id)
        return cut[1] if cut else video_id

    def claims(self, sample: Sample) -> bool:
        """As `looks_like_qvhighlights`."""
        return looks_like_qvhighlights(sample)


def looks_like_qvhighlights(sample: Sample) -> bool:
    """Rows with moments and saliency, or on cuts of YouTube videos, which the test file without
    ground truth has; and nobody states another clip length beside them.
    """
    if sample.form != "rows" or stated_beside(sample.path).is_file():
        return False
    both = {"relevant_windows", "saliency_scores"} <= sample.fields
    return both or (
        _YOUTUBE.fullmatch(sample.video_id) is not None and "label" not in sample.fields
    )


@dataclass(frozen=True)
class RatedRow(Row):
    """One line. Moments alone, without saliency, are allowed: many files have no more."""

    required: ClassVar[tuple[str, ...]] = ("qid", "query", "duration", "vid")

    def annotation(self) -> Annotation:
        """See `Record.annotation`."""
        row = super().annotation()
        if row.saliency is not None and row.windows is None:
            self.refuse("has saliency but lacks 'relevant_windows'")
        return row


DATASETS.register(QVHighlights.name)(QVHighlights())
