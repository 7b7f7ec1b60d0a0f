"""The sound of a video on the clock of its pictures: mono windows at one rate, by PyAV.

What is done to the sound:

- the first sound stream that this FFmpeg can decode is taken;
- mono is the mean of all channels, as librosa makes it. FFmpeg's own downmix of stereo is
  `(L + R) / sqrt(2)`, 3 dB louder (`-ac 1` of the command line weighs again differently for integer
  samples), so it is not used;
- the rate is changed by FFmpeg's resampler with its default filter, after the mean;
- times are those of the pictures: 0 is where the video stream starts. What the file has no samples
  for (a late start, gaps, refused packets, the end) is zeros and lowers `heard`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.video.checks import check_file, require, unheard
from data.video.container import opened, packets_of
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.types import SoundRequest, SoundWindow, Video

__all__ = ["SoundReader"]

Samples = NDArray[np.float32]

_JUMP_S = 0.1
"""Timestamps may be off by so much before samples are moved (ffmpeg's `min_hard_comp`, too):
containers round them to milliseconds, and sound that is counted on is smoother."""

_JUMP_AFTER_LOSS_S = 0.002
"""After a refused packet counting on would be wrong, so timestamps are believed."""

_LOUDEST = 8.0
"""Lossy codecs overshoot 1 a little; a crafted file of float samples may hold anything."""

_CHUNK = 1 << 14
"""Samples that are resampled together: calls cost more than the work for a single packet."""

_SEEK_FROM_S = 20.0
_PREROLL_S = 2.0
"""Sound that is decoded before the first wanted sample after a seek: decoders of lossy sound build
on the packets before, and containers find a place near the one that was asked for."""


class SoundReader:
    """Reads sound in this process. Packets that the decoder refuses are skipped and counted."""

    def __init__(self) -> None:
        require("av")
        self.progress: Callable[[], None] = unheard
        self.limits = DEFAULT_LIMITS
        self.damaged = 0
        """Packets refused in the last pass."""

    def windows(self, video: Video, request: SoundRequest) -> Iterator[SoundWindow]:
        """The windows in order; none if the file has no sound.

        Memory is bounded by the windows that overlap, whatever the length of the file.

        Raises:
            InputError: as for pictures; `undecodable` if there is sound of which not one sample
                can be decoded.
        """
        check_file(video.path)
        windows = _Windows(video, request)
        if windows.done:
            return
        wanted_s = video.start_s + float(request.starts_s[0])
        for from_s in (wanted_s - _PREROLL_S, 0.0) if wanted_s > _SEEK_FROM_S else (0.0,):
            try:
                yield from self._pass(video, request, windows, from_s)
                return
            except _NotThereError:  # the seek went past it: from the beginning then
                continue

    def _pass(
        self, video: Video, request: SoundRequest, windows: _Windows, from_s: float
    ) -> Iterator[SoundWindow]:
        with opened(video, self.limits) as (container, pictures):
            stream = _sound_stream(video, container, self.limits)
            if stream is None:
                return
            origin_s = float((pictures.start_time or 0) * pictures.time_base)
            if from_s > 0:
                _seek(container, stream, origin_s + from_s)
            source = _Source(video, container, stream, origin_s, self.limits, self.progress)
            heard = _no_later_than(from_s, source) if from_s > 0 else iter(source)
            for start, samples in _resampled(heard, request.rate_hz, video.start_s):
                yield from windows.offer(start, samples)
                self.damaged = source.damaged
                if windows.done:
                    return
            self.damaged = source.damaged
            if source.frames:
                yield from windows.rest()
            elif source.damaged:
                raise _all_refused(video, source.damaged)


class _NotThereError(Exception):
    """A seek went beyond the place that was asked for."""


@dataclass(frozen=True)
class _Piece:
    """Sound of one packet.

    Args:
        time_s: of its first sample, from the first picture of the file.
        channels: (channels, samples) as the decoder gives them.
        rate_hz: samples per second.
        follows: whether it goes on where the piece before ended, in the same form.
    """

    time_s: float
    channels: NDArray[Any]
    rate_hz: int
    follows: bool


class _Source:
    """One pass over a sound stream as pieces in time order; counts as it goes."""

    def __init__(
        self,
        video: Video,
        container: Any,
        stream: Any,
        origin_s: float,
        limits: VideoLimits,
        progress: Callable[[], None],
    ) -> None:
        self._progress = progress
        self._path = video.path
        self._container = container
        self._stream = stream
        self._origin_s = origin_s
        self._limits = limits
        self._lost = False
        self.frames = 0
        self.damaged = 0

    def __iter__(self) -> Iterator[_Piece]:
        tick_s = float(self._stream.time_base)
        began_s, count = 0.0, 0
        form: tuple[Any, ...] = ()
        for frame in self._decoded():
            channels, rate_hz = _channels(frame), frame.sample_rate
            self._limits.check_sound(self._path, len(channels), rate_hz)
            next_s = began_s + count / rate_hz
            time_s = next_s if frame.pts is None else frame.pts * tick_s - self._origin_s
            self._limits.check_time(self._path, time_s)
            jump_s = _JUMP_AFTER_LOSS_S if self._lost else _JUMP_S
            now = (rate_hz, len(channels), channels.dtype)
            follows = form == now and abs(time_s - next_s) <= jump_s
            if not follows:
                began_s, count, form = time_s, 0, now
            yield _Piece(began_s + count / rate_hz, channels, rate_hz, follows)
            count += channels.shape[1]
            self._lost = False
            self.frames += 1

    def _decoded(self) -> Iterator[Any]:
        """Frames of every packet that the decoder accepts; the last packet flushes it."""
        errors = require("av").error
        packets = packets_of(self._container, self._stream)
        while True:
            try:
                packet = next(packets, None)
            except errors.FFmpegError:
                self._refused()
                packet = None
            self._progress()
            try:
                yield from self._stream.codec_context.decode(packet)
            except errors.EOFError:
                return
            except errors.FFmpegError:
                self._refused()
            if packet is None:
                return

    def _refused(self) -> None:
        self.damaged += 1
        self._lost = True


def _channels(frame: Any) -> NDArray[Any]:
    """(channels, samples) in the type of the decoder."""
    array: NDArray[Any] = frame.to_ndarray()
    return array if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels).T


def _mono(channels: NDArray[Any]) -> Samples:
    """Mean of all channels in [-1, 1], shape (samples,)."""
    if channels.dtype.kind == "f":
        channels = np.nan_to_num(channels, nan=0.0, posinf=0.0, neginf=0.0)
    mean = channels.mean(axis=0, dtype=np.float64)
    if channels.dtype.kind == "u":
        mean = mean / 128 - 1
    elif channels.dtype.kind == "i":
        mean = mean / float(1 << (8 * channels.dtype.itemsize - 1))
    samples: Samples = mean.clip(-_LOUDEST, _LOUDEST).astype(np.float32)
    return samples


def _resampled(
    pieces: Iterable[_Piece], rate_hz: int, start_s: float
) -> Iterator[tuple[int, Samples]]:
    """Stretches of sound at `rate_hz`, each with the place of its first sample after `start_s`."""
    stretch: _Stretch | None = None
    for piece in pieces:
        if stretch is None or not piece.follows:
            if stretch is not None:
                yield from stretch.rest()
            stretch = _Stretch(piece, rate_hz, start_s)
        yield from stretch.add(piece.channels)
    if stretch is not None:
        yield from stretch.rest()


class _Stretch:
    """Sound without a gap on its way to another rate."""

    def __init__(self, first: _Piece, rate_hz: int, start_s: float) -> None:
        self._place = _index(first.time_s - start_s, rate_hz)
        self._from_hz = first.rate_hz
        self._waiting: list[NDArray[Any]] = []
        self._waits = 0
        self._resampler: Any = None
        if first.rate_hz != rate_hz:
            self._resampler = require("av").AudioResampler("fltp", "mono", rate_hz)

    def add(self, channels: NDArray[Any]) -> Iterator[tuple[int, Samples]]:
        self._waiting.append(channels)
        self._waits += channels.shape[1]
        if self._waits >= _CHUNK:
            yield from self._convert()

    def rest(self) -> Iterator[tuple[int, Samples]]:
        yield from self._convert()
        if self._resampler is not None:
            yield from self._placed(self._resampler.resample(None))

    def _convert(self) -> Iterator[tuple[int, Samples]]:
        if not self._waiting:
            return
        samples = _mono(np.concatenate(self._waiting, axis=1))
        self._waiting, self._waits = [], 0
        if self._resampler is None:
            yield self._place, samples
            self._place += len(samples)
            return
        frame = require("av").AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate = self._from_hz
        yield from self._placed(self._resampler.resample(frame))

    def _placed(self, frames: Iterable[Any]) -> Iterator[tuple[int, Samples]]:
        for frame in frames:
            samples: Samples = frame.to_ndarray()[0]
            yield self._place, samples
            self._place += len(samples)


class _Windows:
    """Windows as their sound arrives. What comes twice or lies outside the part is dropped."""

    def __init__(self, video: Video, request: SoundRequest) -> None:
        starts = np.asarray(request.starts_s, dtype=np.float64)
        self._size = _index(request.length_s, request.rate_hz)
        fits = starts.ndim == 1 and np.isfinite(starts).all() and (np.diff(starts) > 0).all()
        if not fits or self._size < 1:
            raise ValueError(
                f"request '{request.name}' needs finite starts_s of shape (u,), increasing, and "
                f"windows of at least a sample; got shape {starts.shape}, {request.length_s} s at "
                f"{request.rate_hz} Hz"
            )
        self._name = request.name
        self._firsts: list[int] = [_index(each, request.rate_hz) for each in starts.tolist()]
        self._next = 0
        self._open: dict[int, Samples] = {}
        self._heard: dict[int, int] = {}
        self._reached = 0
        length_s = None if video.end_s is None else video.end_s - video.start_s
        self._end = None if length_s is None else _index(length_s, request.rate_hz)

    @property
    def done(self) -> bool:
        return self._next == len(self._firsts)

    def offer(self, start: int, samples: Samples) -> Iterator[SoundWindow]:
        """Sound from sample `start` on; the windows that it completes."""
        end = start + len(samples)
        first, last = max(start, self._reached), end if self._end is None else min(end, self._end)
        if first < last:
            self._write(first, samples[first - start : last - start])
            self._reached = last
        while not self.done and self._firsts[self._next] + self._size <= end:
            yield self._take()

    def rest(self) -> Iterator[SoundWindow]:
        """The windows that were not completed before the sound ended."""
        while not self.done:
            yield self._take()

    def _write(self, first: int, samples: Samples) -> None:
        last = first + len(samples)
        for unit in range(self._next, len(self._firsts)):
            begin = self._firsts[unit]
            if begin >= last:
                break
            low, high = max(first, begin), min(last, begin + self._size)
            if low < high:
                window = self._open.setdefault(unit, np.zeros(self._size, np.float32))
                window[low - begin : high - begin] = samples[low - first : high - first]
                self._heard[unit] = self._heard.get(unit, 0) + high - low

    def _take(self) -> SoundWindow:
        unit = self._next
        self._next += 1
        samples = self._open.pop(unit, None)
        if samples is None:
            samples = np.zeros(self._size, np.float32)
        heard = self._heard.pop(unit, 0) / self._size
        return SoundWindow(self._name, unit, samples, heard)


def _index(seconds: float, rate_hz: int) -> int:
    return int(np.floor(seconds * rate_hz + 0.5))


def _sound_stream(video: Video, container: Any, limits: VideoLimits) -> Any | None:
    """The first sound stream that can be decoded; None if the file has no sound stream."""
    streams = container.streams.audio
    known = [each for each in streams if each.codec_context and each.codec_context.sample_rate > 0]
    if streams and not known:
        raise InputError(
            "undecodable",
            f"{video.path} has sound that this FFmpeg has no decoder for; encode its sound as AAC, "
            "or take the sound away (ffmpeg -i IN -c copy -an OUT) if it is meant to have none",
        )
    if not known:
        return None
    stream = known[0]
    codec = stream.codec_context
    limits.check_sound(video.path, codec.layout.nb_channels, codec.sample_rate)
    codec.thread_count = 1
    return stream


def _seek(container: Any, stream: Any, time_s: float) -> None:
    """Go near a time of the file's own clock; a container that cannot stays where it is."""
    errors = require("av").error
    try:
        container.seek(int(time_s / float(stream.time_base)), stream=stream)
    except errors.FFmpegError as error:
        raise _NotThereError from error


def _no_later_than(time_s: float, pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """The pieces; _NotThereError if there is none or the first one begins after `time_s`."""
    rest = iter(pieces)
    first = next(rest, None)
    if first is None or first.time_s > time_s:
        raise _NotThereError
    yield first
    yield from rest


def _all_refused(video: Video, packets: int) -> InputError:
    return InputError(
        "undecodable",
        f"{video.path}: not one sample of its sound could be decoded (packets refused: {packets}); "
        "encode its sound again, or take it away (ffmpeg -i IN -c copy -an OUT) if the "
        "video is meant to have none",
    )
