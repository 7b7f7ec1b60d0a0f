"""Charades-CG (Li et al., CVPR 2022, https://arxiv.org/abs/2203.13049): Charades-STA split anew,
so that words, or compositions of known words, of the test queries are new.

`{train,test_trivial,novel_composition,novel_word}.json` of YYJMJC/Compositional-Temporal-Grounding:
3,555 / 1,689 / 2,480 / 580 videos, 8,281 / 3,096 / 3,442 / 695 queries. The paper's table has 588
videos and 703 queries of novel words; the released file has not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.annotations.formats import DATASETS, PostProcessing, Record, Sample
from data.annotations.published import Published, Row, has_rows, read_rows
from data.annotations.videos import Sentence, read_sentences

__all__ = ["CharadesCG"]


@dataclass(frozen=True)
class Novel(Sentence):
    """A sentence with what is new in it, if the file says so.

    `extra["news"]` is `{part of speech: [word, …]}`, `extra["novels"]` is
    `{kind: [[word, word], …]}` (kinds: v-n, v-adv, p-n, n-n, a-n), both lemmas of this query.
    """

    each: ClassVar[tuple[str, ...]] = ("news", "novels")


class CharadesCG(Published):
    """`{video: {duration, timestamps, sentences, news or novels}}` in seconds, or rows."""

    name = "charades_cg"
    clip_len_s: float | None = 1.0
    post = PostProcessing()
    metrics: tuple[str, ...] = ("tsg", "mr_hd")

    def records(self, path: Path) -> Iterable[Record]:
        """The queries of a file of either form."""
        return read_rows(path, Row) if has_rows(path) else read_sentences(path, Novel)

    def claims(self, sample: Sample) -> bool:
        """Captions of videos that are not of ActivityNet."""
        return sample.is_captions and not sample.video_id.startswith("v_")


DATASETS.register(CharadesCG.name)(CharadesCG())
