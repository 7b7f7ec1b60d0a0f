"""Charades-CD (Yuan et al., 2021, https://arxiv.org/abs/2101.09028): Charades-STA split anew, so
that moments of `test_ood` lie elsewhere in their videos than those of training.

`charades_{train,val,test_iid,test_ood}.json` of yytzsy/grounding_changing_distribution: 4,564 /
333 / 333 / 1,442 videos, 11,071 / 859 / 823 / 3,375 queries. Sentences have lost their punctuation,
`video_duration` is up to 0.3 s less than in Charades. BM-DETR has them as rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.annotations.formats import DATASETS, Record, Sample
from data.annotations.published import Published, Row, has_rows, read_rows
from data.annotations.videos import Sentence, read_sentences

__all__ = ["CharadesCD"]


@dataclass(frozen=True)
class Framed(Sentence):
    """A sentence of `{video: {video_duration, timestamps, sentences, framestamps, …}}`."""

    length: ClassVar[str] = "video_duration"
    each: ClassVar[tuple[str, ...]] = ("framestamps", "encoded_sentences")
    called: ClassVar[Mapping[str, str]] = {**Sentence.called, "duration": "video_duration"}


class CharadesCD(Published):
    """Seconds by video, or rows. The evaluators of its papers do nothing to predictions."""

    name = "charades_cd"
    clip_len_s: float | None = 1.0
    metrics: tuple[str, ...] = ("tsg", "tsg_discounted", "mr_hd")

    def records(self, path: Path) -> Iterable[Record]:
        """The queries of a file of either form."""
        return read_rows(path, Row) if has_rows(path) else read_sentences(path, Framed)

    def claims(self, sample: Sample) -> bool:
        """Nobody else calls the length `video_duration`."""
        return sample.form == "videos" and {"video_duration", "sentences"} <= sample.fields


DATASETS.register(CharadesCD.name)(CharadesCD())
