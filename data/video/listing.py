"""Which videos a run is about: a folder of files or a JSONL list."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UsageError, nearest
from data.foreign import brief, strict_json, text_lines
from data.identity import check_id
from data.video.types import Video

__all__ = ["MEDIA_SUFFIXES", "VideoList", "list_videos"]

# fmt: off
MEDIA_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    ".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".wma",
})
# fmt: on
"""Files of a folder that are taken as inputs. Audio is among them on purpose: a file that someone
put there should appear in quarantine with a reason, not vanish."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|.*\|)")
"""`http://…`, `file:///…`, and what FFmpeg takes for a protocol, as `concat:a|b`."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_LONGEST_PATH = 4096
"""Bytes that a path of Linux may have; no path has more signs than bytes."""

_KEYS = ("video_id", "path", "start_s", "end_s")
_ADVICE = (
    'or give a JSONL list with one {"video_id": ..., "path": ...} per line, where ids are free'
)


@dataclass(frozen=True)
class VideoList:
    """The inputs of a run.

    Args:
        videos: sorted by id; ids are unique.
        ignored: files of the folder that are not media by their name, sorted.
    """

    videos: tuple[Video, ...]
    ignored: tuple[Path, ...] = ()


def list_videos(root: Path) -> VideoList:
    """The videos of a folder (with its subfolders) or of a `.jsonl` list.

    In a folder the id is the file name without its last suffix; hidden files and folders are
    ignored. A list has one JSON object per line: `video_id`, `path` (relative to the list),
    and for a part of a file `start_s`, `end_s` in seconds. Files are not opened.

    Raises:
        UsageError: nothing there, no videos, an id that is not allowed or given twice, a bad line.
    """
    if root.is_dir():
        return _of_folder(root)
    if not root.exists():
        raise UsageError(
            f"{root} does not exist; set videos.root to a folder of videos or to a .jsonl list"
        )
    if root.suffix.lower() not in {".jsonl", ".ndjson"}:
        raise UsageError(
            f"{root} is a single file; set videos.root to the folder that holds it, {_ADVICE}"
        )
    return _of_list(root)


def _of_folder(root: Path) -> VideoList:
    videos: dict[str, Video] = {}
    ignored: list[Path] = []
    for path in _files(root):
        if path.suffix.lower() not in MEDIA_SUFFIXES or path.name.startswith("."):
            ignored.append(path)
            continue
        video = Video(_file_id(path), path)
        if video.id in videos:
            raise UsageError(
                f"{videos[video.id].path} and {path} would both have the id '{video.id}'; "
                f"rename one, {_ADVICE}"
            )
        videos[video.id] = video
    if not videos:
        raise UsageError(
            f"{root} holds no videos ({len(ignored)} other files; known: "
            f"{' '.join(sorted(MEDIA_SUFFIXES))}); put videos there {_ADVICE}"
        )
    _refuse_twins(videos)
    return _sorted(videos, ignored)


def _refuse_twins(videos: Mapping[str, Video]) -> None:
    """Ids that differ in case only are one file on macOS, Windows and SMB: one would be lost."""
    seen: dict[str, str] = {}
    for name in videos:
        twin = seen.setdefault(name.casefold(), name)
        if twin != name:
            raise UsageError(
                f"the ids '{twin}' ({videos[twin].path}) and '{name}' ({videos[name].path}) differ "
                "in upper and lower case only, which many file systems cannot tell apart; "
                f"rename one, {_ADVICE}"
            )


def _files(root: Path) -> Iterator[Path]:
    """All files below `root`; links are followed, but no folder is visited twice."""
    visited: set[tuple[int, int]] = set()
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        status = os.stat(folder)  # noqa: PTH116 - strings are several times faster than Path here
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    yield Path(entry.path)
                elif not entry.name.startswith("."):
                    folders.append(entry.path)


def _file_id(path: Path) -> str:
    try:
        return check_id(path.stem)
    except UsageError as error:
        raise UsageError(f"{path}: {error}, {_ADVICE}") from None


def _of_list(path: Path) -> VideoList:
    videos: dict[str, Video] = {}
    first: dict[str, int] = {}
    for number, row in _rows(path):
        try:
            video = _video(row, path.parent)
            if video.id in videos:
                same = "the same" if video == videos[video.id] else "another"
                raise UsageError(
                    f"video_id '{video.id}' is given twice; line {first[video.id]} has it for "
                    f"{same} video, and ids must be unique: remove or rename one"
                )
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        videos[video.id], first[video.id] = video, number
    if not videos:
        raise UsageError(
            f'{path} lists no videos; add lines such as {{"video_id": "a", "path": "a.mp4"}}'
        )
    try:
        _refuse_twins(videos)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return _sorted(videos, [])


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and JSON values of the non-empty lines."""
    for number, line in text_lines(path, "the list of videos"):
        try:
            yield number, strict_json(line)
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}: not JSON ({error}); each line is one object with "
                f"{', '.join(_KEYS)}"
            ) from error


def _video(row: Any, folder: Path) -> Video:
    if not isinstance(row, dict):
        raise UsageError(f"expected a JSON object, got {type(row).__name__}")
    for key in row:
        if key not in _KEYS:
            raise UsageError(f"unknown key {brief(key)}; {nearest(key[:100], _KEYS)}")
    video_id, path = _text(row, "video_id"), _text(row, "path")
    start_s, end_s = _seconds(row, "start_s"), _seconds(row, "end_s")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise UsageError(f"end_s must be after start_s, got start_s {start_s}, end_s {end_s}")
    return Video(check_id(video_id), folder / _checked_path(path), start_s or 0.0, end_s)


def _checked_path(path: str) -> str:
    if _URL.match(path):
        raise UsageError(
            f"'path' {brief(path)} is a URL; videos are files of this machine: download it first"
        )
    if _CONTROL.search(path) or len(path) > _LONGEST_PATH:
        raise UsageError(
            f"'path' {brief(path)} is no path: it has control characters or more than "
            f"{_LONGEST_PATH} signs"
        )
    return path


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"'{key}' must be a non-empty string, got {brief(value)}")
    return value


def _seconds(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise UsageError(f"'{key}' must be seconds >= 0, got {brief(value)}")
    return float(value)


def _sorted(videos: Mapping[str, Video], ignored: list[Path]) -> VideoList:
    return VideoList(tuple(videos[each] for each in sorted(videos)), tuple(sorted(ignored)))
