from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from one_shard import write

from data.annotations import Annotation
from data.errors import StoreError, UsageError
from data.grid import Grid
from data.store import CatalogueEntry, Recipe, Row, Store
from data.store.files import atomic_write
from data.store.place import Place
from data.video.types import VideoFacts

MakeRow = Callable[..., Row]
SameRow = Callable[[Row, Row], None]


@pytest.fixture
def place(every_place: Place) -> Place:
    """The tests of this file hold for a store anywhere."""
    return every_place


def facts(duration_s: float = 12.0) -> VideoFacts:
    return VideoFacts(duration_s, 25.0, 300, 64, 48, 0, "h264", "yuv420p", 1234, False, 0)


def test_a_store_is_made_once_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "store"
    made = Store.open_or_create(path, dataset="tiny", clip_len_s=2)
    for store in (Store.open(path), Store.open_or_create(path, dataset="tiny", clip_len_s=2.0)):
        assert (store.dataset, store.clip_len_s, store.current) == ("tiny", 2.0, {})
    assert made.stages() == made.splits() == []
    assert json.loads((path / "store.json").read_text()) == {
        "schema_version": 1,
        "dataset": "tiny",
        "clip_len_s": 2.0,
        "current": {},
    }
    with pytest.raises(UsageError, match="exists and is not empty"):
        Store.create(path, dataset="tiny", clip_len_s=2.0)


@pytest.mark.parametrize(
    ("dataset", "clip_len_s"), [("tiny", 1.0), ("other", 2.0)], ids=["clip length", "dataset"]
)
def test_a_store_of_another_dataset_or_clip_length_is_not_mixed(
    dataset: str, clip_len_s: float, store: Store
) -> None:
    with pytest.raises(UsageError, match=r"holds dataset 'tiny' in clips of 2 s.*name another"):
        Store.open_or_create(store.path, dataset=dataset, clip_len_s=clip_len_s)


def test_a_folder_that_is_no_store_is_told_apart_from_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Store.open(tmp_path / "none")
    with pytest.raises(UsageError, match="holds no store"):
        Store.open(tmp_path)
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="not empty"):
        Store.open_or_create(tmp_path, dataset="tiny", clip_len_s=2.0)


@pytest.mark.parametrize("clip_len_s", [0.0, -2.0, float("nan"), float("inf")])
def test_an_impossible_clip_length_is_refused(clip_len_s: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above 0 seconds"):
        Store.create(tmp_path / "store", dataset="tiny", clip_len_s=clip_len_s)


def test_a_store_of_another_schema_version_names_both_versions(store: Store) -> None:
    path = store.path / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(StoreError, match="schema version 99; this program reads version 1"):
        Store.open(store.path)


@pytest.mark.parametrize("change", [{"clip_len_s": "2"}, {"current": []}, {"dataset": None}])
def test_an_edited_store_json_is_named(change: dict[str, Any], store: Store) -> None:
    path = store.path / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=rf"store.json has no usable '{next(iter(change))}'"):
        Store.open(store.path)


def test_what_is_written_is_read(
    store: Store, recipe: Recipe, make_row: MakeRow, assert_same_row: SameRow
) -> None:
    rows = [make_row(f"v{n}", clips=n + 1) for n in (3, 1, 2)]
    shard = write(store, recipe, rows)
    reader = store.reader("clip")
    assert reader.keys() == frozenset(shard.keys) == {row.key for row in rows}
    assert reader.ids() == ["v1", "v2", "v3"]
    assert ("v1" in reader, "v9" in reader, len(reader)) == (True, False, 3)
    for row in rows:
        assert_same_row(reader.row(row.key.id), row)
        np.testing.assert_array_equal(reader.array(row.key.id, "spans_s"), row["spans_s"])
        assert reader.facts(row.key.id) == row.facts
        assert reader.grid(row.key.id) == row.grid
        assert reader.length(row.key.id, "clip") == row.grid.n if row.grid else False
    assert store.recipe("clip").id == reader.recipe_id == recipe.id
    assert (store.stages(), store.recipes("clip")) == (["clip"], [recipe.id])


def test_rows_are_written_in_shards_of_the_size_asked_for(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    with store.writer(recipe, target_bytes=4000) as writer:
        refs = [writer.add(make_row(f"v{n:03}", clips=50)) for n in range(20)]
        assert writer.pending == tuple(make_row(f"v{n:03}").key for n in (18, 19))
    shards = [ref for ref in refs if ref is not None]
    assert [len(ref.keys) for ref in shards] == [3] * 6  # 50 clips are 800 B rows, 800 B times
    assert len(store.shards("clip", recipe.id)) == 7
    assert all(pickle.loads(pickle.dumps(ref)) == ref for ref in shards)
    assert len(store.reader("clip", recipe.id)) == 20


def test_the_order_in_which_rows_came_does_not_change_the_shard(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{n}") for n in range(4)]
    assert write(store, recipe, rows) == write(store, recipe, rows[::-1])
    assert len(store.shards("clip")) == 1


def test_a_shard_that_was_damaged_is_mended_when_its_rows_are_written_again(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    shard = write(store, recipe, [make_row("v1")])
    path = store.shards("clip")[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    lenient = store.reader("clip", strict=False)
    assert lenient.keys() == frozenset()
    assert [(each.kind, each.where) for each in lenient.problems] == [("shard", str(path))]
    with pytest.raises(StoreError, match=rf"{path.name}.*not a readable HDF5 file"):
        store.reader("clip")
    assert write(store, recipe, [make_row("v1")]) == shard
    assert path.read_bytes() == whole


def test_what_a_stage_wrote_does_not_change_when_it_reuses_its_buffer(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    row = make_row("v1")
    expected = row["clip"].copy()
    with store.writer(recipe) as writer:
        writer.add(row)
        row["clip"][:] = 0
    np.testing.assert_array_equal(store.reader("clip", recipe.id).array("v1", "clip"), expected)


def test_a_bad_row_is_refused_and_the_others_stay(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    bad = make_row("v2")
    bad["clip"][0, 0] = np.nan
    with store.writer(recipe) as writer:
        writer.add(make_row("v1"))
        with pytest.raises(StoreError, match="'v2', stream 'clip'"):
            writer.add(bad)
        with pytest.raises(StoreError, match="added twice"):
            writer.add(make_row("v1"))
        with pytest.raises(StoreError, match=r"clips of 1.0 s in a store of clips of 2.0 s"):
            writer.add(replace(make_row("v3"), grid=Grid(6.0, 1.0)))
    assert store.reader("clip", recipe.id).ids() == ["v1"]


def test_a_writer_that_meets_an_error_writes_nothing(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    def interrupted() -> None:
        with store.writer(recipe) as writer:
            writer.add(make_row("v1"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.shards("clip", recipe.id) == []


def _disk_full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("every_place", ["local"], indirect=True)
def test_a_full_disk_keeps_the_rows_pending_and_shows_no_shard(
    store: Store, recipe: Recipe, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.writer(recipe)
    writer.add(make_row("v1"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _disk_full)
        with pytest.raises(StoreError, match="No space left"):
            writer.flush()
    assert writer.pending == (make_row("v1").key,)
    assert sorted(each.name for each in writer.folder.iterdir()) == ["recipe.json"]
    assert writer.flush() is not None
    assert store.reader("clip", recipe.id).ids() == ["v1"]


def _write_share(store: Store, recipe: Recipe, rows: list[Row]) -> None:
    with store.writer(recipe, target_bytes=1500) as writer:
        for row in rows:
            writer.add(row)


@pytest.mark.parametrize("every_place", ["local", "s3"], indirect=True)
def test_two_writers_on_one_store_lose_nothing_and_show_nothing_twice(
    store: Store, recipe: Recipe, make_row: MakeRow, assert_same_row: SameRow
) -> None:
    rows = [make_row(f"v{n:02}") for n in range(30)]
    context = multiprocessing.get_context("fork")
    shares = (rows[:20], rows[10:])
    jobs = [context.Process(target=_write_share, args=(store, recipe, each)) for each in shares]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    reader = store.reader("clip", recipe.id)
    assert reader.ids() == [row.key.id for row in rows]
    for row in rows:
        assert_same_row(reader.row(row.key.id), row)


def test_a_recipe_folder_that_was_edited_is_not_trusted(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    write(store, recipe, [make_row("v1")])
    path = store.folder("clip") / "recipe.json"
    recipe_json = json.loads(path.read_text())
    assert recipe_json["params"] == {"width": 8, "weights": "random"}
    path.write_text(json.dumps(recipe_json | {"params": {"width": 9}}))
    with pytest.raises(StoreError, match="not that of its folder"):
        store.reader("clip")
    with pytest.raises(StoreError, match="not that of its folder"):
        store.writer(recipe)


def test_a_stage_that_was_not_run_is_answered_with_the_command(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    write(store, recipe, [make_row("v1")])
    with pytest.raises(StoreError, match=r"no stage 'clop' \(did you mean 'clip'.*--stage clop`"):
        store.reader("clop")
    with pytest.raises(StoreError, match=r"no row for 'v2'; run `pipeline run --stage clip`"):
        store.reader("clip").row("v2")
    with pytest.raises(StoreError, match=r"no array 'clop'; it has: clip, spans_s"):
        store.reader("clip").array("v1", "clop")
    with pytest.raises(UsageError, match=r"'\.\./x' is not allowed"):
        store.reader("../x")


def test_a_recipe_without_rows_yet_reads_as_empty(store: Store) -> None:
    reader = store.reader("clip", "0123456789abcdef")
    assert (reader.keys(), reader.ids(), reader.recipe_id) == (frozenset(), [], "0123456789abcdef")
    with pytest.raises(StoreError, match="was not run with recipe 0123456789abcdef"):
        reader.recipe  # noqa: B018


def test_changing_parameters_leaves_the_old_rows_alone(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    wider = replace(recipe, params={"width": 16})
    write(store, recipe, [make_row("v1")])
    write(store, wider, [make_row("v2")])
    assert store.current == {"clip": wider.id}
    assert store.reader("clip").ids() == ["v2"]
    assert store.reader("clip", recipe.id).ids() == ["v1"]


@pytest.mark.parametrize("every_place", ["local"], indirect=True)
def test_the_catalogue_merges_and_skips_what_it_knows(store: Store) -> None:
    first = CatalogueEntry("v1", "a" * 64, facts())
    store.update_catalogue([first, CatalogueEntry("v2", "b" * 64, facts())])
    changed = CatalogueEntry("v2", "c" * 64, facts(9.5))
    store.update_catalogue([changed])
    assert store.catalogue() == {"v1": first, "v2": changed}
    before = (store.path / "videos.jsonl").stat().st_ino
    store.update_catalogue([first])
    assert (store.path / "videos.jsonl").stat().st_ino == before


def test_a_damaged_catalogue_says_how_it_is_made_again(store: Store) -> None:
    (store.path / "videos.jsonl").write_text('{"video_id": "v1"}\n')
    with pytest.raises(StoreError, match=r"videos.jsonl.*`pipeline repair`"):
        store.catalogue()


def test_annotations_are_kept_by_split(store: Store) -> None:
    rows = [
        Annotation(
            7, "a red ball", "v1", 12.5, ((0.0, 2.0),), (0,), ((1.0, 2.0),), extra={"scene": 3}
        ),
        Annotation("x8", "nothing is known", "v1"),
    ]
    store.save_annotations("val", rows)
    assert store.splits() == ["val"]
    assert store.annotations("val") == rows
    with pytest.raises(UsageError, match=r"no split 'vall'; did you mean 'val'"):
        store.annotations("vall")
    with pytest.raises(UsageError, match="split"):
        store.save_annotations("../x", rows)


def test_equal_annotations_are_not_written_again(store: Store) -> None:
    row = Annotation(7, "a red ball", "v1")
    store.save_annotations("val", [row])
    (file,) = (store.path / "annotations").iterdir()
    before = file.stat().st_ino
    store.save_annotations("val", [row])
    assert file.stat().st_ino == before
    store.save_annotations("val", [row, Annotation(8, "a blue ball", "v1")])
    assert len(store.annotations("val")) == 2


def test_a_store_that_another_job_made_of_another_dataset_meanwhile_is_refused(
    tmp_path: Path,
) -> None:
    class Slow(Store):
        @classmethod
        def create(cls, path: str | Place, *, dataset: str, clip_len_s: float) -> Store:
            return Store.create(path, dataset="other", clip_len_s=clip_len_s)

    with pytest.raises(UsageError, match="holds dataset 'other'"):
        Slow.open_or_create(tmp_path / "store", dataset="mine", clip_len_s=2.0)


def test_a_folder_that_is_named_like_a_shard_is_none(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    with store.writer(recipe) as writer:
        writer.add(make_row("v"))
    store.set_current({"clip": recipe.id})
    atomic_write(store.folder("clip") / "shard-0123456789abcdef.h5" / "inside", b"")
    assert len(store.shards("clip")) == 1
    assert store.reader("clip").ids() == ["v"]
