"""A reader that looks again: what was added, replaced and taken away; several threads at once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from data.store import Recipe, Row, StageReader, Store
from data.store.files import remove
from data.store.place import Place
from data.store.shard_reader import Shard

MakeRow = Callable[..., Row]


def write(store: Store, recipe: Recipe, *rows: Row) -> None:
    with store.writer(recipe) as writer:
        for row in rows:
            writer.add(row)


def test_what_is_added_is_seen_and_what_is_taken_away_is_not(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    write(store, recipe, make_row("v1"))
    first = set(store.shards("clip", recipe.id))
    reader = store.reader("clip", recipe.id)
    write(store, recipe, make_row("v2"))
    assert reader.ids() == ["v1"]
    reader.refresh()
    assert reader.ids() == ["v1", "v2"]
    for path in first:
        path.unlink()
    reader.refresh()
    assert reader.ids() == ["v2"]


def test_parts_that_arrive_one_by_one_make_an_item_when_all_are_there(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    whole = make_row("v1")
    parts = [replace(whole, key=replace(whole.key, part=n, parts=2)) for n in range(2)]
    reader = store.reader("clip", recipe.id)
    for row, ids in zip(reversed(parts), ([], ["v1"]), strict=True):
        write(store, recipe, row)
        reader.refresh()
        assert reader.ids() == ids
    assert len(reader.keys()) == 2


def test_a_refreshed_reader_prefers_the_shard_that_a_new_one_would(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    reader = store.reader("clip", recipe.id)
    shared = make_row("v1")
    for number in range(6):
        write(store, recipe, shared, make_row(f"w{number}"))
        reader.refresh()
        new = store.reader("clip", recipe.id)
        assert reader.ids() == new.ids()
        assert _shard_of(reader) == _shard_of(new) == store.shards("clip", recipe.id)[0].name


def _shard_of(reader: object) -> str:
    (shard, _) = reader._places("v1", None)[0]  # type: ignore[attr-defined]
    return str(shard.path.name)


def test_threads_read_on_while_shards_are_replaced(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{number}") for number in range(12)]
    for row in rows:
        write(store, recipe, row)
    old = list(store.shards("clip", recipe.id))
    reader = pickle.loads(pickle.dumps(store.reader("clip", recipe.id)))  # its files are closed
    write(store, recipe, *rows)
    for path in old:
        path.unlink()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: reader.array(row.key.id, "clip"), rows * 3))
    for row, array in zip(rows * 3, found, strict=True):
        np.testing.assert_array_equal(array, row["clip"])


def test_a_shard_that_is_replaced_between_the_listing_and_its_opening_costs_no_row(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{number}") for number in range(3)]
    for row in rows:
        write(store, recipe, row)
    old = store.shards("clip", recipe.id)

    class Compacted(StageReader):
        """While it looks for the first time, another job makes one shard of all."""

        def _opened(self, path: Place) -> Shard:
            write(store, recipe, *rows)
            for each in old:
                remove(each)
            return super()._opened(path)

    reader = Compacted(store.folder("clip", recipe.id), recipe, dict)
    assert reader.ids() == ["v0", "v1", "v2"]
