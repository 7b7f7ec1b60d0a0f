"""The default decoder: PyAV, sequential, one thread, tolerant of broken packets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data.errors import InputError
from data.video.checks import check_file, no_frames_in_part, require, unheard
from data.video.convert import Converter, upright_size
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.select import TOLERANCE_S, serve
from data.video.types import FrameRequest, Video, VideoFacts, Window

__all__ = ["FORMATS", "Clock", "PyAVDecoder"]

FORMATS = (
    "aac,aiff,amr,asf,av1,avi,dv,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp3,mp4,mpeg,"
    "mpegts,mpegvideo,mxf,nut,obu,ogg,rm,vc1,wav,webm,wtv,yuv4mpegpipe"
)
"""Demuxers that may open a file. Playlists (hls, concat, dash, image sequences) are left out: they
make a decoder read other files and addresses than the one that was given."""

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
        self.damaged = 0
        """Packets refused in the last pass."""

    def probe(self, video: Video) -> VideoFacts:
        """Decode everything, convert nothing. Cost: that of decoding."""
        size_bytes = check_file(video.path)
        with _opened(video, self.progress, self.limits) as source:
            for _ in source:
                pass
            self.damaged = source.damaged
            return source.facts(size_bytes)

    def windows(self, video: Video, requests: Sequence[FrameRequest]) -> Iterator[Window]:
        """Serve all requests from one sequential pass, which ends when the last one is served."""
        check_file(video.path)
        with _opened(video, self.progress, self.limits) as source:
            converter = Converter()
            frames = ((time_s, converter.picture(frame)) for time_s, frame in source)
            yield from serve(frames, requests)
            self.damaged = source.damaged


class Clock:
    """Timestamps of frames in decoding order as seconds that never decrease.

    Args:
        time_base: seconds per tick.
        start: ticks at which the stream starts; None lets the first frame start at 0.
        period_s: time between frames where a timestamp is missing.
    """

    def __init__(self, time_base: float, start: int | None, period_s: float) -> None:
        self._time_base = time_base
        self._start = start
        self._period_s = period_s
        self._last_s = -math.inf

    def seconds(self, ticks: int | None) -> float:
        """Time of the next frame; a missing one is a period after the one before it."""
        if ticks is None:
            now = 0.0 if self._last_s == -math.inf else self._last_s + self._period_s
        else:
            if self._start is None:
                self._start = ticks
            now = (ticks - self._start) * self._time_base
        self._last_s = max(now, self._last_s)
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
        # A frame may lie before the declared start of its stream; it belongs to the whole video.
        self._start_s = video.start_s - TOLERANCE_S if video.start_s > 0 else -math.inf
        self._end_s = math.inf if video.end_s is None else video.end_s
        self._decoded = 0
        self._first: Any = None
        self._times_s = (0.0, 0.0)
        self._last_duration_s = 0.0
        self.frames = 0
        self.damaged = 0

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        path = self._video.path
        for frame in self._frames():
            self._progress()
            time_s = self._clock.seconds(frame.dts if self._by_dts else frame.pts)
            self._decoded += 1
            self._limits.check_frames(path, self._decoded)
            # The size may change on the way, and one timestamp decides how long a video is.
            self._limits.check_picture(path, frame.width, frame.height)
            self._limits.check_time(path, time_s)
            if time_s >= self._end_s - TOLERANCE_S:
                break
            if time_s >= self._start_s:
                self._count(frame, time_s)
                yield time_s - self._video.start_s, frame
        if self.frames == 0:
            raise self._nothing()

    def facts(self, size_bytes: int) -> VideoFacts:
        """What the pass found, once it is over."""
        last_s = self._times_s[1]
        end_s = min(last_s + (self._last_duration_s or self._step_s()), self._end_s)
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
        packets = self._container.demux(self._stream)
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
        self._times_s = (self._times_s[0], time_s)
        self._last_duration_s = (frame.duration or 0) * float(self._stream.time_base)
        self.frames += 1

    def _step_s(self) -> float:
        """Mean time between frames; the header's period for a single frame."""
        first_s, last_s = self._times_s
        return (last_s - first_s) / (self.frames - 1) if self.frames > 1 else self._period_s

    def _fps(self) -> float:
        """The header's exact rate where the timestamps agree with it, else the measured one."""
        step_s = self._step_s() or self._last_duration_s
        if step_s <= 0:
            return self._rate
        agrees = abs(self._rate * step_s - 1) <= _HEADER_RATE_TOLERANCE
        return self._rate if agrees else 1 / step_s

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


@contextmanager
def _opened(video: Video, progress: Callable[[], None], limits: VideoLimits) -> Iterator[_Pass]:
    container = _open_container(video)
    try:
        stream = _video_stream(video, container, limits)
        yield _Pass(video, container, stream, progress, limits)
    finally:
        container.close()


def _open_container(video: Video) -> Any:
    av = require("av")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    # PyAV 19 always tolerates metadata that is not UTF-8, and has no such argument any more.
    tolerant = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
    try:
        # "file:" keeps a path with a colon from being read as a protocol.
        return av.open(f"file:{video.path}", container_options=options, **tolerant)
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(
            "not-media",
            f"{video.path} cannot be opened as a media file ({error}): it is something else, a "
            "playlist, or a download that was cut before its index; fetch it again or leave it out",
        ) from error


def _video_stream(video: Video, container: Any, limits: VideoLimits) -> Any:
    limits.check_streams(video.path, len(container.streams))
    stream = next((each for each in container.streams.video if not _is_cover(each)), None)
    if stream is None:
        kinds = ", ".join(sorted({each.type for each in container.streams})) or "nothing"
        raise InputError(
            "no-video-stream",
            f"{video.path} has no video stream (it has: {kinds}); leave it out of the list",
        )
    codec = stream.codec_context
    if codec is None:
        raise InputError(
            "undecodable",
            f"{video.path}: this FFmpeg has no decoder for its video; encode it as H.264",
        )
    limits.check_picture(video.path, codec.width, codec.height)
    limits.check_rate(video.path, float(stream.average_rate or 0))
    limits.check_frames(video.path, stream.frames)
    limits.check_time(video.path, _stated_s(container, stream))
    codec.options = {"max_pixels": str(limits.max_pixels)}
    codec.thread_count = 1
    codec.thread_type = "NONE"
    return stream


def _stated_s(container: Any, stream: Any) -> float:
    """The longest duration that the headers state, in seconds; 0 if they state none."""
    of_stream = float((stream.duration or 0) * (stream.time_base or 0))
    return max(of_stream, (container.duration or 0) / 1e6)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)
