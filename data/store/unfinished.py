"""What was done of rows that are not finished: a caption of a part failed, the others are dear.

One small file per row, `unfinished/<16 hex of its key>.json`, beside the shards of its recipe. It
appears at once or not at all, it is no row (no reader sees it), and it goes when the row is
stored. A file whose bytes are not what was written counts as absent: the whole row is made again.
"""

from __future__ import annotations

import zlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict

from data.errors import StoreError
from data.identity import canonical_json, short_digest
from data.store.files import atomic_write, list_folder, parse_json, read_bytes, remove
from data.store.place import Place
from data.store.types import ItemKey

__all__ = ["FOLDER", "MOST_BYTES", "Unfinished"]

FOLDER = "unfinished"
"""Name of the folder inside that of a recipe."""

MOST_BYTES = 16 << 20
"""A part of a video has some dozens of captions of some hundred bytes each."""


class Unfinished:
    """The unfinished rows of one stage under one recipe.

    Args:
        folder: `<store>/<stage>/<recipe_id>`.
    """

    def __init__(self, folder: Place) -> None:
        self.folder = folder / FOLDER

    def keep(self, key: ItemKey, kept: str) -> None:
        """Put down what was done of a row, in place of what was there.

        Raises:
            StoreError: the file system refused; what was there before still is.
            ValueError: it is longer than `MOST_BYTES`, or empty.
        """
        size = len(kept.encode())
        if not 0 < size <= MOST_BYTES:
            raise ValueError(f"to be kept of {key} are {size:,} bytes, not 1 to {MOST_BYTES:,}")
        record = {"key": asdict(key), "kept": kept, "crc32": zlib.crc32(kept.encode())}
        atomic_write(self.folder / _name(key), canonical_json(record).encode())

    def listed(self) -> frozenset[str]:
        """Names of the files that there are, for `of`: one look instead of one for each row.

        Raises:
            StoreError: the disk or server does not answer.
        """
        return frozenset(self._names())

    def of(self, key: ItemKey, listed: Container[str] | None = None) -> str:
        """What was kept of a row; "" if nothing is, or it is damaged.

        Args:
            key: that of the row.
            listed: what there was when it was listed; other rows are not looked up.

        Raises:
            StoreError: the disk or server does not answer.
        """
        name = _name(key)
        if listed is not None and name not in listed:
            return ""
        return (self._read(name) or (key, ""))[1]

    def forget(self, keys: Iterable[ItemKey]) -> None:
        """These rows are stored now.

        Raises:
            StoreError: the file system refused.
        """
        for key in keys:
            remove(self.folder / _name(key))

    def sweep(self, stored: Container[ItemKey]) -> int:
        """Remove what belongs to rows that are stored (a kill came before `forget`); how many.

        Raises:
            StoreError: the file system refused.
        """
        gone = [key for key in self.keys() if key in stored]
        self.forget(gone)
        return len(gone)

    def any(self) -> bool:
        """Whether anything is kept."""
        return next(self._names(), None) is not None

    def keys(self) -> list[ItemKey]:
        """The rows of which something is kept, those with damaged files left out.

        Raises:
            StoreError: the disk or server does not answer.
        """
        return [key for key, _ in filter(None, map(self._read, self._names()))]

    def damaged(self) -> list[str]:
        """Names of files that are not what was written; nothing is made of them."""
        return [name for name in self._names() if self._read(name) is None]

    def _names(self) -> Iterator[str]:
        names = (each.name for each in list_folder(self.folder) if not each.is_folder)
        return (name for name in names if name.endswith(".json"))

    def _read(self, name: str) -> tuple[ItemKey, str] | None:
        """Key and text of a file; None if it is not there or not what was written."""
        try:
            content = read_bytes(self.folder / name)
        except FileNotFoundError:
            return None
        try:
            record = parse_json(content, self.folder / name)
            key, kept = ItemKey(**record["key"]), str(record["kept"])
            whole = record.get("crc32") == zlib.crc32(kept.encode()) and _name(key) == name
        except (StoreError, KeyError, TypeError, ValueError):  # half a surrogate pair is the last
            return None
        return (key, kept) if whole else None


def _name(key: ItemKey) -> str:
    return f"{short_digest(asdict(key))}.json"
