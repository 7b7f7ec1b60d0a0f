"""The content of a video: what changes when the file, or the part of it that is meant, changes."""

from __future__ import annotations

from data.errors import InputError
from data.identity import digest, file_sha256
from data.video.types import Video
from pipeline.engine.types import FileHash

__all__ = ["read_content", "video_content"]


def video_content(video: Video, sha256: str) -> str:
    """64 hex of a video whose file has this sha256; the same if the whole file is meant."""
    if video.start_s == 0.0 and video.end_s is None:
        return sha256
    return digest({"file": sha256, "start_s": video.start_s, "end_s": video.end_s})


def read_content(video: Video) -> tuple[str, FileHash]:
    """Read the whole file once.

    Returns:
        The content of the video, and the hash of its file to remember.

    Raises:
        InputError: `missing` or `unreadable`.
    """
    try:
        stat = video.path.stat()
        sha256 = file_sha256(video.path)
    except FileNotFoundError:
        raise InputError("missing", f"there is no file {video.path}") from None
    except OSError as error:
        raise InputError("unreadable", f"cannot read {video.path}: {error.strerror}") from error
    return video_content(video, sha256), FileHash(video.path, sha256, stat)
