"""The content of a video: what changes when the file, or the part of it that is meant, changes."""

from __future__ import annotations

import os

from data.errors import InputError
from data.foreign import kind_of_file
from data.identity import digest, file_sha256
from data.video.types import Video
from pipeline.engine.types import FileHash
from pipeline.stage import Item

__all__ = ["Watch", "is_readable", "read_content", "stamp_of", "video_content"]


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
    kind = kind_of_file(video.path)
    if kind not in ("file", "does not exist"):
        # reading a pipe or a device never ends
        raise InputError("missing", f"{video.path} {kind}; correct the list or put the file there")
    try:
        stat = video.path.stat()
        sha256 = file_sha256(video.path)
    except FileNotFoundError:
        raise InputError("missing", f"there is no file {video.path}") from None
    except OSError as error:
        raise InputError("unreadable", f"cannot read {video.path}: {error.strerror}") from error
    return video_content(video, sha256), FileHash(video.path, sha256, stat)


def is_readable(video: Video | None) -> bool:
    """Whether this machine can read the file of a video."""
    return (
        video is not None and kind_of_file(video.path) == "file" and os.access(video.path, os.R_OK)
    )


def stamp_of(stat: os.stat_result) -> tuple[int, int]:
    """What `Item.stamp` holds: size in bytes and modification time in ns."""
    return stat.st_size, stat.st_mtime_ns


class Watch:
    """Tells whether an item's file is still the one whose content is in its key.

    Rows of a file that was replaced while it was worked on would be stored under the content of
    the file before. The item's stamp is compared as it was when the content was read; from now on
    inode and change time count, too, so that a file of the same size and time is noticed.

    Args:
        item: the item; one without a video never changes.
    """

    def __init__(self, item: Item) -> None:
        self._path = None if item.video is None else item.video.path
        self._before = self._now()
        stat = self._before
        self._late = item.stamp is not None and stat is not None and stamp_of(stat) != item.stamp

    @property
    def changed(self) -> bool:
        """Whether the file is another one; one that is gone is told by who reads it."""
        now = self._now()
        if self._late:
            return True
        if self._before is None or now is None:
            return False
        return _identity(now) != _identity(self._before)

    def _now(self) -> os.stat_result | None:
        try:
            return None if self._path is None else self._path.stat()
        except OSError:
            return None


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
