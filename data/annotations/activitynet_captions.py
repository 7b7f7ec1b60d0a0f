"""ActivityNet Captions (Krishna et al., ICCV 2017, https://arxiv.org/abs/1705.00754).

`train.json`, `val_1.json`, `val_2.json`: 10,009 / 4,917 / 4,885 videos, 37,421 / 17,505 / 17,031
queries; papers of moment retrieval validate on val_1 and test on val_2. Conversions to JSONL number
the queries through all three files. The two files of validation describe the same videos, each in
its own words.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data.annotations.formats import DATASETS, PostProcessing, Record, Sample
from data.annotations.published import Published, Row, has_rows, read_rows
from data.annotations.videos import Sentence, read_sentences

__all__ = ["ActivityNetCaptions"]


class ActivityNetCaptions(Published):
    """`{video: {duration, timestamps, sentences}}` in seconds, or rows.

    Predictions are rounded and not clamped (line/lighthouse, `training/evaluate.py`).
    """

    name = "activitynet_captions"
    clip_len_s: float | None = 2.0
    post = PostProcessing(round_to_s=2.0)
    metrics: tuple[str, ...] = ("mr_hd", "tsg")

    def records(self, path: Path) -> Iterable[Record]:
        """The queries of a file of either form."""
        return read_rows(path, Row) if has_rows(path) else read_sentences(path, Sentence)

    def claims(self, sample: Sample) -> bool:
        """Captions of videos called `v_…`."""
        return sample.is_captions and sample.video_id.startswith("v_") and not sample.novelty


DATASETS.register(ActivityNetCaptions.name)(ActivityNetCaptions())
