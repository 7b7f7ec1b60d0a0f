from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from data.store import Recipe, Row, Store
from data.store.files import list_folder, read_bytes
from data.store.gc import gc
from data.store.place import place_of
from data.store.upkeep import files_below

MakeRow = Callable[..., Row]
DAY_S = 86_400.0


def put(store: Store, recipe: Recipe, rows: list[Row]) -> None:
    with store.writer(recipe) as writer:
        for row in rows:
            writer.add(row)


def age(folder: Path, days: float) -> None:
    """Make a file, or all files below a folder, this old."""
    then = time.time() - days * DAY_S
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        os.utime(path, (then, then))


def names(store: Store) -> set[str]:
    return {str(place.relative_to(store.path)) for place, _ in files_below(store.path)}


@pytest.fixture
def full(store: Store, recipe: Recipe, make_row: MakeRow) -> Store:
    """probe <- clip (both current); an older clip made from an older probe; all of it old."""
    probe = replace(recipe, stage="probe")
    clip = replace(recipe, upstream={"probe": probe.id})
    older_probe = replace(probe, version=0)
    older = replace(clip, version=0, upstream={"probe": older_probe.id})
    for each in (probe, clip, older_probe, older):
        put(store, each, [make_row("v")])
    store.set_current({"probe": probe.id, "clip": clip.id})
    age(store.path, 30)
    return store


def test_recipes_that_nothing_reads_go_and_current_ones_stay(full: Store) -> None:
    current = full.current
    removed = gc(full)
    assert len(removed) == 2
    assert all(each.removed and each.bytes > 0 and each.files == 2 for each in removed)
    assert {stage: full.recipes(stage) for stage in full.stages()} == {
        stage: [recipe_id] for stage, recipe_id in current.items()
    }
    assert full.reader("clip").ids() == ["v"]
    assert gc(full) == []


def test_what_a_current_recipe_was_made_from_stays_though_it_is_not_current(
    full: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    captions = replace(recipe, stage="captions", upstream=full.recipe("clip").upstream)
    narratives = replace(recipe, stage="narratives", upstream={"captions": captions.id})
    for each in (captions, narratives):
        put(full, each, [make_row("v")])
    newer = replace(full.recipe("probe"), version=9)
    put(full, newer, [make_row("v")])
    full.set_current({"narratives": narratives.id, "probe": newer.id})
    age(full.path, 30)
    gc(full)
    assert full.recipes("captions") == [captions.id]
    assert full.recipes("probe") == sorted([newer.id, captions.upstream["probe"]])


def test_a_young_recipe_and_what_it_is_made_from_stay(full: Store) -> None:
    (older,) = {*full.recipes("clip")} - {full.current["clip"]}
    before = names(full)
    age(next(iter(full.shards("clip", older))), 3)
    assert gc(full) == []
    assert names(full) == before
    assert len(gc(full, older_than_s=2 * DAY_S)) == 2


def test_a_time_in_the_future_means_keep(full: Store) -> None:
    (older,) = {*full.recipes("clip")} - {full.current["clip"]}
    age(full.folder("clip", older), -365)
    assert gc(full) == []
    full_of_time = gc(full, now=time.time() - 365 * DAY_S)
    assert full_of_time == []


def test_a_dry_run_says_the_same_and_removes_nothing(full: Store) -> None:
    before = names(full)
    would = gc(full, dry_run=True)
    assert names(full) == before
    assert gc(full) == would


@pytest.mark.parametrize(
    ("hours", "older_than_s", "goes"),
    [(23, 7 * DAY_S, False), (25, 7 * DAY_S, True), (2, 0, True), (0.9, 0, False)],
)
def test_unfinished_files_go_after_a_day_and_never_within_an_hour(
    hours: float, older_than_s: float, goes: bool, full: Store
) -> None:
    files = [full.path / ".tmp-1-a", full.folder("clip") / ".tmp-2-b"]
    for path in files:
        path.write_bytes(b"half")
        age(path, hours / 24)
    removed = [each.what for each in gc(full, older_than_s=older_than_s) if ".tmp-" in each.what]
    assert len(removed) == (2 if goes else 0)
    assert [path.exists() for path in files] == [not goes] * 2


def test_files_set_aside_go_only_when_asked_and_their_log_stays(full: Store) -> None:
    (shard,) = full.shards("clip")
    full.set_aside(shard, "a test")
    age(full.path, 30)
    before = names(full)
    assert not any("set-aside" in each.what for each in gc(full, older_than_s=29 * DAY_S))
    removed = gc(full, set_aside=True)
    assert [each.why for each in removed] == ["set aside"]
    assert {name for name in before if "set-aside" in name} - names(full) == {removed[0].what}
    assert (full.path / "set-aside" / "log.jsonl").exists()


def test_links_are_not_followed(full: Store, tmp_path: Path, make_row: MakeRow) -> None:
    outside = tmp_path / "outside"
    (outside / "0123456789abcdef").mkdir(parents=True)
    treasure = outside / "0123456789abcdef" / "shard-0123456789abcdef.h5"
    treasure.write_bytes(b"mine")
    (outside / ".tmp-1").write_bytes(b"mine, too")
    (full.path / "linked").symlink_to(outside)
    (full.path / "clip" / "0123456789abcdef").symlink_to(outside / "0123456789abcdef")
    (full.folder("clip") / ".tmp-9").symlink_to(treasure)
    age(outside, 90)
    gc(full, set_aside=True, older_than_s=0)
    assert treasure.read_bytes() == b"mine"
    assert (outside / ".tmp-1").exists()
    assert (full.path / "clip" / "0123456789abcdef").is_symlink()


def test_what_is_not_the_stores_stays(full: Store) -> None:
    (older,) = {*full.recipes("clip")} - {full.current["clip"]}
    note = full.folder("clip", older) / "notes.txt"
    (full.path / "mine").mkdir()
    mine = full.path / "mine" / "film.mp4"
    for path in (note, mine):
        path.write_bytes(b"x")
        age(path, 90)
    gc(full)
    assert note.exists()
    assert mine.exists()
    assert full.shards("clip", older) == []


def test_nothing_goes_where_nobody_can_tell_what_is_read(full: Store) -> None:
    (full.folder("clip") / "recipe.json").write_text("{")
    age(full.path, 30)
    before = names(full)
    (told,) = gc(full)
    assert not told.removed
    assert "`pipeline repair`" in told.why
    assert names(full) == before


def test_a_recipe_that_became_current_meanwhile_stays(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data.store.gc as module

    (older,) = {*full.recipes("clip")} - {full.current["clip"]}
    real = module._Collection._used

    def then_somebody_goes_back(self: module._Collection, young: set[tuple[str, str]]) -> set:
        used = real(self, young)
        full.set_current({"clip": older})
        return used

    monkeypatch.setattr(module._Collection, "_used", then_somebody_goes_back)
    gc(full)
    assert older in full.recipes("clip")


def test_a_store_on_an_object_store_is_collected_alike(recipe: Recipe, make_row: MakeRow) -> None:
    where = place_of(f"memory://gc-{uuid4().hex}/store")
    store = Store.create(where, dataset="tiny", clip_len_s=2.0)
    older = replace(recipe, version=0)
    for each in (recipe, older):
        put(store, each, [make_row("v")])
    store.set_current({"clip": recipe.id})
    assert gc(store) == []
    (removed,) = gc(store, now=time.time() + 8 * DAY_S)
    assert removed.what == f"clip/{older.id}"
    assert [each.name for each in list_folder(where / "clip")] == [recipe.id]
    assert read_bytes(store.shards("clip")[0])


def test_nothing_goes_where_a_recipe_that_is_being_made_cannot_be_followed(
    full: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    (older,) = set(full.recipes("clip")) - {full.current["clip"]}
    (full.folder("clip", older) / "recipe.json").write_text("{}")
    young = replace(recipe, stage="captions", upstream={"clip": older})
    age(full.path, 30)
    put(full, young, [make_row("v")])
    before = names(full)
    (told,) = gc(full)
    assert not told.removed
    assert names(full) == before
