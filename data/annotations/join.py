"""Caption files put together video by video, without the videos of others.

So the train split of ActivityNet-CD is made, which its public copies lack: the three files of
ActivityNet Captions (train, val_1, val_2) without the videos of the other three files of
ActivityNet-CD (val, test_iid, test_ood) hold 10,984 videos and 51,415 queries, the numbers of the
publication. Sentences of a video are in the order of the files, as in the published ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.annotations.videos import Sentence, read_sentences, read_videos
from data.errors import UsageError, some

__all__ = ["Joined", "joined"]

_PLAIN = {"duration", "timestamps", "sentences"}

_SAME_S = 0.01
"""Durations of one video in two files may differ by their rounding."""


@dataclass(frozen=True)
class Joined:
    """Captions by video, in the form of ActivityNet Captions.

    Args:
        videos: `{video: {duration, timestamps, sentences}}`.
        left_out: videos of the files that were left out.
        unknown: videos to be left out that are in none of the files.
    """

    videos: dict[str, dict[str, Any]]
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def queries(self) -> int:
        """How many sentences there are."""
        return sum(len(video["sentences"]) for video in self.videos.values())


def joined(files: Sequence[Path], without: Sequence[Path] = ()) -> Joined:
    """All sentences of the videos of `files` that are in none of `without`.

    Args:
        files: caption files; a video may be in several.
        without: caption files whose videos are left out.

    Raises:
        UsageError: a file that is named twice or cannot be read; a wrong sentence; a video with
            further fields, or of different lengths in two files; nothing is left; a file of
            `without` has not one video of `files`.
    """
    for i, path in enumerate(every := [*files, *without]):
        if os.path.realpath(path) in map(os.path.realpath, every[:i]):
            raise UsageError(f"'{path}' is named twice; its sentences would count twice, or never")
    videos: dict[str, dict[str, Any]] = {}
    for path in files:
        for record in read_sentences(path, Sentence):
            record.annotation()
        for video, entry in read_videos(path).items():
            _add(videos, video, entry, path)
    excluded: dict[str, Path] = {}
    for path in without:
        others = read_videos(path)
        if not videos.keys() & others.keys():
            raise UsageError(f"not one video of {path} is in {some([str(p) for p in files])}")
        excluded |= dict.fromkeys(others, path)
    kept = {video: entry for video, entry in videos.items() if video not in excluded}
    if not kept:
        raise UsageError(f"no video is left of {some([str(path) for path in files])}")
    gone = tuple(video for video in videos if video in excluded)
    return Joined(kept, gone, tuple(video for video in excluded if video not in videos))


def _add(videos: dict[str, dict[str, Any]], video: str, entry: dict[str, Any], path: Path) -> None:
    where = f"{path}, video {video!r}"
    if more := sorted(entry.keys() - _PLAIN):
        raise UsageError(f"{where}: has {', '.join(more)}, which cannot be joined")
    there = videos.setdefault(
        video, {"duration": entry["duration"], "timestamps": [], "sentences": []}
    )
    if abs(there["duration"] - entry["duration"]) > _SAME_S:
        raise UsageError(
            f"{where}: lasts {entry['duration']:g} s here and {there['duration']:g} s in a file "
            "before; these are not the same videos"
        )
    for name in ("timestamps", "sentences"):
        there[name] += entry[name]
