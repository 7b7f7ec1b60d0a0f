"""The default decoder: PyAV, sequential, one thread, tolerant of broken packets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.errors import InputError
from data.video.checks import check_file, no_frames_in_part, require, unheard
from data.video.container import opened, packets_of
from data.video.convert import Converter, upright_size
from data.video.guided import UnforeseenError, guided_frames
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.plan import Span
from data.video.select import Allocate, Picture, Selection, new_array
from data.video.types import FrameRequest, Video, VideoFacts, Window

__all__ = ["Clock", "PyAVDecoder"]

_HEADER_RATE_TOLERANCE = 0.05
"""How far the header's rate may be from the measured one. Measured rates of containers with
millisecond timestamps come out just below 30, and SlowFast's sampling takes their floor."""


class PyAVDecoder:
    """Decodes with PyAV in this process. Packets that the decoder refuses are skipped and counted.

    The first video stream that is not a cover picture is decoded. Times count from the start of
    that stream, so a file that starts at 90 s begins at 0. Frames are turned upright.
    """

    name = "pyav"

    def __init__(self) -> None:
        require("av")
        self.progress: Callable[[], None] = unheard
        self.limits = DEFAULT_LIMITS
        self.allocate: Allocate = new_array
        self.damaged = 0
        """Packets refused in the last pass."""

    def probe(self, video: Video) -> VideoFacts:
        """Decode everything, convert nothing. Cost: that of decoding."""
        size_bytes = check_file(video.path)
        with opened(video, self.limits) as (container, stream):
            source = _Pass(video, container, stream, self.progress, self.limits)
            for _ in source:
                pass
            self.damaged = source.damaged
            return source.facts(size_bytes)

    def windows(self, video: Video, requests: Sequence[FrameRequest]) -> Iterator[Window]:
        """Serve all requests from one sequential pass, which ends when the last one is served.

        Packets that no wanted frame needs are not decoded where that is known to change nothing
        (`data.video.index`). Where the file then does not give exactly the frames that its packets
        promise, everything is decoded, and windows that were not delivered yet follow.
        """
        check_file(video.path)
        selection, converter = Selection(requests, self.allocate), Converter()
        try:
            self.damaged = 0
            yield from selection.serve(self._guided(video, requests, converter))
        except UnforeseenError:
            yield from selection.serve(self._all(video, converter))

    def _guided(
        self, video: Video, requests: Sequence[FrameRequest], converter: Converter
    ) -> Iterator[tuple[float, Picture]]:
        return guided_frames(video, requests, converter.picture, self.progress, self.limits)

    def _all(self, video: Video, converter: Converter) -> Iterator[tuple[float, Picture]]:
        with opened(video, self.limits) as (container, stream):
            source = _Pass(video, container, stream, self.progress, self.limits)
            try:
                for time_s, frame in source:
                    yield time_s, converter.picture(frame)
            finally:
                self.damaged = source.damaged


class Clock:
    """Timestamps of frames in decoding order as seconds that never decrease.

    Args:
        time_base: seconds per tick.
        start: ticks at which the stream starts; None lets the first frame start at 0.
        period_s: time between frames where a timestamp and the duration before it are missing.
    """

    def __init__(self, time_base: float, start: int | None, period_s: float) -> None:
        self._time_base = time_base
        self._start = start
        self._period_s = self._step_s = period_s
        self._last_s = -math.inf

    def seconds(self, ticks: int | None, duration: int | None = None) -> float:
        """Time of the next frame; a missing one follows when the frame before it is over.

        Args:
            ticks: its timestamp.
            duration: how long it lasts, in ticks. A raw H.264 stream states no timestamps and, as
                its average, a rate that FFmpeg made up; its durations are right.
        """
        if ticks is None:
            now = 0.0 if self._last_s == -math.inf else self._last_s + self._step_s
        else:
            if self._start is None:
                self._start = ticks
            now = (ticks - self._start) * self._time_base
        self._last_s = max(now, self._last_s)
        self._step_s = duration * self._time_base if duration else self._period_s
        return self._last_s


class _Pass:
    """One sequential pass over a part of a stream; counts as it goes.

    Iterating yields `(seconds from the start of the part, av.VideoFrame)`.
    """

    def __init__(
        self,
        video: Video,
        container: Any,
        stream: Any,
        progress: Callable[[], None],
        limits: VideoLimits,
    ) -> None:
        self._video = video
        self._limits = limits
        self._progress = progress
        self._container = container
        self._stream = stream
        self._rate = float(stream.average_rate or stream.guessed_rate or 0)
        self._period_s = 1 / self._rate if self._rate > 0 else 0.0
        # AVI stores decoding order only; what it calls pts is wrong where there are B-frames.
        self._by_dts = container.format.name == "avi"
        start = None if self._by_dts else stream.start_time
        self._clock = Clock(float(stream.time_base), start, self._period_s)
        self._span = Span.of(video)
        self._decoded = 0
        self._first: Any = None
        self._times_s = (0.0, 0.0)
        self._last_duration_s = 0.0
        self._as_stated = 0
        self.frames = 0
        self.damaged = 0

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        path = self._video.path
        for frame in self._frames():
            self._progress()
            ticks = frame.dts if self._by_dts else frame.pts
            time_s = self._clock.seconds(ticks, frame.duration)
            self._decoded += 1
            self._limits.check_frames(path, self._decoded)
            # The size may change on the way, and one timestamp decides how long a video is.
            self._limits.check_picture(path, frame.width, frame.height)
            self._limits.check_time(path, time_s)
            if time_s >= self._span.end_s:
                break
            if time_s >= self._span.start_s:
                self._count(frame, time_s)
                yield time_s - self._video.start_s, frame
        if self.frames == 0:
            raise self._nothing()

    def facts(self, size_bytes: int) -> VideoFacts:
        """What the pass found, once it is over."""
        last_s = self._times_s[1]
        end_s = last_s + (self._last_duration_s or self._step_s())
        if self._video.end_s is not None:
            end_s = min(end_s, self._video.end_s)
        self._limits.check_time(self._video.path, end_s)
        first = self._first
        width, height = upright_size(first.width, first.height, first.rotation)
        return VideoFacts(
            duration_s=end_s - self._video.start_s,
            fps=self._fps(),
            frames=self.frames,
            width=width,
            height=height,
            rotation=int(first.rotation),
            codec=self._stream.codec_context.codec.canonical_name,
            pix_fmt=first.format.name,
            size_bytes=size_bytes,
            has_audio=bool(self._container.streams.audio),
            damaged=self.damaged,
        )

    def _frames(self) -> Iterator[Any]:
        """Frames of every packet that the decoder accepts; the last packet flushes it."""
        errors = require("av").error
        packets = packets_of(self._container, self._stream)
        while True:
            try:
                packet = next(packets, None)
            except errors.FFmpegError:
                self.damaged += 1
                packet = None
            try:
                yield from self._stream.codec_context.decode(packet)
            except errors.EOFError:
                return
            except errors.FFmpegError:
                self.damaged += 1
            if packet is None:
                return

    def _count(self, frame: Any, time_s: float) -> None:
        if self._first is None:
            self._first = frame
            self._times_s = (time_s, time_s)
        self._as_stated += self._is_stated(time_s - self._times_s[1])
        self._times_s = (self._times_s[0], time_s)
        self._last_duration_s = (frame.duration or 0) * float(self._stream.time_base)
        self.frames += 1

    def _step_s(self) -> float:
        """Mean time between frames; the header's period for a single frame."""
        first_s, last_s = self._times_s
        return (last_s - first_s) / (self.frames - 1) if self.frames > 1 else self._period_s

    def _fps(self) -> float:
        """The header's exact rate where the timestamps agree with it, else the measured one.

        They agree if most steps are those of the header, too: what is missing from a damaged file
        does not change the rate of the rest.
        """
        step_s = self._step_s() or self._last_duration_s
        if step_s <= 0 or self._is_stated(step_s) or 2 * self._as_stated > self.frames - 1 > 0:
            return self._rate
        return 1 / step_s

    def _is_stated(self, step_s: float) -> bool:
        """Whether a step between frames is that of the header's rate."""
        return abs(self._rate * step_s - 1) <= _HEADER_RATE_TOLERANCE

    def _nothing(self) -> InputError:
        path = self._video.path
        if self._decoded:
            return no_frames_in_part(self._video)
        if self.damaged:
            return InputError(
                "undecodable",
                f"{path}: no frame could be decoded, {self.damaged} packets were refused; "
                "the file is broken or in a format that this FFmpeg does not know; encode it again",
            )
        return InputError("no-frames", f"{path} has a video stream without frames; encode it again")
