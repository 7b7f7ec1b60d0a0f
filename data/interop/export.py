"""A store as the folders that public training code reads."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.annotations.jsonl import jsonl_bytes
from data.annotations.types import Annotation
from data.errors import StoreError, UsageError, some
from data.identity import check_id, query_id
from data.interop.layouts import Layout, Shaped
from data.store import StageReader, Store
from data.store.files import atomic_write, read_json
from data.store.recipes import is_import

__all__ = ["MANIFEST", "ExportReport", "OutFolder", "export"]

MANIFEST = "storyline_export.json"
"""Written first and last: says what the folder is, and whether it is complete."""

_ASSUMED_CLIP_LEN_S = 2.0
"""What clip ids of annotation rows count where no `dataset.json` beside them says otherwise."""

QUERIES = "queries"


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Args:
        out: the folder.
        layout: name of the layout.
        recipes: recipe id of each stage.
        files: files of each stage and split that are there now.
        written: how many of all were written now; the others were equal.
        missing: ids without a row, by stage.
        notes: what a person should know.
        interrupted: whether it was asked to stop before its end.
    """

    out: str
    layout: str
    recipes: Mapping[str, str]
    files: Mapping[str, int]
    written: int
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def export(
    store: Store,
    out: Path,
    layout: Layout,
    *,
    streams: Sequence[str] = (),
    splits: Sequence[str] = (),
    dtype: Literal["keep", "float16", "float32"] = "keep",
    overwrite: bool = False,
    stop: Callable[[], bool] = bool,
) -> ExportReport:
    """Write features, text features and annotations of a store as files of others.

    Run it again to continue one that was interrupted. Files appear whole or not at all, and none
    that this export did not write is replaced unasked.

    Args:
        store: the store, here or remote.
        out: a folder; made if it is not there.
        layout: how files are called.
        streams: stages, `queries` among them; () takes all that can be written.
        splits: only videos and queries of these; () takes everything, and all splits.
        dtype: type of the arrays; `keep` is that of the store.
        overwrite: replace files that are there.
        stop: whether to end early.

    Raises:
        UsageError: unknown stream or split; other files are there.
        StoreError: rows that cannot be read; the folder cannot be written.
    """
    readers = {name: store.reader(name) for name in streams or _all_streams(store)}
    for name, reader in readers.items():
        _check(name, reader)
    rows = {split: store.annotations(split) for split in splits or store.splits()}
    if not readers:
        raise UsageError(f"store {store.path} has no stream that can be written")
    recipes = {name: reader.recipe_id for name, reader in readers.items()}
    folder = OutFolder(out, _manifest(store, layout, recipes, splits, dtype), overwrite)
    folder.begin()
    job = _Job(layout, dtype, rows, bool(splits))
    files = dict.fromkeys(readers, 0) | {f"{split}.jsonl": 0 for split in rows}
    stopped = False
    for name, content in job.files(readers):
        if stopped := stop():
            break
        folder.put(content.path, content.bytes())
        files[name] += 1
    for split, queries in rows.items() if not stopped else ():
        folder.put(f"{split}.jsonl", jsonl_bytes(queries))
        files[f"{split}.jsonl"] = len(queries)
    if rows and not stopped and store.clip_len_s != _ASSUMED_CLIP_LEN_S:
        folder.put("dataset.json", json.dumps({"clip_len_s": store.clip_len_s}).encode() + b"\n")
    if not stopped:
        folder.end(files)
    return ExportReport(
        out=str(out),
        layout=layout.name,
        recipes=recipes,
        files=files,
        written=folder.written,
        missing={name: ids for name, ids in job.missing.items() if ids},
        notes=job.notes,
        interrupted=stopped,
    )


def _all_streams(store: Store) -> list[str]:
    names = [name for name in store.current if store.shards(name)]
    return [name for name in names if name == QUERIES or _is_stream(store.reader(name))]


def _is_stream(reader: StageReader) -> bool:
    spec = reader.recipe.schema.arrays.get(reader.stage)
    return spec is not None and spec.per == "clip" and len(spec.shape) == 1


def _check(name: str, reader: StageReader) -> None:
    if name != QUERIES and not _is_stream(reader):
        known = ", ".join(sorted(reader.recipe.schema.arrays)) or "none"
        raise UsageError(
            f"stage '{name}' has no features per clip under its own name (its arrays: {known}); "
            "streams and 'queries' can be exported"
        )


def _manifest(
    store: Store, layout: Layout, recipes: Mapping[str, str], splits: Sequence[str], dtype: str
) -> dict[str, Any]:
    readable = {}
    for name, recipe_id in recipes.items():
        recipe = store.recipe(name, recipe_id)
        readable[name] = recipe.to_json() | {"id": recipe_id, "imported": is_import(recipe)}
    return {
        "format": layout.name,
        "dataset": store.dataset,
        "clip_len_s": store.clip_len_s,
        "dtype": dtype,
        "splits": sorted(splits),
        "recipes": readable,
    }


class _Job:
    """Which files there are, made one by one.

    Args:
        layout: how they are called.
        dtype: of their arrays.
        rows: annotations by split.
        only: whether only what the annotations name is wanted.
    """

    def __init__(
        self, layout: Layout, dtype: str, rows: Mapping[str, Sequence[Annotation]], only: bool
    ) -> None:
        self._layout, self._dtype = layout, dtype
        self._queries = [row for split in rows.values() for row in split]
        self._wanted = {row.video_id for row in self._queries}
        self._only = only
        self.missing: dict[str, list[str]] = {}
        self.notes: list[str] = []

    def files(self, readers: Mapping[str, StageReader]) -> Iterator[tuple[str, Shaped]]:
        """The stage and the file, stage by stage."""
        for name, reader in readers.items():
            found = self._texts(reader) if name == QUERIES else self._videos(name, reader)
            for content in found:
                yield name, content

    def _videos(self, name: str, reader: StageReader) -> Iterator[Shaped]:
        there = reader.ids()
        self.missing[name] = sorted(self._wanted - set(there))
        if self._only:
            there = [id for id in there if id in self._wanted]
        for id in there:
            check_id(id)
            yield self._layout.video_file(name, id, self._typed(reader.array(id, name)))

    def _texts(self, reader: StageReader) -> Iterator[Shaped]:
        missing = self.missing.setdefault(QUERIES, [])
        arrays = reader.recipe.schema.arrays
        pooled = "pooled" in arrays
        self._note_texts(pooled, sorted(arrays.keys() - {"tokens", "pooled"}))
        sentences: dict[str, str] = {}
        for row in self._queries:
            qid, id = str(row.qid), query_id(row.query)
            check_id(qid, what="qid")
            if sentences.setdefault(qid, row.query) != row.query:
                raise UsageError(
                    f"qid {qid} stands for different sentences in several splits, which cannot be "
                    "one file; export them one by one with --split, each into its own folder"
                )
            if id not in reader:
                missing.append(qid)
                continue
            vector = self._typed(reader.array(id, "pooled")) if pooled else None
            yield self._layout.text_file(qid, self._typed(reader.array(id, "tokens")), vector)

    def _note_texts(self, pooled: bool, others: Sequence[str]) -> None:
        if not self._queries:
            self.notes.append(
                "queries were not written: the store has no annotations that say their qids"
            )
        if not pooled:
            self.notes.append("the store has no pooled vectors: text files hold token states only")
        if others:
            self.notes.append(
                f"text files hold the main encoder's states alone; {', '.join(others)} stay in the "
                "store"
            )

    def _typed(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._dtype == "keep":
            return array
        with np.errstate(over="ignore"):
            typed = array.astype(self._dtype)
        if not np.isfinite(typed).all():
            raise UsageError(f"values are too large for {self._dtype}; use --dtype float32 or keep")
        return typed


class OutFolder:
    """The folder of an export: what may be written into it, and how.

    Args:
        root: the folder.
        manifest: what the export is.
        overwrite: replace what others wrote.
    """

    def __init__(self, root: Path, manifest: Mapping[str, Any], overwrite: bool) -> None:
        self.root, self._manifest, self._overwrite = root, manifest, overwrite
        self.written = 0
        self._safe: set[Path] = set()

    def begin(self) -> None:
        """UsageError if the folder is another export's, or somebody else's."""
        before = self._before()
        others = self._others() if before is None else []
        if before is not None and before != self._manifest and not self._overwrite:
            different = [key for key, value in self._manifest.items() if before.get(key) != value]
            raise UsageError(
                f"{self.root} holds an export of other {some(different)}; give another folder, or "
                "--overwrite to replace its files (those that are not written again stay)"
            )
        if others and not self._overwrite:
            raise UsageError(
                f"{self.root} holds files that no export wrote ({some(others, 3)}); give an empty "
                "or new folder, or --overwrite to replace those of the same name"
            )
        self._write_manifest({"complete": False})

    def put(self, path: str, data: bytes) -> None:
        """Write a file; an equal one stays.

        Raises:
            UsageError: the place is outside the folder, or another file is there.
            StoreError: it cannot be written.
        """
        target = self._inside(path)
        try:
            there = target.read_bytes() if target.exists() else None
            if there == data:
                return
            if there is not None and not self._overwrite:
                raise UsageError(
                    f"{target} is there with another content; give --overwrite to replace it, or "
                    "another folder"
                )
            _replace(target, data)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
        self.written += 1

    def end(self, files: Mapping[str, int]) -> None:
        """Say that everything is there."""
        self._write_manifest({"complete": True, "files": dict(files)})

    def _before(self) -> dict[str, Any] | None:
        try:
            manifest = read_json(self.root / MANIFEST)
        except FileNotFoundError:
            return None
        return {key: value for key, value in manifest.items() if key not in ("complete", "files")}

    def _others(self) -> list[str]:
        if not self.root.exists():
            return []
        if not self.root.is_dir():
            raise UsageError(f"{self.root} is no folder; give another one with --out")
        return sorted(each.name for each in self.root.iterdir())

    def _write_manifest(self, state: Mapping[str, Any]) -> None:
        text = json.dumps(dict(self._manifest) | dict(state), indent=2, sort_keys=True)
        atomic_write(self.root / MANIFEST, text.encode() + b"\n")

    def _inside(self, path: str) -> Path:
        """The place of a file; a link in the folder must not lead out of it."""
        target = self.root / path
        if target.parent not in self._safe:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.parent.resolve().is_relative_to(self.root.resolve()):
                raise UsageError(f"{target.parent} leads out of {self.root}; give another folder")
            self._safe.add(target.parent)
        if target.is_symlink():
            raise UsageError(f"{target} is a link; remove it, or give another folder")
        return target


def _replace(target: Path, data: bytes) -> None:
    """Whole or not at all; not fsynced one by one, for an export can be made again."""
    temporary = target.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
