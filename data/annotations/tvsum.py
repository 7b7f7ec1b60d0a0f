"""TVSum (Song et al., CVPR 2015): highlights of 50 videos in ten domains, by 20 annotators.

`tvsum_{train,val}.jsonl` (QD-DETR, CG-DETR, Lighthouse, …): 40 / 10 videos, four and one of each
domain. `label` has one score from 1 to 5 per annotator for each clip of 2 s, and `duration` is the
number of these clips, not seconds: it is read as such and kept as `extra["stated_duration"]`.
UMT's file has the same of all 50 videos by id, with `frames` and `fps`. `tvsum_*_sfc.jsonl`
(CG-DETR) has the sum over the annotators in place of their scores, and seconds: data set
`tvsum_sfc`, for which there is no public evaluator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from data.annotations.formats import DATASETS, Ratings, Record, Sample
from data.annotations.jsonl import Line
from data.annotations.published import Published, has_rows, read_rows
from data.annotations.videos import Entry, read_entries

__all__ = ["TVSum", "TVSumSums"]

_CLIP_S = 2.0


@dataclass(frozen=True)
class Labelled(Line):
    """A row with `label`, one list of scores per clip; or a row in normal form."""

    required: ClassVar[tuple[str, ...]] = ("qid", "query", "duration", "vid", "saliency_scores")
    called: ClassVar[Mapping[str, str]] = {"saliency_scores": "label"}

    @cached_property
    def row(self) -> dict[str, Any]:
        """The row in the shape of QVHighlights; see `Fields.row`."""
        row = dict(self.given)
        if "label" not in row:
            return row
        label, stated = self.listed(row.pop("label"), "saliency_scores"), row.get("duration")
        clips = {"relevant_clip_ids": list(range(len(label))), "saliency_scores": label}
        if isinstance(stated, bool) or stated != len(label):
            return row | clips
        return row | clips | {"duration": stated * _CLIP_S, "stated_duration": stated}


@dataclass(frozen=True)
class Raw(Entry):
    """A video of UMT: `{fps, frames, domain, title, url, length, anno}`."""

    required: ClassVar[tuple[str, ...]] = ("qid", "query", "duration", "vid", "saliency_scores")
    called: ClassVar[Mapping[str, str]] = {"saliency_scores": "anno", "query": "title"}

    @cached_property
    def row(self) -> dict[str, Any]:
        """The video in the shape of QVHighlights; see `Fields.row`."""
        row = {**self.given}
        anno, title = row.pop("anno", None), row.pop("title", None)
        return row | {
            "qid": self.video,
            "query": title,
            "vid": self.video,
            "duration": self.seconds(),
            "relevant_clip_ids": list(range(len(self.listed(anno, "saliency_scores")))),
            "saliency_scores": anno,
        }


class TVSum(Published):
    """Scores of 20 annotators for clips of 2 s."""

    name = "tvsum"
    clip_len_s: float | None = _CLIP_S
    metrics: tuple[str, ...] = ("tvsum_top5",)
    ratings = Ratings(lowest=1.0, full=80.0, highest=5.0)

    def records(self, path: Path) -> Iterable[Record]:
        """The videos of a file of either form, each with its title as the query."""
        return read_rows(path, Labelled) if has_rows(path) else read_entries(path, Raw)

    def claims(self, sample: Sample) -> bool:
        """Several scores for each clip and no places, or UMT's `anno`."""
        return _scores(sample) > 1 or (sample.form == "videos" and "anno" in sample.fields)


class TVSumSums(TVSum):
    """The sum over the annotators: one score from 20 to 100 per clip."""

    name = "tvsum_sfc"
    ratings = Ratings(lowest=20.0, full=80.0, highest=100.0)

    def claims(self, sample: Sample) -> bool:
        """One score for each clip and no places."""
        return _scores(sample) == 1


def _scores(sample: Sample) -> int:
    """How many scores the first clip of a row has; 0 if it is no row of TVSum."""
    clips = sample.first.get("label")
    if sample.form != "rows" or "domain" not in sample.fields or "clip" in sample.fields:
        return 0
    first = clips[0] if isinstance(clips, list) and clips else None
    return len(first) if isinstance(first, list) else 0


DATASETS.register(TVSum.name)(TVSum())
DATASETS.register(TVSumSums.name)(TVSumSums())
