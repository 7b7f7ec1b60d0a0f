"""YouTube Highlights (Sun et al., ECCV 2014): videos of six domains whose clips are in an edited
version of the video, or not.

`youtube_{train,valid}.jsonl` (CG-DETR, Lighthouse, …): 233 / 152 videos. `clip` has the first and
last frame of each clip, about 100 frames long and 50 apart, so that clips overlap and are no grid;
`match` is 1, 0 or -1, and a clip above 0 is a highlight (UMT, `datasets/youtube.py`), which is what
`label` says. The query is the domain. UMT's file has the same of 422 videos by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from data.annotations.fields import Fields
from data.annotations.formats import DATASETS, Ratings, Record, Sample
from data.annotations.jsonl import Line
from data.annotations.published import Published, has_rows, read_rows
from data.annotations.videos import Entry, read_entries
from data.foreign import key_names

__all__ = ["YouTubeHighlights"]

_REQUIRED = ("qid", "query", "duration", "vid", "saliency_scores", "clip_spans")
_CALLED = {"saliency_scores": "match", "clip_spans": "clip"}


@dataclass(frozen=True)
class Matched(Line):
    """A row with `clip` (frames), `fps` and `match`; or a row in normal form."""

    required: ClassVar[tuple[str, ...]] = _REQUIRED
    called: ClassVar[Mapping[str, str]] = _CALLED

    @cached_property
    def row(self) -> dict[str, Any]:
        """The row in the shape of QVHighlights; see `Fields.row`."""
        row = dict(self.given)
        if "clip_spans" in row:
            return row
        clips = _clips(self, row)
        label = row.pop("label", None)
        if label is not None and label != clips["saliency_scores"]:
            self.refuse("'label' must hold [1] for each clip whose 'match' is above 0, [0] for all")
        return row | clips


@dataclass(frozen=True)
class Raw(Entry):
    """A video of UMT: `{fps, frames, domain, info, clip, match, mturk}`."""

    required: ClassVar[tuple[str, ...]] = _REQUIRED
    called: ClassVar[Mapping[str, str]] = {**_CALLED, "query": "domain"}

    @cached_property
    def row(self) -> dict[str, Any]:
        """The video in the shape of QVHighlights; see `Fields.row`."""
        ids = {"qid": self.video, "vid": self.video, "query": self.given.get("domain")}
        return self.given | ids | {"duration": self.seconds()} | _clips(self, self.given)


class YouTubeHighlights(Published):
    """One label, 0 or 1, for each of the clips; the trainer's clips have 1 s (CG-DETR)."""

    name = "youtube_highlights"
    clip_len_s: float | None = 1.0
    metrics: tuple[str, ...] = ("youtube_map",)
    ratings = Ratings(full=1.0)

    def records(self, path: Path) -> Iterable[Record]:
        """The videos of a file of either form, each with its domain as the query."""
        return read_rows(path, Matched) if has_rows(path) else read_entries(path, Raw)

    def claims(self, sample: Sample) -> bool:
        """Clips with places."""
        return {"clip", "match"} <= sample.fields


def _clips(fields: Fields, given: dict[str, Any]) -> dict[str, Any]:
    """Places and labels of the clips, in normal form."""
    missing = [name for name in ("clip", "fps", "match") if given.get(name) is None]
    if missing:
        fields.refuse(f"lacks {', '.join(map(repr, missing))}; it has {key_names(given)}")
    fps = fields.number(given["fps"], "fps")
    if fps <= 0:
        fields.refuse(f"'fps' must be above 0, got {fps:g}")
    places = fields.pairs(given["clip"], "clip_spans")
    matches = fields.listed(given["match"], "saliency_scores")
    if len(places) != len(matches):
        fields.refuse(f"'match' must hold one number for each of the {len(places)} clips")
    return {
        "relevant_clip_ids": list(range(len(places))),
        "saliency_scores": [[int(fields.number(each, "saliency_scores") > 0)] for each in matches],
        "clip_spans": [[start / fps, end / fps] for start, end in places],
    }


DATASETS.register(YouTubeHighlights.name)(YouTubeHighlights())
