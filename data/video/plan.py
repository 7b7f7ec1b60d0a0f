"""Which packets of a file a pass must decode to serve its requests: pure logic over an index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from data.video.index import Index
from data.video.select import TOLERANCE_S, Selection
from data.video.types import FrameRequest, Video, View

__all__ = ["Feed", "Plan", "Span", "planned", "wanted_frames"]


@dataclass(frozen=True)
class Span:
    """The `[start_s, end_s)` of a file that a video is, with the tolerance of timestamps.

    A frame may lie before the declared start of its stream; it belongs to the whole video.
    """

    start_s: float
    end_s: float

    @classmethod
    def of(cls, video: Video) -> Span:
        """The span of a video."""
        start = video.start_s - TOLERANCE_S if video.start_s > 0 else -math.inf
        end = math.inf if video.end_s is None else video.end_s - TOLERANCE_S
        return cls(start, end)


class Feed(IntEnum):
    """What happens to a packet."""

    DROP = 0
    """It is not given to the decoder."""
    REFERENCE = 1
    """It is decoded only if other frames refer to it."""
    DECODE = 2


@dataclass(frozen=True)
class Plan:
    """A pass that leaves out what nobody wants.

    Args:
        feed: `Feed` of every packet in decoding order, up to the last that is needed.
        pts: presentation times of all packets in decoding order, ticks.
        first: position of the first packet that is not dropped.
        seek_ticks: where to seek for it; None if it lies near the start.
        shown: presentation times of all frames of the file in the order of the screen, ticks.
        times_s: times of the frames of the video in the order of the screen, seconds from its
            start, shape (frames,).
        wanted: places in `times_s` of the frames that serve a slot, increasing.
        wanted_pts: their presentation times, ticks.
    """

    feed: NDArray[np.uint8]
    pts: NDArray[np.int64]
    first: int
    seek_ticks: int | None
    shown: NDArray[np.int64]
    times_s: NDArray[np.float64]
    wanted: NDArray[np.int64]
    wanted_pts: NDArray[np.int64]


_SEEK_FROM = 300
"""Packets before the first that is needed for which a seek is cheaper than reading them."""


def planned(
    index: Index, video: Video, requests: Sequence[FrameRequest], start: int, time_base: float
) -> Plan | None:
    """The plan for `requests`, or None if there is no slot or no frame to serve it.

    Args:
        index: the packets of the file.
        video: the file or a part of it.
        requests: what is wanted.
        start: ticks at which the stream starts.
        time_base: seconds per tick.
    """
    shown = np.flatnonzero(index.shown)
    shown = shown[np.argsort(index.pts[shown])]
    times: NDArray[np.float64] = (index.pts[shown] - start).astype(np.float64) * time_base
    span = Span.of(video)
    inside = (times >= span.start_s) & (times < span.end_s)
    frames, times = shown[inside], times[inside] - video.start_s
    wanted = np.flatnonzero(wanted_frames(times, requests))
    if not len(wanted):
        return None
    feed = _feeds(index, np.sort(frames[wanted]))
    first = int(np.argmax(feed > Feed.DROP))
    near = first < _SEEK_FROM or first not in index.starts
    return Plan(
        feed,
        index.pts,
        first,
        None if near else int(index.starts_ticks[np.searchsorted(index.starts, first)]),
        index.pts[shown],
        times,
        wanted,
        index.pts[frames[wanted]],
    )


def wanted_frames(
    times_s: NDArray[np.float64], requests: Sequence[FrameRequest]
) -> NDArray[np.bool_]:
    """Which frames serve a slot, by `Selection` itself; `times_s` increase."""
    wanted = np.zeros(len(times_s), dtype=np.bool_)
    now = 0

    def picture(_: View) -> NDArray[np.uint8]:
        wanted[now] = True
        return np.empty(0, np.uint8)

    selection = Selection(requests)
    for later, time_s in enumerate(times_s.tolist()):
        # The frame before is the one that is asked for pixels here.
        for _ in selection.offer(time_s, picture):
            pass
        now = later
        if selection.done:
            return wanted
    for _ in selection.finish():
        pass
    return wanted


def _feeds(index: Index, needed: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What happens to each packet up to the last of `needed` positions, which increase."""
    count = int(needed[-1]) + 1
    feed = np.full(count, Feed.REFERENCE if index.skips else Feed.DECODE, dtype=np.uint8)
    feed[needed] = Feed.DECODE
    # From the last wanted frame (in decoding order) to the next start nothing is referred to.
    bounds = np.unique([0, *index.starts[index.starts < count].tolist(), count])
    cuts = np.searchsorted(needed, bounds)
    for begin, end, low, high in zip(bounds, bounds[1:], cuts, cuts[1:], strict=False):
        feed[needed[high - 1] + 1 if high > low else begin : end] = Feed.DROP
    return feed
