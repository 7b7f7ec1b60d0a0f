"""What is kept of rows that are not finished, and packing while a stage runs; in every place."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from one_shard import place_of as put

from data.errors import StoreError
from data.store import ItemKey, Recipe, Row, Store
from data.store.compact import pack
from data.store.files import atomic_write, read_bytes
from data.store.place import Place
from data.store.unfinished import MOST_BYTES, Unfinished

MakeRow = Callable[..., Row]

KEY = ItemKey("film", "a" * 64, 3, 7)
OTHER = ItemKey("film", "a" * 64, 4, 7)


@pytest.fixture
def unfinished(every_place: Place) -> Unfinished:
    return Unfinished(every_place / "captions" / ("0" * 16))


def only_file(unfinished: Unfinished) -> Place:
    (name,) = unfinished._names()
    return unfinished.folder / name


def test_what_is_kept_comes_back_for_its_own_row_alone(unfinished: Unfinished) -> None:
    assert (unfinished.of(KEY), unfinished.any()) == ("", False)
    unfinished.keep(KEY, '["ein Hund — “bellt”"]')
    assert unfinished.of(KEY) == '["ein Hund — “bellt”"]'
    assert unfinished.of(OTHER) == ""
    unfinished.keep(KEY, "[1]")
    assert (unfinished.of(KEY), unfinished.any()) == ("[1]", True)
    unfinished.forget([KEY, OTHER])
    assert (unfinished.of(KEY), unfinished.any()) == ("", False)


def test_a_row_that_is_not_in_a_listing_is_not_looked_up(unfinished: Unfinished) -> None:
    assert unfinished.listed() == frozenset()
    unfinished.keep(KEY, "[1]")
    before = unfinished.listed()
    unfinished.keep(OTHER, "[2]")
    assert [unfinished.of(key, before) for key in (KEY, OTHER)] == ["[1]", ""]
    assert unfinished.of(OTHER, unfinished.listed()) == "[2]"


def test_rows_that_are_stored_by_now_are_swept(unfinished: Unfinished) -> None:
    unfinished.keep(KEY, "[1]")
    unfinished.keep(OTHER, "[2]")
    assert unfinished.sweep({KEY}) == 1
    assert (unfinished.of(KEY), unfinished.of(OTHER)) == ("", "[2]")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"[1]", b"[2]"),
        lambda data: data[:-5],
        lambda data: b"",
        lambda data: b"\xff\x00nonsense",
        lambda data: data.replace(b'"part":3', b'"part":4'),
        lambda data: json.dumps({"key": {"id": "film"}, "kept": "[1]", "crc32": 1}).encode(),
        lambda data: data.replace(b'"crc32":', b'"crc":'),
        lambda data: data.replace(b'"[1]"', b'"\\ud800"'),
        lambda data: b"[" * 100_000,
    ],
)
def test_a_file_that_is_not_what_was_written_counts_as_absent_and_is_named(
    unfinished: Unfinished, change: Callable[[bytes], bytes]
) -> None:
    unfinished.keep(KEY, "[1]")
    assert unfinished.damaged() == []
    place = only_file(unfinished)
    atomic_write(place, change(read_bytes(place)))
    assert unfinished.of(KEY) == ""
    assert unfinished.damaged() == [place.name]
    unfinished.keep(KEY, "[3]")
    assert (unfinished.of(KEY), unfinished.damaged()) == ("[3]", [])


def test_nothing_empty_and_nothing_huge_is_kept(unfinished: Unfinished) -> None:
    for text in ("", "x" * (MOST_BYTES + 1)):
        with pytest.raises(ValueError, match="to be kept of"):
            unfinished.keep(KEY, text)
    assert not unfinished.any()


def filled(place: Place, recipe: Recipe, make_row: MakeRow, shards: int) -> Store:
    store = Store.create(place, dataset="tiny", clip_len_s=2.0)
    for number in range(shards):
        put(store, recipe, [make_row(f"v{number:02}")])
    return store


def rows(store: Store, recipe: Recipe) -> dict[str, bytes]:
    reader = store.reader(recipe.stage, recipe.id)
    return {id_: reader.array(id_, "clip").tobytes() for id_ in reader.ids()}


def test_a_recipe_that_nobody_is_sent_to_yet_can_be_packed(
    every_place: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    store = filled(every_place, recipe, make_row, 12)
    store.set_current({recipe.stage: "f" * 16})
    before = rows(store, recipe)
    done = pack(store, recipe.stage, recipe.id, 1 << 20)
    assert done is not None
    assert (done.before, done.after, done.rows) == (12, 1, 12)
    assert rows(store, recipe) == before
    assert pack(store, recipe.stage, recipe.id, 1 << 20) is None, "one small shard stays"


def test_packing_that_would_not_leave_fewer_shards_is_not_begun(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    store = filled(tmp_path / "store", recipe, make_row, 3)
    names = store.shards(recipe.stage, recipe.id)
    assert pack(store, recipe.stage, recipe.id, 100) is None
    assert store.shards(recipe.stage, recipe.id) == names


def test_packing_that_nobody_waits_for_ends_early_and_hides_no_row(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    store = filled(tmp_path / "store", recipe, make_row, 12)
    before = rows(store, recipe)
    for looks in range(14):
        go_on = partial(next, iter([True] * looks), False)
        done = pack(store, recipe.stage, recipe.id, 1 << 20, go_on)
        assert done is None or looks > 12
        assert rows(store, recipe) == before
    assert len(store.shards(recipe.stage, recipe.id)) == 1


def test_two_packings_at_once_are_told_apart(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    from data.store.compact import _alone

    store = filled(tmp_path / "store", recipe, make_row, 3)
    with (
        _alone(store.folder(recipe.stage, recipe.id)),
        pytest.raises(StoreError, match="another compact is at work"),
    ):
        pack(store, recipe.stage, recipe.id, 1 << 20)
