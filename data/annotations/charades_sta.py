"""Charades-STA (Gao et al., TALL, ICCV 2017, https://arxiv.org/abs/1705.02101).

`charades_sta_{train,test}.txt`: 12,408 / 3,720 queries on 5,338 / 1,334 videos, one per line:

    AO8RW 0.0 6.9##a person sits.

They say no durations. These are taken from the first of these that lies beside the file (all three
agree on all 9,848 videos); without one, queries have no duration:

    durations.json                    {"AO8RW": 33.67, …}
    charades.json                     {"AO8RW": {"duration": 33.67, …}, …}
    Charades_v1_{train,test}.csv      of the dataset itself, columns `id` and `length`

Their queries get the ids `V_i`, `i` counting the queries of video `V` in the order of the file.
`charades_sta_{train,test}_tvr_format.jsonl` (CG-DETR, EaTR, Lighthouse, …) has 12,404 / 3,720 rows,
numbered from 0 and from 12404, moments cut at the end of the video; it lacks the four queries of
training whose moments are the wrong way round in one variant of the txt file. LLMEPET's copy of the
train file has 146 rows of the test file at its end.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.annotations.fields import Fields
from data.annotations.formats import DATASETS, PostProcessing, Record, Sample
from data.annotations.published import Published, Row, first_bytes, read_rows
from data.annotations.videos import read_videos
from data.errors import UsageError
from data.foreign import check_plain_file, text_lines

__all__ = ["CharadesSTA"]

Durations = Mapping[str, Any]


@dataclass(frozen=True)
class TextLine(Fields):
    """One line `VIDEO START END##SENTENCE`.

    Args:
        path: the file.
        line: its number, from 1.
        text: the line.
        durations: seconds by video; None if no file says them.
        index: how many queries of the video came before.
    """

    path: Path
    line: int
    text: bytes
    durations: Durations | None
    index: int

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.path}, line {self.line}"

    @cached_property
    def row(self) -> dict[str, Any]:
        """The line in the shape of QVHighlights; see `Fields.row`."""
        video_id, start, end, query = self._parts()
        row = {
            "qid": f"{video_id}_{self.index}",
            "query": query,
            "vid": video_id,
            "relevant_windows": [[self._seconds(start), self._seconds(end)]],
        }
        return row if self.durations is None else row | {"duration": self._duration(video_id)}

    def _parts(self) -> tuple[str, str, str, str]:
        try:
            moment, _, query = self.text.decode().partition("##")
        except UnicodeDecodeError as error:
            self.refuse(f"is not UTF-8 text: {error}")
        words = moment.split()
        if len(words) != 3:
            self.refuse("expected 'VIDEO START END##SENTENCE', got " + repr(moment[:120]))
        return words[0], words[1], words[2], query

    def _seconds(self, word: str) -> float:
        try:
            return float(word)
        except ValueError:
            self.refuse(f"expected seconds, got {word[:120]!r}")

    def _duration(self, video_id: str) -> Any:
        assert self.durations is not None
        duration = self.durations.get(video_id)
        if duration is None:
            self.refuse(
                f"the duration of video {video_id!r} is not in the file of durations beside it; "
                "add it, or move that file away to go on without durations"
            )
        return duration


class CharadesSTA(Published):
    """Lines of text with durations beside them, or rows.

    Predictions are clamped to [0, 150] s and rounded to the clips of the SlowFast and CLIP features
    (CG-DETR, `cg_detr/inference.py`).
    """

    name = "charades_sta"
    clip_len_s: float | None = 1.0
    post = PostProcessing(clamp_s=(0.0, 150.0), round_to_s=1.0)
    metrics: tuple[str, ...] = ("mr_hd", "tsg")

    def records(self, path: Path) -> Iterable[Record]:
        """The queries of a file of either form."""
        if first_bytes(path).lstrip().startswith(b"{"):
            return read_rows(path, Row)
        return _text_lines(path)

    def claims(self, sample: Sample) -> bool:
        """Lines of text."""
        return sample.form == "text"


def _text_lines(path: Path) -> Iterator[TextLine]:
    durations = durations_beside(path)
    seen: Counter[bytes] = Counter()
    for number, text in text_lines(path, "the annotations"):
        video = text.split(maxsplit=1)[0]
        yield TextLine(path, number, text, durations, seen[video])
        seen[video] += 1
    if not seen:
        raise UsageError(f"the annotations {path} hold no rows")


def durations_beside(path: Path) -> Durations | None:
    """Seconds by video, from the first of the known files beside `path`; None without one.

    Raises:
        UsageError: it is there and cannot be read.
    """
    folder = path.parent
    for read, names in _SOURCES.items():
        found = [folder / name for name in names if (folder / name).exists()]
        if found:
            return {video: value for file in found for video, value in read(file).items()}
    return None


def _lengths(path: Path) -> Durations:
    return read_videos(path)


def _durations(path: Path) -> Durations:
    entries = read_videos(path).items()
    return {key: each.get("duration") if isinstance(each, dict) else each for key, each in entries}


def _csv(path: Path) -> Durations:
    check_plain_file(path, "the durations")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["id"]: float(row["length"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise UsageError(f"cannot read the durations '{path}': {error.strerror}") from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UsageError(
            f"{path} is no table with the columns 'id' and 'length' (seconds): {error!r}"
        ) from None


_SOURCES: Mapping[Callable[[Path], Durations], tuple[str, ...]] = {
    _lengths: ("durations.json",),
    _durations: ("charades.json",),
    _csv: ("Charades_v1_train.csv", "Charades_v1_test.csv"),
}

DATASETS.register(CharadesSTA.name)(CharadesSTA())
