"""Small records beside the shards: catalogue, hashes of input files, failures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import StoreError
from data.store.files import append_records, atomic_write, exclusive, read_records, records_bytes
from data.store.types import ItemKey
from data.video.types import VideoFacts

__all__ = [
    "CatalogueEntry",
    "Failure",
    "FailureLog",
    "FileHashes",
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


def read_catalogue(path: Path) -> dict[str, CatalogueEntry]:
    """Entries by video id; StoreError for a damaged file."""
    try:
        entries = [
            CatalogueEntry(row["video_id"], row["content"], VideoFacts(**row["facts"]))
            for row in read_records(path)
        ]
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{path} has a row that is no catalogue entry ({error}); "
            "remove the file, then `pipeline run --stage probe` writes it again"
        ) from error
    return {entry.video_id: entry for entry in entries}


def update_catalogue(path: Path, entries: Iterable[CatalogueEntry]) -> None:
    """Merge into the file and replace it at once; two jobs may do so at the same time."""
    new = {entry.video_id: entry for entry in entries}
    with exclusive(path.parent):
        old = read_catalogue(path)
        merged = old | new
        if merged != old:
            atomic_write(path, records_bytes(asdict(merged[id]) for id in sorted(merged)))


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


class FailureLog:
    """`failures.jsonl` of one stage and recipe: every attempt that ended in quarantine.

    A success later on does not change it: who asks what is in quarantine takes away the keys
    that are present. Lines that a killed job left half written are skipped: the item is tried
    again.

    Args:
        path: the file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[tuple[str, str, int], Failure]:
        """The last failure of each (id, content, part) that was not forgotten since."""
        failures: dict[tuple[str, str, int], Failure] = {}
        for record in read_records(self.path, torn=True):
            try:
                key = ItemKey(**record["key"])
                failures.pop((key.id, key.content, key.part), None)
                if not record.get("forgotten"):
                    failures[key.id, key.content, key.part] = Failure(**record | {"key": key})
            except (KeyError, TypeError) as error:
                raise StoreError(
                    f"{self.path} has a row that is no failure ({error}); remove the file, then "
                    "`pipeline run` tries those inputs again"
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
    """Remembers the sha256 of files whose size and modification time did not change.

    A cache: it may be deleted at any time, and a path in it means something on one host only.

    Args:
        path: the file of the cache; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Mapping[str, Any]] = {}
        for record in read_records(path, torn=True):
            if isinstance(record.get("path"), str):
                self._known[record["path"]] = record

    def hash_of(self, path: Path) -> str | None:
        """The remembered sha256; None if there is none or the file changed or is gone."""
        record = self._known.get(str(path.absolute()), {})
        sha256, stamp = record.get("sha256"), (record.get("size"), record.get("mtime_ns"))
        usable = isinstance(sha256, str) and len(sha256) == 64 and _stamp_now(path) == stamp
        return str(sha256) if usable else None

    def remember(self, path: Path, sha256: str, before: os.stat_result) -> None:
        """Keep a hash for as long as the file is as it was `before` hashing began."""
        size, mtime_ns = _stamp(before)
        name = str(path.absolute())
        record = {
            "path": name,
            "size": size,
            "mtime_ns": mtime_ns,
            "sha256": sha256,
        }
        self._known[name] = record
        append_records(self.path, [record], durable=False)


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _stamp_now(path: Path) -> tuple[int, int] | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters cut …\n{text[-half:]}"
