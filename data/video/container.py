"""Opening a media file with PyAV: which demuxers may, which stream is meant, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data.errors import InputError
from data.video.checks import require
from data.video.limits import VideoLimits
from data.video.types import Video

__all__ = ["FORMATS", "opened", "packets_of"]

FORMATS = (
    "aac,aiff,amr,asf,av1,avi,dv,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp3,mp4,mpeg,"
    "mpegts,mpegvideo,mxf,nut,obu,ogg,rm,vc1,wav,webm,wtv,yuv4mpegpipe"
)
"""Demuxers that may open a file. Playlists (hls, concat, dash, image sequences) are left out: they
make a decoder read other files and addresses than the one that was given."""


@contextmanager
def opened(video: Video, limits: VideoLimits) -> Iterator[tuple[Any, Any]]:
    """The open container and its video stream, ready to be decoded in one thread.

    The first video stream that is not a cover picture is taken.

    Raises:
        InputError: `not-media`, `no-video-stream`, `undecodable`, `too-large`.
    """
    container = _open_container(video)
    try:
        yield container, _video_stream(video, container, limits)
    finally:
        container.close()


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream from where the container is; the last one is empty.

    A stream that appears in the middle (broadcasts) is unknown to PyAV, whose loop then ends with
    an IndexError, at one of its packets or at the end; another one, begun when it is known, goes on
    behind it. So there are no more rounds than streams, of which FFmpeg allows a thousand.
    """
    while True:
        try:
            yield from container.demux(stream)
        except IndexError:
            continue
        return


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
