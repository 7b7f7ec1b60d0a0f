"""One JSON object with an entry per video, in the shape of ActivityNet Captions and its relatives.

    {"v_uqiMw7tQ1Cc": {"duration": 55.15, "timestamps": [[0.28, 55.15], [13.79, 54.32]],
                       "sentences": ["A weight lifting tutorial is given.", "…"]}, …}

Such files give their queries no ids. Here sentence `i` (from 0) of video `V` has the id `V_i`, as
in the public conversion of TACoS: it does not change when videos are put in another order, and no
two are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from data.annotations.fields import Fields
from data.annotations.formats import Record
from data.errors import UsageError
from data.foreign import brief, read_limited, strict_json

__all__ = ["Entry", "Sentence", "read_entries", "read_sentences", "read_videos"]

_MAX_BYTES = 1 << 26
"""64 MiB: the captions of all 20,000 videos of ActivityNet have 8."""


_DIGITS = 19
"""Of a number of frames."""


def read_videos(path: Path) -> dict[str, Any]:
    """The entries of a file by the keys of its videos, not looked at yet.

    Raises:
        UsageError: no such file, too large, not one JSON object, no videos.
    """
    content = read_limited(path, _MAX_BYTES, "the annotations")
    try:
        videos = strict_json(content)
    except ValueError as error:
        raise UsageError(f"the annotations {path} are not JSON that can be used: {error}") from None
    if not isinstance(videos, dict):
        raise UsageError(
            f"the annotations {path} hold a {type(videos).__name__}; "
            'expected one object, {"VIDEO": {…}, …}'
        )
    if not videos:
        raise UsageError(f"the annotations {path} hold no videos")
    return videos


def read_sentences(path: Path, kind: type[Sentence]) -> Iterator[Record]:
    """The queries of a file, video by video.

    Args:
        path: the file.
        kind: how an entry is laid out.

    Raises:
        UsageError: as `read_videos`.
    """
    for video, entry in read_videos(path).items():
        yield from _sentences(Sentences(path, video, entry), kind)


def read_entries(path: Path, kind: type[Entry]) -> Iterator[Record]:
    """One query per video of a file whose entries say one thing about the whole video.

    Raises:
        UsageError: as `read_videos`.
    """
    for video, entry in read_videos(path).items():
        yield kind(path, video, entry)


@dataclass(frozen=True)
class _Placed:
    """An entry and its place.

    Args:
        path: the file.
        video: key of the entry.
        entry: what it holds.
    """

    path: Path
    video: str
    entry: Any

    @property
    def where(self) -> str:
        """File and video."""
        return f"{self.path}, video {brief(self.video)}"


@dataclass(frozen=True)
class Sentences(_Placed):
    """An entry with several sentences; see `_Placed` for the arguments."""

    def annotation(self) -> NoReturn:
        """It is no query: UsageError says what is wrong with it."""
        raise UsageError(
            f"{self.where}: must be an object whose 'timestamps' and 'sentences' are lists of the "
            f"same length, got {brief(self.entry)}"
        )

    def count(self) -> int | None:
        """How many sentences it has; None if nobody can tell."""
        if not isinstance(self.entry, dict):
            return None
        times, sentences = (self.entry.get(name) for name in ("timestamps", "sentences"))
        if not (isinstance(times, list) and isinstance(sentences, list)):
            return None
        return len(times) if len(times) == len(sentences) else None


def _sentences(video: Sentences, kind: type[Sentence]) -> Iterator[Record]:
    count = video.count()
    if count is None:
        yield video
        return
    for index in range(count):
        yield kind(video.path, video.video, video.entry, index)


@dataclass(frozen=True)
class Entry(_Placed, Fields):
    """An entry that is one query; see `_Placed` for the arguments."""

    @property
    def given(self) -> dict[str, Any]:
        """The entry; UsageError if it is no object."""
        if not isinstance(self.entry, dict):
            self.refuse(f"expected an object, found {brief(self.entry)}")
        return self.entry

    def seconds(self) -> float:
        """Length of the video: `frames` (UMT writes them as text) over `fps`."""
        frames, fps = self.given.get("frames"), self.given.get("fps")
        if isinstance(frames, str) and frames.isdecimal() and len(frames) <= _DIGITS:
            frames = int(frames)
        count, rate = self.number(frames, "frames"), self.number(fps, "fps")
        if rate <= 0:
            self.refuse(f"'fps' must be above 0, got {rate:g}")
        return count / rate


@dataclass(frozen=True)
class Sentence(_Placed, Fields):
    """One sentence of an entry in the form of ActivityNet Captions.

    Attributes:
        length: the field that holds the duration in seconds.
        each: further fields that hold one value per sentence.

    Args:
        path, video, entry: as `_Placed`; the entry is an object.
        index: which of its sentences.
    """

    index: int

    length: ClassVar[str] = "duration"
    each: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ("qid", "query", "duration", "vid")
    called: ClassVar[Mapping[str, str]] = {"query": "sentences", "relevant_windows": "timestamps"}

    @property
    def where(self) -> str:
        """File, video and number of the sentence, from 1."""
        return f"{super().where}, sentence {self.index + 1}"

    @cached_property
    def row(self) -> dict[str, Any]:
        """The sentence in the shape of QVHighlights; see `Fields.row`."""
        video_id = self.name_of_video()
        return self._others() | {
            "qid": f"{video_id}_{self.index}",
            "query": self.entry["sentences"][self.index],
            "duration": self.duration_s(),
            "vid": video_id,
            "relevant_windows": [self.window_s()],
        }

    def name_of_video(self) -> str:
        """The id of the video."""
        return self.video

    def duration_s(self) -> Any:
        """Length of the video in seconds."""
        return self.entry.get(self.length)

    def window_s(self) -> Any:
        """`[start, end]` in seconds."""
        return self.entry["timestamps"][self.index]

    def _others(self) -> dict[str, Any]:
        """Fields beside sentences, moments and length; this sentence's part of those in `each`."""
        known = {"sentences", "timestamps", self.length}
        return {
            name: self._own(name, value) if name in self.each else value
            for name, value in self.entry.items()
            if name not in known
        }

    def _own(self, name: str, values: Any) -> Any:
        sentences = len(self.entry["sentences"])
        if not isinstance(values, list) or len(values) != sentences:
            self.refuse(f"'{name}' must hold one value for each of the {sentences} sentences")
        return values[self.index]
