"""Small records beside the shards: catalogue, hashes of input files, failures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data.errors import StoreError
from data.store.files import (
    append_records,
    change_file,
    parse_records,
    read_bytes,
    read_records,
    records_bytes,
)
from data.store.place import Place
from data.store.types import ItemKey
from data.video.types import VideoFacts

__all__ = [
    "CatalogueEntry",
    "Failure",
    "FailureLog",
    "FileHashes",
    "catalogue_entry",
    "failure_of",
    "probed_entry",
    "read_catalogue",
    "update_catalogue",
]

_MAX_MESSAGE = 2_000
_MAX_LOG = 8_000


@dataclass(frozen=True)
class CatalogueEntry:
    """What a video is now.

    Args:
        video_id: the video.
        content: 64 hex of its present content.
        facts: what probing found.
    """

    video_id: str
    content: str
    facts: VideoFacts


def read_catalogue(path: Place) -> dict[str, CatalogueEntry]:
    """Entries by video id; StoreError for a damaged file."""
    try:
        return _entries(parse_records(read_bytes(path), path), path)
    except FileNotFoundError:
        return {}


def catalogue_entry(row: Mapping[str, Any]) -> CatalogueEntry:
    """The entry of a record; KeyError or TypeError if it is none."""
    return CatalogueEntry(row["video_id"], row["content"], VideoFacts(**row["facts"]))


def probed_entry(key: ItemKey, facts: Mapping[str, Any]) -> CatalogueEntry:
    """The entry of a video, from its row of the stage `probe`."""
    names = {each.name for each in fields(VideoFacts)}
    known = {name: value for name, value in facts.items() if name in names}
    return CatalogueEntry(key.id, key.content, VideoFacts(**known))


def _entries(rows: Iterable[Mapping[str, Any]], path: Place) -> dict[str, CatalogueEntry]:
    try:
        entries = [catalogue_entry(row) for row in rows]
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{path} has a row that is no catalogue entry ({error}); "
            "`pipeline repair` keeps the whole rows and makes the others again"
        ) from error
    return {entry.video_id: entry for entry in entries}


def update_catalogue(path: Place, entries: Iterable[CatalogueEntry]) -> None:
    """Merge into the file and replace it at once; two jobs may do so at the same time."""
    new = {entry.video_id: entry for entry in entries}

    def merged(content: bytes | None) -> bytes:
        old = _entries(parse_records(content or b"", path), path)
        both = old | new
        if content is not None and both == old:
            return content
        return records_bytes(asdict(both[video_id]) for video_id in sorted(both))

    if new:
        change_file(path, merged)


@dataclass(frozen=True)
class Failure:
    """An input in quarantine.

    Args:
        stage: the stage that gave up on it.
        key: which part of which content of which item.
        reason: short machine-readable code.
        message: a sentence for a person.
        attempts: how often it was tried.
        log: excerpt of what the worker said.
    """

    stage: str
    key: ItemKey
    reason: str
    message: str
    attempts: int
    log: str = ""


def failure_of(record: Mapping[str, Any]) -> tuple[ItemKey, Failure | None]:
    """A record of a `FailureLog`: which item, and its failure, None if it was forgotten.

    KeyError or TypeError if it is none.
    """
    key = ItemKey(**record["key"])
    return key, None if record.get("forgotten") else Failure(**{**record, "key": key})


class FailureLog:
    """`failures.jsonl` of one stage and recipe: every attempt that ended in quarantine.

    A success later on does not change it: who asks what is in quarantine takes away the keys
    that are present. Lines that a killed job left half written are skipped: the item is tried
    again.

    Args:
        path: the file; need not exist.
    """

    def __init__(self, path: Place) -> None:
        self.path = path

    def read(self) -> dict[tuple[str, str, int], Failure]:
        """The last failure of each (id, content, part) that was not forgotten since."""
        failures: dict[tuple[str, str, int], Failure] = {}
        for record in read_records(self.path, torn=True):
            try:
                key, failure = failure_of(record)
                failures.pop((key.id, key.content, key.part), None)
                if failure is not None:
                    failures[key.id, key.content, key.part] = failure
            except (KeyError, TypeError) as error:
                raise StoreError(
                    f"{self.path} has a row that is no failure ({error}); `pipeline repair` "
                    "leaves it out, then `pipeline run` tries that input again"
                ) from error
        return failures

    def record(self, failure: Failure) -> None:
        """Add one failure; overlong messages and logs are cut in the middle, and say so."""
        record = asdict(failure) | {
            "message": _cut(failure.message, _MAX_MESSAGE),
            "log": _cut(failure.log, _MAX_LOG),
        }
        append_records(self.path, [record])

    def forget(self, keys: Iterable[ItemKey]) -> None:
        """Take items out of quarantine (`--retry-failed`)."""
        records = [{"key": asdict(key), "forgotten": True} for key in keys]
        if records:
            append_records(self.path, records)


class FileHashes:
    """Remembers the sha256 of files that did not change.

    Change time and inode count beside size and modification time: `cp -p` and `rsync -t` put
    another file in place with the time, and perhaps the size, of the one before.

    A cache: it may be deleted at any time, and a path in it means something on one host only.

    Args:
        path: the file of the cache; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[str, tuple[Any, ...]]] | None = None

    def hash_of(self, path: Path) -> str | None:
        """The remembered sha256; None if there is none or the file changed or is gone."""
        if self._known is None:
            self._known = self._read()
        sha256, stamp = self._known.get(str(path.absolute()), ("", ()))
        return sha256 if len(sha256) == 64 and _stamp_now(path) == stamp else None

    def knows(self, path: Path) -> bool:
        """Whether the file, as it is or as it was before, was ever hashed on this machine."""
        if self._known is None:
            self._known = self._read()
        return str(path.absolute()) in self._known

    def remember(self, path: Path, sha256: str, before: os.stat_result) -> None:
        """Keep a hash for as long as the file is as it was `before` hashing began."""
        stamp, name = _stamp(before), str(path.absolute())
        if self._known is not None:
            self._known[name] = (sha256, stamp)
        record = {"path": name, "sha256": sha256, **dict(zip(_STAMP, stamp, strict=True))}
        append_records(self.path, [record], durable=False)

    def _read(self) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """Only who asks holds them all: a driver that only remembers does not grow."""
        known = {}
        for record in read_records(self.path, torn=True):
            sha256 = record.get("sha256")
            stamp = tuple(record.get(name) for name in _STAMP)
            if None in stamp:  # earlier versions wrote less of a file
                continue
            if isinstance(record.get("path"), str) and isinstance(sha256, str):
                known[record["path"]] = (sha256, stamp)
        return known


_STAMP = ("size", "mtime_ns", "ctime_ns", "inode")


def _stamp(stat: os.stat_result) -> tuple[Any, ...]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _stamp_now(path: Path) -> tuple[Any, ...] | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters cut …\n{text[-half:]}"
