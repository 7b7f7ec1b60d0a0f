"""What the pipeline is asked to work on: videos of a folder or list, queries of annotations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.annotations.types import Annotation
from data.identity import query_id
from data.store.types import ItemKey
from data.video.types import Video
from pipeline.engine.content import video_content
from pipeline.engine.types import UNKNOWN_CONTENT
from pipeline.stage import Item

__all__ = ["Corpus", "query_items"]


@dataclass(frozen=True)
class Corpus:
    """The inputs of a run, in the order in which they are worked on.

    Args:
        videos: the videos.
        queries: one item per different sentence.
        imported: videos that are known by their imported rows alone, without files.
    """

    videos: tuple[Video, ...] = ()
    queries: tuple[Item, ...] = ()
    imported: tuple[Item, ...] = ()

    def first(self, limit: int | None) -> Corpus:
        """The first `limit` videos and the first `limit` queries; all of them for None."""
        if limit is None:
            return self
        return Corpus(self.videos[:limit], self.queries[:limit], self.imported[:limit])

    def video_items(self, hash_of: Callable[[Path], str | None]) -> list[Item]:
        """Every video with its content, as far as its file has been hashed before.

        Args:
            hash_of: remembered sha256 of a file; None if there is none or the file has changed.
        """
        hashes: dict[Path, str | None] = {}
        items = list(self.imported)
        for video in self.videos:
            if video.path not in hashes:
                # A file that is not there has no content; its stage will say why.
                with suppress(OSError):
                    hashes[video.path] = hash_of(video.path)
            sha256 = hashes.get(video.path)
            content = UNKNOWN_CONTENT if sha256 is None else video_content(video, sha256)
            items.append(Item(ItemKey(video.id, content), video=video))
        return items


def query_items(splits: Mapping[str, Iterable[Annotation]]) -> tuple[Item, ...]:
    """One item per different sentence of all splits, in order of first appearance."""
    items: dict[str, Item] = {}
    for rows in splits.values():
        for row in rows:
            name = query_id(row.query)
            if name not in items:
                content = hashlib.sha256(row.query.encode()).hexdigest()
                items[name] = Item(ItemKey(name, content), text=row.query)
    return tuple(items.values())
