"""What the toy stage `talks` left: captions, batches, shards; and who hears what a run says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from data.store import Store
from pipeline.progress import Progress


def said(store: Path) -> dict[str, list[str]]:
    """The captions of each video."""
    reader = Store.open(store).reader("talks")
    return {id_: list(reader.row(id_).texts["caption"]) for id_ in reader.ids()}


def whole(*ids: str) -> dict[str, list[str]]:
    return {id_: [f"{id_}@{second}" for second in range(8)] for id_ in ids}


def batches(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()]


def times_made(log: Path) -> Counter[str]:
    return Counter(caption for batch in batches(log) for caption in batch)


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "store" / "talks").rglob("shard-*.h5"))


def talks(log: Path, **options: Any) -> dict[str, Any]:
    return {"talks": {"log": str(log), "part": 2} | options}


class Hearing(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
