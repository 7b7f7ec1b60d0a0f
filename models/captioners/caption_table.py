"""Captions that are there already, by video and time, in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, some
from data.foreign import brief

__all__ = ["SAME_TIME", "CaptionTable", "ForeignCaption"]

SAME_TIME = ("refuse", "join", "first")
"""What becomes of two captions of one video at the same time."""

_NO_END = -1.0


@dataclass(frozen=True)
class ForeignCaption:
    """One caption as a file has it.

    Args:
        video: as the file calls it.
        time_s: in seconds of the video.
        text: "" if the file has none for this time.
        where: place in the file, for messages: "line 7".
        end_s: end of what it describes; None if the file does not say.
        flags: of `models.captioners.guards`, if the file is an export that has them; else None.
        reason: why there is no text, if the file says so.
    """

    video: str
    time_s: float
    text: str
    where: str
    end_s: float | None = None
    flags: tuple[str, ...] | None = None
    reason: str = ""


class _Texts:
    """A list of texts, as bytes one after the other."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q")

    def append(self, text: str) -> None:
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode()


class CaptionTable:
    """Every caption of a file: some 60 bytes each besides its text, where objects take 500.

    Every worker holds one: ActivityNet at a caption per second is 1.76 million of them.

    Args:
        captions: in any order.
        source: name of the file, for messages.
        same_time: one of `SAME_TIME`.

    Raises:
        UsageError: two captions of a video at one time, if they are refused; none at all.
    """

    def __init__(self, captions: Iterable[ForeignCaption], source: str, same_time: str) -> None:
        self._texts, self._where = _Texts(), _Texts()
        self._from_s, self._to_s = array("d"), array("d")
        self._told: dict[int, tuple[tuple[str, ...] | None, str]] = {}
        by_video: dict[str, array[int]] = {}
        for one in captions:
            by_video.setdefault(one.video, array("q")).append(len(self._from_s))
            self._add(one)
        if not by_video:
            raise UsageError(f"{source} holds no captions; name the file that has them")
        self._source, self._same_time = source, same_time
        times = np.array(self._from_s, dtype=np.float64)
        self._rows = {video: _in_order(rows, times) for video, rows in by_video.items()}
        self._times = {video: self._distinct(video, times) for video in self._rows}

    def __len__(self) -> int:
        return len(self._from_s)

    @property
    def videos(self) -> list[str]:
        """Those with a caption, sorted."""
        return sorted(self._rows)

    def times_s(self, video: str) -> NDArray[np.float64]:
        """When there are captions of a video, ascending, each once; (0,) if there are none."""
        return self._times.get(video, np.zeros(0)).copy()

    def at(self, video: str, time_s: float) -> ForeignCaption | None:
        """The caption of a video at a time that `times_s` named; None if there is none."""
        rows = self._rows.get(video)
        if rows is None:
            return None
        times = np.frombuffer(self._from_s, dtype=np.float64)[rows]
        first, last = np.searchsorted(times, [time_s, np.nextafter(time_s, np.inf)])
        found = [self._row(video, int(row)) for row in rows[first:last]]
        return _joined(found) if found and self._same_time == "join" else next(iter(found), None)

    def _add(self, one: ForeignCaption) -> None:
        if one.flags is not None or one.reason:
            self._told[len(self._from_s)] = (one.flags, one.reason)
        self._texts.append(one.text)
        self._where.append(one.where)
        self._from_s.append(one.time_s)
        self._to_s.append(_NO_END if one.end_s is None else one.end_s)

    def _row(self, video: str, row: int) -> ForeignCaption:
        flags, reason = self._told.get(row, (None, ""))
        end_s = self._to_s[row]
        return ForeignCaption(
            video,
            self._from_s[row],
            self._texts[row],
            self._where[row],
            None if end_s == _NO_END else end_s,
            flags,
            reason,
        )

    def _distinct(self, video: str, times: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = self._rows[video]
        distinct, first, counts = np.unique(times[rows], return_index=True, return_counts=True)
        if self._same_time == "refuse" and (counts > 1).any():
            at = int(np.argmax(counts > 1))
            same = rows[first[at] : first[at] + counts[at]]
            raise UsageError(
                f"{self._source}: {some([self._where[row] for row in same])} are all captions of "
                f"{brief(video)} at {distinct[at]:g} s; say what they mean: same_time: join makes "
                "them one text in the order of the file, first takes the first; if the videos are "
                "parts of one, give each part an id of its own"
            )
        return distinct


def _in_order(rows: array[int], times: NDArray[np.float64]) -> NDArray[np.int64]:
    found = np.array(rows, dtype=np.int64)
    return found[np.argsort(times[found], kind="stable")]


def _joined(found: list[ForeignCaption]) -> ForeignCaption:
    ends = [each.end_s for each in found if each.end_s is not None]
    first = found[0]
    return ForeignCaption(
        first.video,
        first.time_s,
        " ".join(each.text for each in found if each.text),
        ", ".join(each.where for each in found),
        max(ends, default=None),
    )
