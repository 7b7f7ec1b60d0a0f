"""Kinetics-GEBD (Shou et al., ICCV 2021, https://arxiv.org/abs/2101.10511): boundaries that several
people marked.

Reads what `prepare_k400_release.ipynb` of StanLei52/GEBD writes, which everyone in this field hands
around: `k400_mr345_{train,val}_min_change_duration0.3.pkl`, a pickled dict by video with
`video_duration`, `fps`, `f1_consis`, `f1_consis_avg` and `substages_timestamps` (one list of
seconds per annotator). The same object as JSON is read, too. The pickle is read without running
anything in it (`data.pickles`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data.errors import UsageError
from data.foreign import brief, read_limited, strict_json
from data.identity import check_id
from data.pickles import read_pickle

__all__ = ["GebdVideo", "read_gebd"]

_MAX_BYTES = 1 << 30
"""The training file has about 30 MB."""

_MAX_RATERS = 64
_MAX_BOUNDARIES = 10_000
"""Of one annotator; ten-second videos have a handful."""

_MAX_TOTAL = 5_000_000
"""Boundaries of a file, each mention counted: a pickle may refer to one list many times."""

_MAX_SECONDS = 1e7


@dataclass(frozen=True)
class GebdVideo:
    """What annotators said of one video.

    Args:
        duration_s: length in seconds.
        raters: boundaries in seconds, ascending, one list per annotator.
        consistency_mean: mean F1 of each annotator against the others, as the file states it; the
            official scoring leaves out videos below 0.3; None if not given.
    """

    duration_s: float
    raters: tuple[tuple[float, ...], ...]
    consistency_mean: float | None = None


def read_gebd(path: Path) -> dict[str, GebdVideo]:
    """Videos by id.

    Raises:
        UsageError: no such file, a pickle that is more than data, or a video that is not in this
            form; it is named.
    """
    content = read_limited(path, _MAX_BYTES, "the boundaries")
    text = content.lstrip()[:1] in {b"{", b"["}
    value = _json(content, path) if text else _pickled(content, path)
    if not isinstance(value, dict) or not value:
        raise UsageError(
            f"{path} holds no videos: expected Kinetics-GEBD, a mapping of video ids to what "
            "annotators said; boundaries of your own are lines of JSON in a .jsonl file"
        )
    videos = {}
    total = 0
    for key, entry in value.items():
        entry_of = _Entry(path, key, entry)
        total += entry_of.mentions()
        if total > _MAX_TOTAL:
            raise UsageError(
                f"{path} holds more than {_MAX_TOTAL:,} boundaries; it is no GEBD file"
            )
        videos[entry_of.video_id] = entry_of.video()
    return videos


def _json(content: bytes, path: Path) -> Any:
    try:
        return strict_json(content)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON that can be used: {error}") from None


def _pickled(content: bytes, path: Path) -> Any:
    return read_pickle(content, str(path), numpy_values=True, encoding="latin1")


class _Entry:
    """One video of a file; its fields are taken with their types checked."""

    def __init__(self, path: Path, key: Any, entry: Any) -> None:
        self._where = f"{path}, video {brief(key)}"
        if not isinstance(key, str):
            self._refuse("its id is not a string")
        try:
            self.video_id = check_id(key)
        except UsageError as error:
            self._refuse(str(error))
        if not isinstance(entry, dict):
            self._refuse(f"expected its annotations as a mapping, got {type(entry).__name__}")
        self._entry: Mapping[str, Any] = entry

    def video(self) -> GebdVideo:
        given = self._entry.get
        duration_s = self._number(given("video_duration"), "video_duration")
        if not duration_s:
            self._refuse("'video_duration' must be above 0")
        mean = given("f1_consis_avg")
        return GebdVideo(
            duration_s,
            tuple(self._seconds(each) for each in self._raters()),
            None if mean is None else self._number(mean, "f1_consis_avg"),
        )

    def mentions(self) -> int:
        """How many boundaries it would have; none of them is looked at."""
        return sum(len(each) for each in self._raters() if isinstance(each, list | tuple))

    def _raters(self) -> Any:
        raters = self._entry.get("substages_timestamps")
        if not isinstance(raters, list | tuple) or not 0 < len(raters) <= _MAX_RATERS:
            self._refuse(
                "'substages_timestamps' must hold one list of seconds for each of up to "
                f"{_MAX_RATERS} annotators"
            )
        return raters

    def _seconds(self, rater: Any) -> tuple[float, ...]:
        if isinstance(rater, list | tuple) and any(isinstance(each, dict) for each in rater[:1]):
            self._refuse(
                "this is the raw release (ranges with labels); give the file that its "
                "prepare_k400_release.ipynb makes, k400_mr345_*_min_change_duration0.3.pkl"
            )
        if not isinstance(rater, list | tuple) or len(rater) > _MAX_BOUNDARIES:
            self._refuse(
                f"'substages_timestamps' must be lists of at most {_MAX_BOUNDARIES:,} numbers"
            )
        return tuple(sorted(self._number(each, "substages_timestamps") for each in rater))

    def _number(self, value: Any, name: str) -> float:
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value) if abs(value) <= _MAX_SECONDS else math.nan
        if not number >= 0:
            self._refuse(f"'{name}' must be numbers from 0 to {_MAX_SECONDS:g}, got {brief(value)}")
        return number

    def _refuse(self, problem: str) -> NoReturn:
        raise UsageError(f"{self._where}: {problem}")
