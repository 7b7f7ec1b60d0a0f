"""A store on disk: folders of shards, and the few small files beside them.

    store.json                     schema version, dataset, clip length, current recipe per stage
    videos.jsonl                   present content and facts of each video
    annotations/<split>.jsonl      queries and moments
    cache/                         may be deleted at any time
    <stage>/<recipe_id>/           recipe.json, shard-<16 hex>.h5, failures.jsonl

The set of complete shards is the truth. Writers need no lock: a shard appears at once under a
name that carries its hash, and the same row twice does no harm.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from data.annotations.jsonl import jsonl_bytes, read_jsonl, save_jsonl
from data.annotations.types import Annotation
from data.errors import StoreError, UsageError, nearest
from data.identity import check_id, file_sha256
from data.store.files import atomic_write, exclusive, read_json
from data.store.item import EncodedItem, encode_item
from data.store.reader import Problem, StageReader, shard_paths
from data.store.recipes import check_schema_version, load_recipe, save_recipe
from data.store.records import (
    CatalogueEntry,
    FailureLog,
    FileHashes,
    read_catalogue,
    update_catalogue,
)
from data.store.shard import build_shard
from data.store.types import SCHEMA_VERSION, ItemKey, Recipe, Row

__all__ = ["ShardRef", "ShardWriter", "Store"]


@dataclass(frozen=True)
class ShardRef:
    """A shard that is on disk; small and picklable.

    Args:
        stage: name of the stage.
        recipe_id: id of its recipe.
        name: name of the file.
        keys: what is in it.
        size_bytes: size of the file.
    """

    stage: str
    recipe_id: str
    name: str
    keys: tuple[ItemKey, ...]
    size_bytes: int


class ShardWriter:
    """Collects rows of one stage under one recipe and writes them as shards.

    As a context manager it writes what is pending at the end, unless an error is on its way:
    rows that were not acknowledged by a `ShardRef` are not on disk.

    Args:
        folder: `<store>/<stage>/<recipe_id>`; `recipe.json` is written if it is not there.
        recipe: the recipe of the rows.
        clip_len_s: clip length of the store.
        target_bytes: a shard is written as soon as so much is pending.
    """

    def __init__(self, folder: Path, recipe: Recipe, clip_len_s: float, target_bytes: int) -> None:
        self.folder = folder
        self.recipe = recipe
        self._clip_len_s = clip_len_s
        self._target_bytes = target_bytes
        self._items: dict[ItemKey, EncodedItem] = {}
        self.pending_bytes = 0
        """About how large the next shard would be."""
        save_recipe(folder, recipe)

    @property
    def pending(self) -> tuple[ItemKey, ...]:
        """Keys of the rows that are not on disk yet."""
        return tuple(self._items)

    def add(self, row: Row) -> ShardRef | None:
        """Check a row and keep it; gives the shard if one was written with it.

        Raises:
            StoreError: the row does not fit what its stage declared, its clips are not those of
                the store, or it was added before; earlier rows stay pending.
        """
        stage = self.recipe.stage
        if row.grid is not None and row.grid.clip_len_s != self._clip_len_s:
            raise StoreError(
                f"stage '{stage}', item '{row.key.id}': has clips of {row.grid.clip_len_s} s in "
                f"a store of clips of {self._clip_len_s} s"
            )
        if row.key in self._items:
            raise StoreError(f"stage '{stage}': {row.key} was added twice")
        item = encode_item(row, self.recipe.schema, stage)
        self._items[row.key] = item
        self.pending_bytes += item.size_bytes
        return self.flush() if self.pending_bytes >= self._target_bytes else None

    def flush(self) -> ShardRef | None:
        """Write what is pending, in the order of its keys; None if nothing is.

        Raises:
            StoreError: the file system refused; the rows stay pending.
        """
        if not self._items:
            return None
        keys = sorted(self._items, key=lambda key: (key.id, key.content, key.parts, key.part))
        shard = build_shard(self.recipe, [self._items[key] for key in keys])
        sha256 = hashlib.sha256(shard).hexdigest()
        path = self.folder / f"shard-{sha256[:16]}.h5"
        # One that is there may be damaged; then the same rows mend it.
        if not (path.exists() and file_sha256(path) == sha256):
            atomic_write(path, shard)
        self._items.clear()
        self.pending_bytes = 0
        return ShardRef(self.recipe.stage, self.recipe.id, path.name, tuple(keys), len(shard))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.flush()


class Store:
    """One store. Make it with `create`, `open` or `open_or_create`; it may be pickled.

    Args:
        path: the folder.
        dataset: name of the dataset.
        clip_len_s: length of the clips of every grid in it.
    """

    def __init__(self, path: Path, dataset: str, clip_len_s: float) -> None:
        self.path = path
        self.dataset = dataset
        self.clip_len_s = clip_len_s

    @classmethod
    def create(cls, path: Path, *, dataset: str, clip_len_s: float) -> Store:
        """A new, empty store; UsageError if there is one or the folder holds something else."""
        path = Path(path)
        check_id(dataset, what="dataset name")
        if not (math.isfinite(clip_len_s) and clip_len_s > 0):
            raise UsageError(f"clip length must be above 0 seconds, got {clip_len_s}")
        # Hidden files may be what a killed `create` left behind.
        if path.exists() and not (path.is_dir() and all(map(_is_hidden, path.iterdir()))):
            raise UsageError(f"{path} exists and is not empty; name a new folder for the store")
        content = {
            "schema_version": SCHEMA_VERSION,
            "dataset": dataset,
            "clip_len_s": float(clip_len_s),
            "current": {},
        }
        atomic_write(path / "store.json", _pretty(content))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Store:
        """The store in a folder.

        Raises:
            UsageError: no such folder, or it holds no store.
            StoreError: a store of another schema version, or a damaged `store.json`.
        """
        path = Path(path)
        if not (path / "store.json").is_file():
            what = "holds no store (no store.json)" if path.is_dir() else "does not exist"
            raise UsageError(f"store {path} {what}; `pipeline run` makes one, or name another")
        content = _store_json(path)
        return cls(path, content["dataset"], content["clip_len_s"])

    @classmethod
    def open_or_create(cls, path: Path, *, dataset: str, clip_len_s: float) -> Store:
        """The store in a folder, made if there is none.

        Raises:
            UsageError: there is one of another dataset or clip length.
        """
        path = Path(path)
        if not (path / "store.json").is_file():
            try:
                return cls.create(path, dataset=dataset, clip_len_s=clip_len_s)
            except UsageError:
                # Another job may have made it since.
                if not (path / "store.json").is_file():
                    raise
        store = cls.open(path)
        if (store.dataset, store.clip_len_s) != (dataset, clip_len_s):
            raise UsageError(
                f"store {path} holds dataset '{store.dataset}' in clips of {store.clip_len_s:g} s, "
                f"asked for is '{dataset}' in clips of {clip_len_s:g} s; "
                "name another store, or correct the configuration"
            )
        return store

    @property
    def current(self) -> dict[str, str]:
        """Which recipe of each stage is the current one, read from the disk each time."""
        return dict(_store_json(self.path)["current"])

    def set_current(self, recipes: Mapping[str, str]) -> None:
        """Make recipes (stage to recipe id) the current ones; other stages keep theirs."""
        with exclusive(self.path):
            content = _store_json(self.path)
            current = content["current"] | dict(recipes)
            if current != content["current"]:
                text = _pretty(content | {"current": current})
                atomic_write(self.path / "store.json", text)

    def stages(self) -> list[str]:
        """Stages that have rows or a recipe, sorted."""
        folders = [each for each in self.path.iterdir() if each.is_dir()]
        return sorted(each.name for each in folders if any(each.glob("*/recipe.json")))

    def recipes(self, stage: str) -> list[str]:
        """Recipe ids of a stage, current or not, sorted."""
        return sorted(each.parent.name for each in (self.path / stage).glob("*/recipe.json"))

    def recipe(self, stage: str, recipe_id: str | None = None) -> Recipe:
        """A recipe, checked against the name of its folder; None is the current one."""
        return load_recipe(self.folder(stage, recipe_id))

    def folder(self, stage: str, recipe_id: str | None = None) -> Path:
        """Where the shards of a recipe are; None is the current one.

        Raises:
            StoreError: no recipe of the stage is current.
        """
        check_id(stage, what="stage name")
        recipe_id = recipe_id or self.current.get(stage)
        if recipe_id is None:
            raise StoreError(
                f"store {self.path} has no stage '{stage}' ({nearest(stage, self.current)}); "
                f"run `pipeline run --stage {stage}`"
            )
        return self.path / stage / check_id(recipe_id, what="recipe id")

    def shards(self, stage: str, recipe_id: str | None = None) -> list[Path]:
        """The shard files of a recipe, in name order."""
        return shard_paths(self.folder(stage, recipe_id))

    def writer(self, recipe: Recipe, *, target_bytes: int = 128 << 20) -> ShardWriter:
        """A writer of rows under a recipe. It does not make the recipe the current one."""
        folder = self.folder(recipe.stage, recipe.id)
        return ShardWriter(folder, recipe, self.clip_len_s, target_bytes)

    def reader(
        self, stage: str, recipe_id: str | None = None, *, strict: bool = True
    ) -> StageReader:
        """A reader of the rows that are there now.

        Args:
            stage: name of the stage.
            recipe_id: which recipe, none of whose rows need be there; None is the current one.
            strict: False skips shards that cannot be trusted and lists them in `.problems`.

        Raises:
            StoreError: the stage was never run, or a shard cannot be trusted.
        """
        folder = self.folder(stage, recipe_id)
        recipe = load_recipe(folder) if (folder / "recipe.json").is_file() else None
        return StageReader(folder, recipe, self._contents, strict=strict)

    def failures(self, stage: str, recipe_id: str | None = None) -> FailureLog:
        """The quarantine of a stage under a recipe; None is the current one."""
        return FailureLog(self.folder(stage, recipe_id) / "failures.jsonl")

    def catalogue(self) -> dict[str, CatalogueEntry]:
        """Present content and facts of each video, by id."""
        return read_catalogue(self.path / "videos.jsonl")

    def update_catalogue(self, entries: Iterable[CatalogueEntry]) -> None:
        """Add or replace entries; the file is replaced at once."""
        update_catalogue(self.path / "videos.jsonl", entries)

    def file_hashes(self) -> FileHashes:
        """Remembered hashes of input files."""
        return FileHashes(self.path / "cache" / "files.jsonl")

    def save_annotations(self, split: str, rows: Sequence[Annotation]) -> None:
        """Keep the queries of a split, replacing what was there; equal ones are left alone."""
        path = self._annotations(split)
        if not path.is_file() or path.read_bytes() != jsonl_bytes(rows):
            save_jsonl(rows, path)

    def annotations(self, split: str) -> list[Annotation]:
        """The queries of a split; UsageError if the store has no such split."""
        path = self._annotations(split)
        if not path.is_file():
            raise UsageError(
                f"store {self.path} has no split '{split}'; {nearest(split, self.splits())}"
            )
        return read_jsonl(path)

    def splits(self) -> list[str]:
        """Names of the splits with annotations, sorted."""
        return sorted(path.stem for path in (self.path / "annotations").glob("*.jsonl"))

    def verify(self, *, deep: bool = True) -> list[Problem]:
        """Everything that is wrong with this store; [] if nothing is (`data.store.verify`)."""
        from data.store.verify import verify

        return verify(self, deep=deep)

    def _annotations(self, split: str) -> Path:
        return self.path / "annotations" / f"{check_id(split, what='split')}.jsonl"

    def _contents(self) -> dict[str, str]:
        return {id: entry.content for id, entry in self.catalogue().items()}


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _store_json(path: Path) -> dict[str, Any]:
    content = read_json(path / "store.json")
    check_schema_version(content.get("schema_version"), f"store {path}")
    types = {"dataset": str, "clip_len_s": float, "current": dict}
    for name, kind in types.items():
        if not isinstance(content.get(name), kind):
            raise StoreError(f"{path / 'store.json'} has no usable '{name}'; it was edited")
    return content


def _pretty(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"
