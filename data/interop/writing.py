"""Rows of an import on their way into a store: what is there is left out, faults go to quarantine.

Rows are made one by one and written in shards, so that memory holds one shard, and a killed import
has lost nothing but the one that was being collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.errors import InputError, UsageError, some
from data.identity import file_sha256
from data.interop.report import Line
from data.store import Failure, FileHashes, ItemKey, Recipe, Row, StageReader, Store
from data.store.files import size_of
from data.store.recipes import IMPORT, differences, is_import

__all__ = [
    "IMPORT_VERSION",
    "Draft",
    "Hashes",
    "Journey",
    "changes",
    "check_target",
    "current_of",
    "grown",
    "imported",
]

IMPORT_VERSION = 1
"""Of this code: raised when the same files and options give other rows."""

SHARD_BYTES = 128 << 20


@dataclass(frozen=True)
class Draft:
    """One input on its way.

    Args:
        line: what is known of it before it is read; `refused` if that is enough to refuse it.
        key: its key in the store.
        make: reads it and makes the row; InputError.
        facts: what the facts of its row will say, as far as it is known; none of a file that
            cannot be looked into now.
    """

    line: Line
    key: ItemKey
    make: Callable[[], Row]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Journey:
    """How rows travel.

    Args:
        dry_run: look, and write nothing.
        replace: send readers to the imported rows although the pipeline made others.
        shard_bytes: a shard is written as soon as it has so many.
        stop: whether to end early.
        watch: told (done, all) after each input.
        begin: called once, when all is checked and before anything is written.
    """

    dry_run: bool = False
    replace: bool = False
    shard_bytes: int = SHARD_BYTES
    stop: Callable[[], bool] = bool
    watch: Callable[[int, int], None] = lambda done, all: None
    begin: Callable[[], None] = lambda: None

    def start(self, store: Store, recipe: Recipe) -> None:
        """Make ready the place of the rows; readers that have nothing else are sent there."""
        if not self.dry_run:
            self.begin()
            store.writer(recipe)
            announce(store, recipe, whole=False)

    def hashes(self, store: Store) -> Hashes:
        """Hashes of the source; remembered where there is a store already."""
        return Hashes(store.file_hashes() if _exists(store) and not self.dry_run else None)

    def end(self, store: Store, recipe: Recipe, before: Recipe | None, *, whole: bool) -> bool:
        """Send readers to the rows if all are there; whether they are sent to them now.

        Not if another import has sent them elsewhere since `before` was read: run again, this one
        adds to it.
        """
        if self.dry_run:
            return False
        expected = (recipe.id, before.id if before else None)
        unmoved = store.current.get(recipe.stage) in expected
        return announce(store, recipe, whole=whole and unmoved)

    def write(
        self, store: Store, recipe: Recipe, drafts: Iterable[Draft], count: int
    ) -> tuple[list[Line], bool]:
        """Write what is not there yet.

        Returns:
            (a line for each input that was looked at, whether all were)
        """
        if self.dry_run:
            return _planned(store, recipe, drafts), True
        lines: list[Line] = []
        present = store.reader(recipe.stage, recipe.id, strict=False)
        log = store.failures(recipe.stage, recipe.id)
        known = log.read()
        with store.writer(recipe, target_bytes=self.shard_bytes) as writer:
            for draft in drafts:
                if self.stop():
                    return lines, False
                key = draft.key
                if present.holds(key):
                    facts = present.facts(key.id, key.content)
                    lines.append(Line.of_facts(draft.line.id, "present", facts))
                else:
                    try:
                        row = _made(draft)
                    except InputError as error:
                        lines.append(_refused(draft.line, error))
                        before = known.get((key.id, key.content, key.part))
                        if before is None or before.message != str(error):
                            log.record(Failure(recipe.stage, key, error.reason, str(error), 1))
                    else:
                        writer.add(row)
                        lines.append(Line.of_facts(draft.line.id, "stored", row.facts))
                self.watch(len(lines), count)
        return lines, True


def _planned(store: Store, recipe: Recipe, drafts: Iterable[Draft]) -> list[Line]:
    present = store.reader(recipe.stage, recipe.id, strict=False) if _exists(store) else None
    return [
        replace(draft.line, outcome="present")
        if present is not None and present.holds(draft.key) and draft.line.outcome == "planned"
        else draft.line
        for draft in drafts
    ]


def _made(draft: Draft) -> Row:
    if draft.line.outcome == "refused":
        raise InputError(draft.line.reason, draft.line.told)
    return draft.make()


def _refused(line: Line, error: InputError) -> Line:
    return replace(line, outcome="refused", reason=error.reason, told=str(error))


class Hashes:
    """sha256 of files of the source, remembered in the cache of the store.

    Args:
        cache: where hashes are remembered; None for nowhere.
    """

    def __init__(self, cache: FileHashes | None) -> None:
        self._cache = cache
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """64 hex; InputError if the file cannot be read."""
        if path not in self._known:
            self._known[path] = self._look(path)
        return self._known[path]

    def _look(self, path: Path) -> str:
        remembered = self._cache.hash_of(path) if self._cache else None
        if remembered is not None:
            return remembered
        try:
            before = path.stat()
            sha256 = file_sha256(path)
        except OSError as error:
            raise InputError("unreadable", f"{path.name}: {error.strerror or error}") from error
        if self._cache:
            self._cache.remember(path, sha256, before)
        return sha256


def current_of(store: Store, stage: str) -> Recipe | None:
    """The recipe that readers of a stage are sent to; None if there is none."""
    recipe_id = store.current.get(stage) if _exists(store) else None
    if recipe_id is None or recipe_id not in store.recipes(stage):
        return None
    return store.recipe(stage, recipe_id)


def check_target(store: Store, stage: str, replace: bool) -> None:
    """UsageError if readers would be sent away from rows that the pipeline made, unasked."""
    current = current_of(store, stage)
    if current is None or is_import(current) or replace:
        return
    if not store.shards(stage, current.id):
        return
    raise UsageError(
        f"stage '{stage}' of store {store.path} has rows that `pipeline run` made (recipe "
        f"{current.id}), and readers are sent to one recipe; give --replace to send them to the "
        f"imported rows (the others stay until `pipeline gc`), or another name with --stage"
    )


_IDENTITY = ("files", "sha256", "durations")
"""Parameters of an import that say with which files it began; others are how they are read."""

_SAME = ("sha256", "fit", "by", "clips", "duration_s")
"""Facts of rows in which two rows of the same video and the same options can differ."""


def grown(
    store: Store, fresh: Recipe, drafts: Sequence[Draft], before: Recipe | None, *, replace: bool
) -> Recipe:
    """The recipe that inputs are written under.

    It is the import that readers are sent to, if these inputs would give all rows just so that it
    has of them: then only what is not there yet is written, be it ten new videos or one whose file
    was broken. Else it is `fresh`, and all rows are written anew, so that no recipe mixes two
    versions of a file.

    Args:
        store: the store.
        fresh: the recipe of these inputs alone.
        drafts: the inputs.
        before: what readers are sent to now.
        replace: whether readers may lose rows.

    Raises:
        UsageError: readers would lose rows of inputs that are not among these, unasked.
    """
    if before is None or not is_import(before) or before.id == fresh.id:
        return fresh
    reader = store.reader(before.stage, before.id, strict=False)
    why = _other_options(before, fresh) or _other_rows(reader, drafts)
    if not why:
        return before
    gone = sorted(set(reader.ids()) - {draft.key.id for draft in drafts})
    if gone and not replace:
        raise UsageError(
            f"these files cannot be added to the import {before.id} of stage '{fresh.stage}' "
            f"({why}), and readers, who are sent to one recipe, would lose the {len(gone):,} rows "
            f"of it that have no file here ({some(gone, 3)}); import all files together, with the "
            "options of before, or give --replace"
        )
    return fresh


def _other_options(before: Recipe, fresh: Recipe) -> str:
    """In which options and columns two imports differ; "" if in none."""
    values = [recipe.to_json() for recipe in (before, fresh)]
    for value in values:
        value["params"] = dict(value["params"])
        given = value["params"][IMPORT]
        value["params"][IMPORT] = {k: v for k, v in given.items() if k not in _IDENTITY}
    return differences(values[0], values[1])


def _other_rows(reader: StageReader, drafts: Iterable[Draft]) -> str:
    """Which rows would be others now; "" for none. A file that cannot be read now changes none."""
    changed = []
    for draft in drafts:
        if draft.facts and reader.holds(draft.key):
            there = reader.facts(draft.key.id, draft.key.content)
            if any(there.get(name) != draft.facts[name] for name in _SAME if name in draft.facts):
                changed.append(draft.key.id)
    return f"{len(changed):,} changed: {some(changed, 3)}" if changed else ""


def changes(
    store: Store, before: Recipe | None, recipe: Recipe, drafts: Sequence[Draft]
) -> Iterator[str]:
    """What differs from the import that readers were sent to until now; asked before writing."""
    if before is None:
        return
    if not is_import(before):
        yield f"readers were sent to recipe {before.id} of `pipeline run` until now"
        return
    reader = store.reader(before.stage, before.id, strict=False)
    there, now = set(reader.ids()), {draft.key.id for draft in drafts}
    gone, new = sorted(there - now), sorted(now - there)
    if recipe.id == before.id:
        if gone:
            yield (
                f"{len(gone):,} rows of this import have no file here ({some(gone, 3)}): they stay"
            )
        return
    told = [
        _other_options(before, recipe),
        _other_rows(reader, drafts),
        f"{len(new):,} new: {some(new, 3)}" if new else "",
        f"{len(gone):,} gone: {some(gone, 3)}" if gone else "",
    ]
    yield f"since the import {before.id}: {'; '.join(each for each in told if each)}"


def announce(store: Store, recipe: Recipe, *, whole: bool) -> bool:
    """Send readers to the rows: at the end, or at once where they have nothing else to read.

    Returns:
        whether readers are sent to them.
    """
    current = store.current.get(recipe.stage)
    if whole or current is None:
        store.set_current({recipe.stage: recipe.id})
        return True
    return current == recipe.id


def imported(params: Mapping[str, Any], clip_len_s: float) -> dict[str, Any]:
    """Parameters of a recipe that say that rows were imported, and from what."""
    return {IMPORT: dict(params), "clip_len_s": clip_len_s}


def _exists(store: Store) -> bool:
    return size_of(store.path / "store.json") is not None
