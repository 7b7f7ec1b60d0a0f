"""A store: folders of shards, and the few small files beside them, on disk or an object store.

    store.json                     schema version, dataset, clip length, current recipe per stage
    videos.jsonl                   present content and facts of each video
    annotations/<split>.jsonl      queries and moments
    cache/                         may be deleted at any time
    <stage>/<recipe_id>/           recipe.json, shard-<16 hex>.h5, failures.jsonl, unfinished/

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
from data.identity import check_id
from data.store.files import (
    atomic_write,
    change_file,
    list_folder,
    parse_json,
    read_bytes,
    sha256_of,
    size_of,
)
from data.store.item import EncodedItem, encode_item
from data.store.place import Place, place_of
from data.store.reader import Problem, StageReader, shard_paths
from data.store.recipes import check_schema_version, load_recipe, save_recipe
from data.store.records import (
    CatalogueEntry,
    FailureLog,
    FileHashes,
    read_catalogue,
    update_catalogue,
)
from data.store.scratch import scratch_file
from data.store.shard import build_shard
from data.store.types import SCHEMA_VERSION, ItemKey, Recipe, Row
from data.store.unfinished import Unfinished
from data.store.upkeep import in_order, recipe_folders

__all__ = ["ShardRef", "ShardWriter", "Store", "checked"]

_MEND = "`pipeline repair` writes it again"


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

    def __init__(self, folder: Place, recipe: Recipe, clip_len_s: float, target_bytes: int) -> None:
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
        keys = sorted(self._items, key=in_order)
        shard = build_shard(self.recipe, [self._items[key] for key in keys])
        sha256 = hashlib.sha256(shard).hexdigest()
        path = self.folder / f"shard-{sha256[:16]}.h5"
        if not _holds(path, len(shard), sha256):
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
        path: the folder, here or remote.
        dataset: name of the dataset.
        clip_len_s: length of the clips of every grid in it.
    """

    def __init__(self, path: Place, dataset: str, clip_len_s: float) -> None:
        self.path = path
        self.dataset = dataset
        self.clip_len_s = clip_len_s

    @classmethod
    def create(cls, path: str | Place, *, dataset: str, clip_len_s: float) -> Store:
        """A new, empty store; UsageError if there is one or the folder holds something else."""
        path = place_of(path)
        check_id(dataset, what="dataset name")
        if not (math.isfinite(clip_len_s) and clip_len_s > 0):
            raise UsageError(f"clip length must be above 0 seconds, got {clip_len_s}")
        # Hidden files may be what a killed `create` left behind.
        others = [each for each in list_folder(path) if not each.name.startswith(".")]
        if others or size_of(path) is not None:
            raise UsageError(f"{path} exists and is not empty; name a new folder for the store")
        content = {
            "schema_version": SCHEMA_VERSION,
            "dataset": dataset,
            "clip_len_s": float(clip_len_s),
            "current": {},
        }
        # Another job may be making it, too, and have gone further.
        change_file(path / "store.json", lambda there: there or _pretty(content))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Place) -> Store:
        """The store in a folder, given by path or URL.

        Raises:
            UsageError: no such folder, or it holds no store.
            StoreError: a store of another schema version, or a damaged `store.json`.
        """
        path = place_of(path)
        try:
            content = _store_json(path)
        except FileNotFoundError:
            if recipe_folders(path):
                raise UsageError(
                    f"store {path} has rows but no store.json; `pipeline repair` writes it again"
                ) from None
            what = "holds no store (no store.json)" if _is_folder(path) else "does not exist"
            raise UsageError(
                f"store {path} {what}; `pipeline run` makes one, or name another"
            ) from None
        return cls(path, content["dataset"], content["clip_len_s"])

    @classmethod
    def open_or_create(cls, path: str | Place, *, dataset: str, clip_len_s: float) -> Store:
        """The store in a folder, made if there is none.

        Raises:
            UsageError: there is one of another dataset or clip length.
        """
        path = place_of(path)
        if size_of(path / "store.json") is None:
            try:
                cls.create(path, dataset=dataset, clip_len_s=clip_len_s)
            except UsageError:
                # Another job may have made it since, and of another dataset.
                if size_of(path / "store.json") is None:
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
        path = self.path / "store.json"

        def replaced(text: bytes | None) -> bytes:
            content = checked(parse_json(text or b"", path), self.path)
            current = content["current"] | dict(recipes)
            if text is not None and current == content["current"]:
                return text
            return _pretty(content | {"current": current})

        change_file(path, replaced)

    def stages(self) -> list[str]:
        """Stages that have rows or a recipe, sorted."""
        names = (each.name for each in list_folder(self.path) if each.is_folder)
        return [name for name in names if self.recipes(name)]

    def recipes(self, stage: str) -> list[str]:
        """Recipe ids of a stage, current or not, sorted."""
        folder = self.path / stage
        names = [each.name for each in list_folder(folder) if each.is_folder]
        return [name for name in names if size_of(folder / name / "recipe.json") is not None]

    def recipe(self, stage: str, recipe_id: str | None = None) -> Recipe:
        """A recipe, checked against the name of its folder; None is the current one."""
        return load_recipe(self.folder(stage, recipe_id))

    def folder(self, stage: str, recipe_id: str | None = None) -> Place:
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

    def shards(self, stage: str, recipe_id: str | None = None) -> list[Place]:
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
        there = size_of(folder / "recipe.json") is not None
        recipe = load_recipe(folder) if there else None
        return StageReader(folder, recipe, self._contents, strict=strict)

    def failures(self, stage: str, recipe_id: str | None = None) -> FailureLog:
        """The quarantine of a stage under a recipe; None is the current one."""
        return FailureLog(self.folder(stage, recipe_id) / "failures.jsonl")

    def unfinished(self, stage: str, recipe_id: str | None = None) -> Unfinished:
        """What was done of rows of a stage that are not finished; None is the current recipe."""
        return Unfinished(self.folder(stage, recipe_id))

    def catalogue(self) -> dict[str, CatalogueEntry]:
        """Present content and facts of each video, by id."""
        return read_catalogue(self.path / "videos.jsonl")

    def update_catalogue(self, entries: Iterable[CatalogueEntry]) -> None:
        """Add or replace entries; the file is replaced at once."""
        update_catalogue(self.path / "videos.jsonl", entries)

    def file_hashes(self) -> FileHashes:
        """Remembered hashes of input files; of this machine, so never in a remote store."""
        if isinstance(self.path, Path):
            return FileHashes(self.path / "cache" / "files.jsonl")
        return FileHashes(scratch_file(self.path, "files.jsonl"))

    def save_annotations(self, split: str, rows: Sequence[Annotation]) -> None:
        """Keep the queries of a split, replacing what was there; equal ones are left alone."""
        path = self._annotations(split)
        try:
            same = read_bytes(path) == jsonl_bytes(rows)
        except FileNotFoundError:
            same = False
        if not same:
            save_jsonl(rows, path)

    def annotations(self, split: str) -> list[Annotation]:
        """The queries of a split; UsageError if the store has no such split."""
        path = self._annotations(split)
        if size_of(path) is None:
            raise UsageError(
                f"store {self.path} has no split '{split}'; {nearest(split, self.splits())}"
            )
        return read_jsonl(path)

    def splits(self) -> list[str]:
        """Names of the splits with annotations, sorted."""
        names = [each.name for each in list_folder(self.path / "annotations")]
        return [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")]

    def verify(self, *, deep: bool = True) -> list[Problem]:
        """Everything that is wrong with this store, and notes (`data.store.verify`)."""
        from data.store.verify import verify

        return verify(self, deep=deep)

    def set_aside(self, shard: Place, why: str) -> Place | None:
        """Move a file to `set-aside/` and say so in its log; None if it is gone.

        `data.store.repair.salvage_shard` keeps what is whole in a shard before it does so.
        """
        from data.store.salvage import set_aside

        return set_aside(self, shard, why)

    def _annotations(self, split: str) -> Place:
        return self.path / "annotations" / f"{check_id(split, what='split')}.jsonl"

    def _contents(self) -> dict[str, str]:
        return {id: entry.content for id, entry in self.catalogue().items()}


def _holds(path: Place, size: int, sha256: str) -> bool:
    """Whether a shard is there already.

    A local one may be damaged; then the same rows mend it. A remote one is judged by its size:
    its name carries its hash and a put is whole, so one that is damaged was damaged after that;
    `repair` moves it out of the way before its rows are made again.
    """
    if size_of(path) != size:
        return False
    return not isinstance(path, Path) or sha256_of(path) == sha256


def _is_folder(path: Place) -> bool:
    return path.is_dir() if isinstance(path, Path) else bool(list_folder(path))


def _store_json(path: Place) -> dict[str, Any]:
    text = read_bytes(path / "store.json")
    try:
        content = parse_json(text, path / "store.json")
    except StoreError as error:
        raise StoreError(f"{error}; {_MEND}") from None
    return checked(content, path)


def checked(content: dict[str, Any], path: Place) -> dict[str, Any]:
    """The content of the `store.json` of a store; StoreError if it is none of this version."""
    check_schema_version(content.get("schema_version"), f"store {path}")
    types = {"dataset": str, "clip_len_s": float, "current": dict}
    for name, kind in types.items():
        if not isinstance(content.get(name), kind):
            raise StoreError(f"{path / 'store.json'} has no usable '{name}'; {_MEND}")
    try:
        check_id(content["dataset"], what="dataset name")
        # Stages and recipes are folders of the store; a name must not lead out of it.
        for stage, recipe_id in content["current"].items():
            check_id(stage, what="stage name")
            check_id(recipe_id, what="recipe id")
    except UsageError as error:
        raise StoreError(f"{path / 'store.json'} cannot be trusted: {error}; {_MEND}") from None
    if not (math.isfinite(content["clip_len_s"]) and content["clip_len_s"] > 0):
        raise StoreError(f"{path / 'store.json'} has an impossible 'clip_len_s'; {_MEND}")
    return content


def _pretty(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"
