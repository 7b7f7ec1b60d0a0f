from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from data.errors import GoneError, StoreError
from data.grid import Grid
from data.store import CatalogueEntry, ItemKey, Recipe, Row, Schema, StageReader, Store, StreamSpec
from data.store.place import Place
from data.store.reader import FilePool
from data.video.types import VideoFacts

MakeRow = Callable[..., Row]
SameRow = Callable[[Row, Row], None]


@pytest.fixture
def place(every_place: Place) -> Place:
    """The tests of this file hold for a store anywhere."""
    return every_place


def _write(store: Store, recipe: Recipe, rows: list[Row]) -> None:
    """Each row in a shard of its own."""
    writer = store.writer(recipe)
    for row in rows:
        writer.add(row)
        writer.flush()


def test_parts_are_joined_in_order_whatever_shard_they_are_in(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    parts = [make_row("long", clips=7, part=n, parts=3) for n in range(3)]
    _write(store, recipe, [parts[2], parts[0]])
    partial = store.reader("clip", recipe.id)
    assert partial.keys() == {parts[0].key, parts[2].key}
    assert ("long" in partial, partial.ids()) == (False, [])
    with pytest.raises(StoreError, match="no row for 'long'"):
        partial.row("long")

    _write(store, recipe, [parts[1]])
    reader = store.reader("clip", recipe.id)
    row = reader.row("long")
    assert reader.ids() == ["long"]
    np.testing.assert_array_equal(row["clip"], np.concatenate([part["clip"] for part in parts]))
    np.testing.assert_array_equal(reader.array("long", "clip"), row["clip"])
    assert row.texts["caption"] == [text for part in parts for text in part.texts["caption"]]
    assert row.facts == reader.facts("long") == {"parts": [dict(part.facts) for part in parts]}
    assert row.grid == Grid(14.0, 2.0)
    assert reader.length("long", "clip") == 7


def test_parts_that_do_not_fill_the_grid_together_are_refused(store: Store) -> None:
    recipe = Recipe("clip", 1, {}, {}, Schema({"clip": StreamSpec((1,), "uint8", "clip")}))
    rows = [
        Row(ItemKey("v", "0" * 64, part, 2), Grid(10.0, 2.0), {"clip": np.ones((2, 1), np.uint8)})
        for part in range(2)
    ]
    _write(store, recipe, rows)
    with pytest.raises(StoreError, match="2 parts have 4 rows of 'clip' together, on a grid of 5"):
        store.reader("clip", recipe.id).row("v")


def _entry(row: Row) -> CatalogueEntry:
    facts = VideoFacts(12.0, 25.0, 300, 64, 48, 0, "h264", "yuv420p", 1234, False, 0)
    return CatalogueEntry(row.key.id, row.key.content, facts)


def test_of_several_contents_the_one_in_the_catalogue_is_used(
    store: Store, recipe: Recipe, make_row: MakeRow, assert_same_row: SameRow
) -> None:
    old, new = make_row("v1", content="old"), make_row("v1", content="new", clips=4)
    _write(store, recipe, [old, new])
    with pytest.raises(StoreError, match=r"no row for 'v1' with its present content"):
        store.reader("clip", recipe.id).row("v1")
    for present in (old, new):
        store.update_catalogue([_entry(present)])
        reader = store.reader("clip", recipe.id)
        assert_same_row(reader.row("v1"), present)
        assert reader.key("v1") == present.key
        assert_same_row(reader.row("v1", old.key.content), old)


def test_a_row_that_was_written_twice_is_seen_once(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    writer = store.writer(recipe)
    for ids in (["v1"], ["v1", "v2"]):
        for id in ids:
            writer.add(make_row(id))
        writer.flush()
    reader = store.reader("clip", recipe.id)
    assert len(store.shards("clip", recipe.id)) == 2
    assert (len(reader), len(reader.keys())) == (2, 2)


def test_of_rows_that_should_be_equal_the_first_in_name_order_is_read(
    store: Store, recipe: Recipe, make_row: MakeRow, assert_same_row: SameRow
) -> None:
    rows = {}
    writer = store.writer(recipe)
    for number in range(4):
        row = replace(make_row("v1"), facts={"number": number})
        writer.add(row)
        shard = writer.flush()
        assert shard is not None
        rows[shard.name] = row
    assert_same_row(store.reader("clip", recipe.id).row("v1"), rows[min(rows)])


def test_a_shard_in_the_wrong_folder_is_refused(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    _write(store, recipe, [make_row("v1")])
    shard = store.shards("clip", recipe.id)[0]
    other = store.writer(Recipe("clip", 2, {}, {}, recipe.schema)).folder
    (other / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(StoreError, match="put in the wrong folder"):
        store.reader("clip", other.name)


def test_files_that_are_no_complete_shard_are_not_looked_at(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    _write(store, recipe, [make_row("v1")])
    for name in (".tmp-12-ab", "shard-xyz.h5", "shard-0123456789abcdef.h5.part"):
        (store.folder("clip", recipe.id) / name).write_bytes(b"half a shard")
    assert store.reader("clip", recipe.id).ids() == ["v1"]


def test_a_pipe_among_the_shards_hangs_nobody(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    store = Store.create(tmp_path / "store", dataset="toys", clip_len_s=2.0)
    _write(store, recipe, [make_row("v1")])
    os.mkfifo(tmp_path / "store" / "clip" / recipe.id / "shard-0123456789abcdef.h5")
    assert store.reader("clip", recipe.id).ids() == ["v1"]


def test_rows_can_be_read_where_recipe_json_was_lost(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    _write(store, recipe, [make_row("v1")])
    (store.folder("clip", recipe.id) / "recipe.json").unlink()
    reader = store.reader("clip", recipe.id)
    assert (reader.ids(), reader.recipe.id) == (["v1"], recipe.id)


def _answer(reader: StageReader, ids: list[str], pipe: Connection) -> None:
    pipe.send([reader.array(id, "clip").tobytes() for id in ids])


@pytest.mark.parametrize("every_place", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_read_through_one_reader(
    method: str, store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{n}") for n in range(12)]
    _write(store, recipe, rows)
    reader = store.reader("clip", recipe.id)
    reader.row("v0")  # some files are open already
    context = multiprocessing.get_context(method)
    asked = [[row.key.id for row in order] for order in (rows, rows[::-1])]
    answers = []
    for ids in asked:
        receiver, sender = context.Pipe(duplex=False)
        context.Process(target=_answer, args=(reader, ids, sender)).start()
        answers.append(receiver)
    for ids, answer in zip(asked, answers, strict=True):
        expected = {row.key.id: row["clip"].tobytes() for row in rows}
        assert answer.recv() == [expected[id] for id in ids]


def test_a_pickled_reader_reads_on(
    store: Store, recipe: Recipe, make_row: MakeRow, assert_same_row: SameRow
) -> None:
    _write(store, recipe, [make_row("v1")])
    reader = store.reader("clip", recipe.id)
    assert_same_row(pickle.loads(pickle.dumps(reader)).row("v1"), make_row("v1"))


def test_only_the_most_recent_files_stay_open(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(5)]
    for path in paths:
        path.write_bytes(b"x")
    pool = FilePool(most=2)
    first = pool.get(paths[0])
    assert pool.get(paths[0]) is first
    for path in paths:
        pool.get(path)
    assert pool.get(paths[0]) is not first
    with pytest.raises(GoneError, match="not there any more"):
        pool.get(tmp_path / "none")


def test_a_part_whose_shard_was_taken_away_is_gone_and_no_riddle(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    _write(store, recipe, [make_row("v1")])
    reader = pickle.loads(pickle.dumps(store.reader("clip", recipe.id)))  # its files are closed
    (key,) = reader.keys()
    (shard,) = store.shards("clip", recipe.id)
    shard.unlink()
    with pytest.raises(GoneError, match="not there any more"):
        reader.part(key)


def test_a_reader_finds_its_rows_again_when_shards_were_replaced_under_it(
    store: Store, recipe: Recipe, make_row: MakeRow, assert_same_row: SameRow
) -> None:
    _write(store, recipe, [make_row("v1")])
    reader = pickle.loads(pickle.dumps(store.reader("clip", recipe.id)))  # its files are closed
    (old,) = store.shards("clip", recipe.id)
    with store.writer(recipe) as writer:
        writer.add(make_row("v1"))
        writer.add(make_row("v2"))
    old.unlink()
    assert_same_row(reader.row("v1"), make_row("v1"))
    assert reader.ids() == ["v1", "v2"]
