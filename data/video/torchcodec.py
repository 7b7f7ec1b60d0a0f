"""The optional third decoder: torchcodec, on the FFmpeg 4 to 8 that the machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.video.checks import check_container, check_file, no_frames_in_part, require, unheard
from data.video.container import opened
from data.video.convert import Converter
from data.video.limits import DEFAULT_LIMITS
from data.video.plan import Span
from data.video.select import Allocate, Picture, Selection, new_array
from data.video.types import FrameRequest, Video, VideoFacts, Window

__all__ = ["TorchCodecDecoder"]


_ALSO = (
    "it also needs the system's FFmpeg 4 to 8 (libavcodec and its companions; package 'ffmpeg'), "
    "which decoder 'pyav' brings along"
)


class TorchCodecDecoder:
    """Decodes with torchcodec in this process, one thread, on the CPU.

    PyAV opens the file first, so that the same files are refused for the same reasons and the same
    stream is taken. torchcodec gives upright RGB frames at full size; they go through the same
    filters as PyAV's, so the pixels differ by the extra rounding to RGB before scaling, and by
    those of another FFmpeg's converter. What else differs from PyAV: every frame up to the last
    wanted one is decoded and made RGB; it cannot skip a broken packet (the video is
    `undecodable`), and files whose timestamps it gives out of order (AVI) are `undecodable`, too.
    """

    name = "torchcodec"

    def __init__(self) -> None:
        self._library = require("torchcodec.decoders", extra="torchcodec", also=_ALSO)
        self.progress: Callable[[], None] = unheard
        self.limits = DEFAULT_LIMITS
        self.allocate: Allocate = new_array

    def probe(self, video: Video) -> VideoFacts:
        """Decode the whole (part of the) video without keeping pictures."""
        size_bytes = check_file(video.path)
        reader, has_audio = self._opened(video)
        frames, shape, end_s = 0, (0, 0), 0.0
        for time_s, frame in self._frames(video, reader):
            shape = tuple(frame.data.shape[:2]) if frames == 0 else shape
            frames += 1
            end_s = time_s + frame.duration_seconds
        end_s += video.start_s
        about = reader.metadata
        return VideoFacts(
            duration_s=(end_s if video.end_s is None else min(end_s, video.end_s)) - video.start_s,
            fps=float(about.average_fps or 0),
            frames=frames,
            width=shape[1],
            height=shape[0],
            rotation=round(about.rotation or 0),
            codec=about.codec or "unknown",
            pix_fmt=about.pixel_format or "rgb24",
            size_bytes=size_bytes,
            has_audio=has_audio,
            damaged=0,
        )

    def windows(self, video: Video, requests: Sequence[FrameRequest]) -> Iterator[Window]:
        """Serve all requests from one sequential pass, which ends when the last one is served."""
        check_file(video.path)
        reader, _ = self._opened(video)
        yield from Selection(requests, self.allocate).serve(self._pictures(video, reader))

    def _pictures(self, video: Video, reader: Any) -> Iterator[tuple[float, Picture]]:
        converter = Converter()
        for time_s, frame in self._frames(video, reader):
            pixels: NDArray[np.uint8] = frame.data.numpy()
            yield time_s, converter.rgb_picture(pixels)

    def _opened(self, video: Video) -> tuple[Any, bool]:
        """The reader of the stream that PyAV would decode, and whether the file has sound."""
        with opened(video, self.limits) as (container, stream):
            index, has_audio = stream.index, bool(container.streams.audio)
        check_container(video.path, self.name)
        try:
            reader = self._library.VideoDecoder(
                # An absolute path is never read as a protocol, as `concat:a|b` would be.
                str(video.path.absolute()),
                stream_index=index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cpu",
            )
        except (RuntimeError, ValueError) as error:
            raise _undecodable(video, "cannot be opened by torchcodec", error) from error
        self.limits.check_frames(video.path, len(reader))
        self.limits.check_time(video.path, float(reader.metadata.end_stream_seconds or 0))
        return reader, has_audio

    def _frames(self, video: Video, reader: Any) -> Iterator[tuple[float, Any]]:
        """Frames of the part with seconds from its start; those before it are decoded, too."""
        begin_s, span = float(reader.metadata.begin_stream_seconds or 0), Span.of(video)
        last_s, inside = float("-inf"), 0
        for index in range(len(reader)):
            try:
                frame = reader.get_frame_at(index)
            except (RuntimeError, IndexError, ValueError) as error:
                where = f"stopped torchcodec at frame {index} of {len(reader)}"
                raise _undecodable(video, where, error) from error
            self.progress()
            time_s = float(frame.pts_seconds) - begin_s
            if not time_s > last_s:
                what = f"has times that do not increase ({last_s:g} s, then {time_s:g} s)"
                raise _undecodable(video, what, None)
            last_s = time_s
            self.limits.check_picture(video.path, frame.data.shape[1], frame.data.shape[0])
            self.limits.check_time(video.path, time_s)
            if time_s >= span.end_s:
                break
            if time_s >= span.start_s:
                inside += 1
                yield time_s - video.start_s, frame
        if not inside:
            raise no_frames_in_part(video)


def _undecodable(video: Video, what: str, error: Exception | None) -> InputError:
    said = f" ({(str(error).strip().splitlines() or [''])[0][:200]})" if error else ""
    return InputError(
        "undecodable", f"{video.path} {what}{said}; use decoder 'pyav', which reads more files"
    )
