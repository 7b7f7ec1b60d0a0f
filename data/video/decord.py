"""The selectable second decoder: decord 0.6 (FFmpeg 4.1 inside, unmaintained since 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.video.checks import check_container, check_file, no_frames_in_part, require, unheard
from data.video.convert import Converter
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.select import TOLERANCE_S, Allocate, Picture, new_array, serve
from data.video.types import FrameRequest, Video, VideoFacts, Window

__all__ = ["DecordDecoder", "checked_spans"]


class DecordDecoder:
    """Decodes with decord in this process.

    decord gives upright RGB frames at full size; they go through the same filters as PyAV's, so
    the pixels differ only by the extra rounding to RGB before scaling. What differs from PyAV:
    it cannot skip a broken packet (the video is `undecodable`); it takes the largest video stream
    of a file, not the first; it cannot tell "no video" from "no codec for it" (`undecodable`) and
    does not say codec, pixel format, rotation and audio (`unknown`, `rgb24`, 0, False in the
    facts); its timestamps have single precision, and it is refused where they are wrong: files
    with edit lists and AVI (specs/feature_extractors.md §3.2).
    """

    name = "decord"

    def __init__(self) -> None:
        require("decord")
        self.progress: Callable[[], None] = unheard
        self.limits = DEFAULT_LIMITS
        self.allocate: Allocate = new_array

    def probe(self, video: Video) -> VideoFacts:
        """Decode everything, convert nothing."""
        size_bytes = check_file(video.path)
        reader, spans_s = _opened(video, self.limits)
        height, width = 0, 0
        for pixels in _pixels(video, reader, spans_s, self.progress, self.limits):
            height, width = pixels.shape[:2]
        kept = _part(video, spans_s)
        return VideoFacts(
            duration_s=_end_s(video, float(spans_s[kept[-1], 1])) - video.start_s,
            fps=float(reader.get_avg_fps()),
            frames=len(kept),
            width=width,
            height=height,
            rotation=0,
            codec="unknown",
            pix_fmt="rgb24",
            size_bytes=size_bytes,
            has_audio=False,
            damaged=0,
        )

    def windows(self, video: Video, requests: Sequence[FrameRequest]) -> Iterator[Window]:
        """Serve all requests from one sequential pass, which ends when the last one is served."""
        check_file(video.path)
        reader, spans_s = _opened(video, self.limits)
        yield from serve(self._pictures(video, reader, spans_s), requests, self.allocate)

    def _pictures(
        self, video: Video, reader: Any, spans_s: NDArray[np.float64]
    ) -> Iterator[tuple[float, Picture]]:
        converter = Converter()
        starts = spans_s[_part(video, spans_s), 0] - video.start_s
        frames = _pixels(video, reader, spans_s, self.progress, self.limits)
        for time_s, pixels in zip(starts.tolist(), frames, strict=True):
            yield time_s, converter.rgb_picture(pixels)


def _opened(video: Video, limits: VideoLimits) -> tuple[Any, NDArray[np.float64]]:
    """The reader and `[start, end)` of every frame in seconds, shape (frames, 2)."""
    decord = require("decord")
    check_container(video.path, "decord")
    try:
        # An absolute path is never read as a protocol, as `concat:a|b` would be.
        reader = decord.VideoReader(str(video.path.absolute()), num_threads=1)
        limits.check_frames(video.path, len(reader))
        spans = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
    except (RuntimeError, UnicodeEncodeError, decord.DECORDError) as error:
        raise InputError(
            "undecodable",
            f"{video.path} cannot be opened by decord ({_first_line(error)}); "
            "use decoder 'pyav', which says more, or leave the file out",
        ) from error
    checked = checked_spans(video, spans)
    limits.check_time(video.path, float(checked[-1, 1]))
    return reader, checked


def checked_spans(video: Video, spans_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """`spans_s`, shape (frames, 2), if they start at or after 0 and increase, else InputError."""
    starts = spans_s[:, 0]
    sane = np.isfinite(spans_s).all() and (starts >= -TOLERANCE_S).all()
    if len(spans_s) and not (sane and (np.diff(starts) > 0).all()):
        raise InputError(
            "undecodable",
            f"decord gives wrong timestamps for {video.path} (negative or not increasing, from "
            f"{starts.min():.6g} to {starts.max():.6g} s); use decoder 'pyav'",
        )
    if len(_part(video, spans_s)) == 0:
        raise no_frames_in_part(video)
    return spans_s


def _part(video: Video, spans_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the frames in the part."""
    starts = spans_s[:, 0]
    inside = starts >= video.start_s - TOLERANCE_S
    if video.end_s is not None:
        inside &= starts < video.end_s - TOLERANCE_S
    return np.flatnonzero(inside)


def _end_s(video: Video, last_s: float) -> float:
    return last_s if video.end_s is None else min(last_s, video.end_s)


def _pixels(
    video: Video,
    reader: Any,
    spans_s: NDArray[np.float64],
    progress: Callable[[], None],
    limits: VideoLimits,
) -> Iterator[NDArray[np.uint8]]:
    """RGB frames of the part in order; those before it are decoded and dropped."""
    decord = require("decord")
    kept = _part(video, spans_s)
    for index in range(int(kept[-1]) + 1):
        try:
            frame = reader.next()
        except (StopIteration, RuntimeError, decord.DECORDError) as error:
            raise InputError(
                "undecodable",
                f"decord stopped at frame {index} of {len(spans_s)} of {video.path} "
                f"({_first_line(error)}); use decoder 'pyav', which skips broken packets",
            ) from error
        progress()
        limits.check_picture(video.path, frame.shape[1], frame.shape[0])
        if index >= kept[0]:
            yield frame.asnumpy()


def _first_line(error: Exception) -> str:
    """decord's messages end in a stack trace of C++ frames."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
