from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from one_shard import place_of as put

from data.errors import StoreError
from data.store import CatalogueEntry, ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.store.compact import Compaction, _alone, compact, plan
from data.store.files import atomic_write, read_bytes, size_of
from data.store.item import encode_item, item_crc32
from data.store.place import Place
from data.store.reader import FilePool
from data.store.shard_reader import Shard
from data.store.upkeep import build_items, in_order
from data.video.types import VideoFacts

MakeRow = Callable[..., Row]
Contents = dict[ItemKey, bytes]


@pytest.fixture(params=["local", "memory"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield tmp_path / "store"
        return
    yield request.getfixturevalue("memory_place")


def contents(store: Store, stage: str = "clip") -> Contents:
    """Every byte of every visible row."""
    found: Contents = {}
    for place in store.shards(stage):
        shard = Shard(place, FilePool())
        for index, key in enumerate(shard.keys):
            item = shard.encoded(index)
            parts = [f"{item.duration_s} {item.clip_len_s} {item.grid_clips}".encode(), item.facts]
            for name in sorted(item.arrays):
                array = item.arrays[name]
                parts += [f"{name}{array.shape}{array.dtype}".encode(), array.tobytes()]
            for name in sorted(item.texts):
                parts += [item.texts[name].lengths.tobytes(), item.texts[name].data]
            found.setdefault(key, b"|".join(parts))
    return found


def run(store: Store, target_bytes: int = 4000, **options: bool) -> Compaction:
    (done,) = compact(store, target_bytes=target_bytes, **options)
    return done


def test_many_small_shards_become_few_of_even_size_with_the_same_rows(
    here: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    store = Store.create(here, dataset="tiny", clip_len_s=2.0)
    rows = [make_row(f"v{n:02}") for n in range(30)]
    rows += [make_row("w", part=part, parts=3) for part in range(3)]
    for number in range(11):
        put(store, recipe, rows[number::11])
    before = contents(store)
    done = run(store)
    assert (done.before, done.rows, done.dropped, done.left_alone) == (11, 33, 0, ())
    assert contents(store) == before
    shards = [Shard(place, FilePool()) for place in store.shards("clip")]
    sizes = [sum(shard.size_bytes(i) for i in range(len(shard.keys))) for shard in shards]
    assert len(sizes) == done.after == -(-sum(sizes) // 4000)
    assert max(sizes) - min(sizes) < 900  # of about 3,400, in steps of 400
    names = [place.name for place in store.shards("clip")]
    again = run(store)
    assert (again.written, again.after) == (0, again.before)
    assert [place.name for place in store.shards("clip")] == names
    assert {each.kind for each in store.verify()} == {"catalogue"}  # it has none


def test_rows_without_arrays_grids_or_texts_are_kept_byte_for_byte(store: Store) -> None:
    key = ItemKey("q", "a" * 64)
    kinds = {
        "probe": [Row(key, facts={"duration_s": 1.5, "ü": [1]})],
        "queries": [Row(key, arrays={"tokens": np.zeros((0, 2), "float16")}, texts={"t": []})],
    }
    schemas = {
        "probe": Schema(),
        "queries": Schema({"tokens": StreamSpec((2,), "float16", "item")}, ("t",)),
    }
    for stage, rows in kinds.items():
        recipe = Recipe(stage, 1, {}, {}, schemas[stage])
        put(store, recipe, rows)
        put(store, recipe, [replace(row, key=replace(key, id="p")) for row in rows])
    before = {stage: contents(store, stage) for stage in kinds}
    assert [each.after for each in compact(store)] == [1, 1]
    assert {stage: contents(store, stage) for stage in kinds} == before


def test_of_rows_that_are_stored_twice_the_visible_one_stays(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    other = replace(make_row("v1"), facts={"flags": [9], "frames": 6})
    put(store, recipe, [make_row("v0"), make_row("v1")])
    put(store, recipe, [other, make_row("v2")])
    put(store, recipe, [make_row("v2"), make_row("v3")])
    visible = store.reader("clip").facts("v1")
    before = contents(store)
    done = run(store, 1 << 20)
    assert (done.dropped, done.after) == (2, 1)
    assert contents(store) == before
    assert store.reader("clip").facts("v1") == visible


def test_shards_of_a_good_size_stay_when_small_ones_are_added(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    large = put(store, recipe, [make_row(f"v{n}") for n in range(10)])
    stamp = large.stat().st_mtime_ns
    for name in ("a", "b", "c"):
        put(store, recipe, [make_row(name)])
    done = run(store)
    assert (done.before, done.after, done.written) == (4, 2, 1)
    assert large.stat().st_mtime_ns == stamp


def test_superseded_rows_go_when_asked_and_those_of_nobody_stay(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row("v", content=each) for each in "ab"]
    for row in [*rows, make_row("unlisted")]:
        put(store, recipe, [row])
    facts = VideoFacts(12.0, 25.0, 300, 64, 48, 0, "h264", "yuv420p", 1234, False, 0)
    store.update_catalogue([CatalogueEntry("v", rows[1].key.content, facts)])
    assert run(store).dropped == 0
    assert run(store, drop_superseded=True).dropped == 1
    assert store.reader("clip").keys() == {rows[1].key, make_row("unlisted").key}


@pytest.mark.parametrize("where", ["rows", "tables"])
def test_a_damaged_shard_is_left_alone_and_named(
    where: str, store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    for number in range(4):
        put(store, recipe, [make_row(f"v{number}")])
    places = {Shard(p, FilePool()).keys[0].id: p for p in store.shards("clip")}
    whole = places["v1"].read_bytes()
    start = whole.index(make_row("v1")["clip"].tobytes())
    spoiled = whole[:start] + b"\xff\xff" + whole[start + 2 :] if where == "rows" else whole[:-99]
    places["v1"].write_bytes(spoiled)
    done = run(store)
    (told,) = done.left_alone
    assert places["v1"].name in told
    assert places["v1"].read_bytes() == spoiled
    assert (done.before, done.after, done.rows) == (4, 2, 3)


def test_a_dry_run_says_the_same_and_changes_nothing(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    for number in range(9):
        put(store, recipe, [make_row(f"v{number}")])
    before = {place.name: read_bytes(place) for place in store.shards("clip")}
    would = run(store, dry_run=True)
    assert {place.name: read_bytes(place) for place in store.shards("clip")} == before
    assert (would.before, would.after) == (9, run(store).after)


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_at_any_write_or_removal_changes_no_visible_row(
    store: Store, recipe: Recipe, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data.store.compact as module

    for number in range(4):
        put(store, recipe, [make_row(f"v{number}")])
        other = replace(make_row(f"v{number}"), facts={"flags": [number], "frames": 6})
        put(store, recipe, [other, make_row(f"w{number}")])
    before = contents(store)
    real = {name: getattr(module, name) for name in ("write_shard", "remove")}
    steps, ended = 0, False
    while not ended:
        left = steps
        steps += 1

        def step(name: str, *args: object) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            real[name](*args)

        for name in real:
            monkeypatch.setattr(module, name, lambda *args, name=name: step(name, *args))
        try:
            run(store, 3000)
            ended = True
        except Killed:
            assert contents(store) == before, steps
        monkeypatch.undo()
    assert steps > 3
    assert contents(store) == before
    assert run(store, 3000).written == 0


def test_old_shards_stay_where_a_new_one_goes_missing(
    store: Store, recipe: Recipe, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data.store.compact as module

    for number in range(4):
        put(store, recipe, [make_row(f"v{number}")])
    before = contents(store)
    monkeypatch.setattr(module, "write_shard", lambda place, shard: None)
    assert "another compact or repair is at work" in run(store).note
    monkeypatch.undo()
    assert contents(store) == before


def test_two_compacts_at_a_time_are_told_apart(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    put(store, recipe, [make_row("v")])
    with _alone(store.folder("clip")), pytest.raises(StoreError, match="another compact is at"):
        run(store)
    assert run(store).after == 1


def test_rows_written_while_it_works_stay_and_open_readers_go_on(
    store: Store, recipe: Recipe, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data.store.compact as module

    for number in range(5):
        put(store, recipe, [make_row(f"v{number}")])
    reader = store.reader("clip")
    real = module.write_shard

    def write_and_meet_a_job(place: Place, shard: bytes) -> None:
        real(place, shard)
        put(store, recipe, [make_row("late"), make_row("v0")])

    monkeypatch.setattr(module, "write_shard", write_and_meet_a_job)
    run(store, 1 << 20)
    assert reader.row("v3")["clip"].tobytes() == make_row("v3")["clip"].tobytes()
    assert store.reader("clip").ids() == ["late", *(f"v{number}" for number in range(5))]


def test_other_recipes_and_other_stages_are_not_touched(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    older, other = replace(recipe, version=0), replace(recipe, stage="slowfast")
    for each in (older, other, recipe):
        for number in range(3):
            put(store, each, [make_row(f"v{number}")])
    (done,) = compact(store, ["clip"])
    assert (done.stage, done.after) == ("clip", 1)
    assert len(store.shards("clip", older.id)) == len(store.shards("slowfast")) == 3
    with pytest.raises(StoreError, match="no stage 'i3d'"):
        list(compact(store, ["i3d"]))


def test_whatever_the_shards_are_no_visible_row_changes(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    rng = np.random.default_rng(11)
    for trial in range(8):
        store = Store.create(tmp_path / str(trial), dataset="tiny", clip_len_s=2.0)
        rows = [
            make_row(f"v{n}", content=str(rng.choice(["a", "b"])), part=part, parts=parts)
            for n in range(int(rng.integers(1, 12)))
            for parts in rng.choice([1, 1, 2], size=1).tolist()
            for part in range(parts)
        ]
        for _ in range(int(rng.integers(1, 8))):
            some = [row for row in rows if rng.random() < 0.5] or rows
            flags = {"flags": [int(rng.integers(3))], "frames": 6}
            put(store, recipe, [replace(row, facts=flags) for row in some])
        before, target = contents(store), int(rng.integers(300, 9000))
        done = run(store, target)
        assert contents(store) == before, trial
        assert done.rows == len(before)
        again = run(store, target)
        assert (again.written, again.dropped, again.after) == (0, 0, done.after), trial


def test_a_plan_of_its_own_result_is_that_result() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        target = int(rng.integers(1, 5000))
        sizes = {
            ItemKey(f"v{n}", "a" * 64): int(rng.choice([10, 300, 4000]) * rng.random()) + 1
            for n in range(int(rng.integers(1, 40)))
        }
        keys = list(sizes)
        keys = [keys[i] for i in rng.permutation(len(keys))]
        cuts = [0, *sorted(rng.integers(0, len(keys), size=5).tolist()), len(keys)]
        there = [tuple(sorted(keys[i:j], key=in_order)) for i, j in pairwise(cuts) if i < j]
        pieces = plan(sizes, there, target)
        assert sorted(key.id for piece in pieces for key in piece) == sorted(k.id for k in keys)
        assert set(plan(sizes, pieces, target)) == set(pieces)


def test_names_are_those_of_the_bytes(store: Store, recipe: Recipe, make_row: MakeRow) -> None:
    for number in range(3):
        put(store, recipe, [make_row(f"v{number}")])
    run(store)
    for place in store.shards("clip"):
        digest = hashlib.sha256(read_bytes(place)).hexdigest()
        assert place.name == f"shard-{digest[:16]}.h5"
        assert size_of(place)


def write_one_by_one(path: Path, recipe: Recipe, rows: list[Row]) -> None:
    """A job that writes many small shards."""
    store = Store.open(path)
    for row in rows:
        put(store, recipe, [row])
        time.sleep(0.01)


def compact_for_ever(path: Path, target_bytes: int) -> None:
    """A maintainer without patience."""
    store = Store.open(path)
    while True:
        with suppress(StoreError):
            run(store, target_bytes)


def test_a_job_and_two_compacts_that_are_killed_again_and_again_lose_no_row(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{number:02}") for number in range(24)]
    put(store, recipe, rows[:1])
    fork = multiprocessing.get_context("forkserver")
    job = fork.Process(target=write_one_by_one, args=(store.path, recipe, rows))
    job.start()
    rng = np.random.default_rng(0)
    kills = 0
    while job.is_alive() or kills < 4:
        pair = [fork.Process(target=compact_for_ever, args=(store.path, 2000 * n)) for n in (1, 3)]
        for each in pair:
            each.start()
        time.sleep(float(rng.uniform(0.3, 0.8)))
        for each in pair:
            each.kill()
            each.join()
            kills += 1
    job.join()
    assert job.exitcode == 0
    reader = store.reader("clip")
    assert reader.ids() == [row.key.id for row in rows]
    assert all(reader.row(row.key.id)["clip"].tobytes() == row["clip"].tobytes() for row in rows)
    assert {each.kind for each in store.verify() if each.level == "error"} == {"catalogue"}
    assert run(store, 6000).after < 10


def test_a_duration_of_ages_in_a_strangers_shard_costs_no_memory(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    put(store, recipe, [make_row("v")])
    item = encode_item(make_row("w", part=1, parts=2), recipe.schema, "clip")
    crc32 = item_crc32(item.key, 1e308, item.facts, item.arrays, item.texts)
    name, shard = build_items(recipe, [replace(item, duration_s=1e308, crc32=crc32)])
    atomic_write(store.folder("clip") / name, shard)
    assert store.reader("clip").ids() == ["v"]
    before = contents(store)
    done = run(store)
    assert (done.before, done.after, done.rows) == (2, 1, 2)
    assert contents(store).keys() == before.keys()
