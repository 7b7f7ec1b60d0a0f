"""A pass that decodes only what a plan asks for, and notices when the file is not as foreseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.video.checks import require
from data.video.container import opened, packets_of
from data.video.index import index_of
from data.video.limits import VideoLimits
from data.video.plan import Feed, Plan, planned
from data.video.select import Picture
from data.video.types import FrameRequest, Video, View

__all__ = ["UnforeseenError", "guided_frames"]

_SKIP = {Feed.REFERENCE: "NONREF", Feed.DECODE: "DEFAULT"}
"""`AVCodecContext.skip_frame` for what happens to a packet."""


class UnforeseenError(Exception):
    """The file is not as its packets promise, or it has no index: everything must be decoded.

    What a guided pass gave before is right: every frame that it gives is one that was foreseen, and
    a frame that does not come changes no slot but its own.
    """


def guided_frames(
    video: Video,
    requests: Sequence[FrameRequest],
    picture: Callable[[Any], Picture],
    progress: Callable[[], None],
    limits: VideoLimits,
) -> Iterator[tuple[float, Picture]]:
    """The frames that serve `requests`, and the time of the frame after each, for `Selection`.

    Args:
        video: the file or a part of it.
        requests: what is wanted.
        picture: makes a decoded frame (`av.VideoFrame`) convertible.
        progress: called for every packet.
        limits: what a video may declare.

    Raises:
        UnforeseenError: decode everything instead; see there.
        InputError: as every decoder.
    """
    index = index_of(video, limits, progress)
    if index is None:
        raise UnforeseenError
    with opened(video, limits) as (container, stream):
        base, start = float(stream.time_base), stream.start_time or 0
        if (int(index.pts.max()) - start) * base > limits.max_duration_s:
            raise UnforeseenError  # the plain pass refuses the video if it comes so far
        plan = planned(index, video, requests, start, base)
        if plan is None:
            raise UnforeseenError  # the plain pass says why
        frames = _Decoding(plan, container, stream, progress)
        for place, frame in _in_turn(plan, frames):
            limits.check_picture(video.path, frame.width, frame.height)
            yield float(plan.times_s[place]), picture(frame)
            if place + 1 < len(plan.times_s):
                yield float(plan.times_s[place + 1]), _unwanted


def _in_turn(plan: Plan, frames: _Decoding) -> Iterator[tuple[int, Any]]:
    """The wanted frames with their places, exactly those that the plan foresees."""
    expected = zip(plan.wanted.tolist(), plan.wanted_pts.tolist(), strict=True)
    place, due = next(expected)
    for frame in frames:
        pts = frame.pts
        if pts is None or pts > due or frame.is_corrupt or not _foreseen(plan.shown, pts):
            raise UnforeseenError
        if pts == due:
            yield place, frame
            following = next(expected, None)
            if following is None:
                return
            place, due = following
    raise UnforeseenError


def _foreseen(shown: NDArray[np.int64], pts: int) -> bool:
    at = int(np.searchsorted(shown, pts))
    return at < len(shown) and int(shown[at]) == pts


def _unwanted(view: View) -> NDArray[np.uint8]:
    raise AssertionError(f"a frame that was not decoded is asked for {view}")


class _Decoding:
    """Iterates over the frames that come out of the packets of a plan."""

    def __init__(
        self, plan: Plan, container: Any, stream: Any, progress: Callable[[], None]
    ) -> None:
        self._plan = plan
        self._container = container
        self._stream = stream
        self._codec = stream.codec_context
        self._progress = progress

    def __iter__(self) -> Iterator[Any]:
        errors = require("av").error
        fed = Feed.DECODE
        try:
            for position, packet in self._packets():
                self._progress()
                feed = Feed(self._plan.feed[position])
                if feed == Feed.DROP:
                    continue
                if feed != fed:
                    self._codec.skip_frame = _SKIP[feed]
                    fed = feed
                yield from self._codec.decode(packet)
            yield from self._codec.decode(None)
        except errors.FFmpegError as error:
            raise UnforeseenError from error

    def _packets(self) -> Iterator[tuple[int, Any]]:
        """The packets of the plan with their positions, each where the index has it."""
        plan = self._plan
        packets = (each for each in packets_of(self._container, self._stream) if each.size)
        position = 0
        if plan.seek_ticks is not None:
            self._container.seek(plan.seek_ticks, stream=self._stream)
            position = -1
        for packet in packets:
            if position < 0:
                position = _position(plan, packet)
            if packet.pts != plan.pts[position]:
                raise UnforeseenError
            yield position, packet
            position += 1
            if position == len(plan.feed):
                return
        raise UnforeseenError


def _position(plan: Plan, packet: Any) -> int:
    """Where a seek arrived: at or before the first packet that is needed."""
    found = np.flatnonzero(plan.pts[: plan.first + 1] == packet.pts)
    if packet.pts is None or not len(found):
        raise UnforeseenError
    return int(found[0])
