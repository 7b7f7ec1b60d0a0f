from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import StoreError
from data.store import CatalogueEntry, Failure, ItemKey, Recipe, Row, Schema, Store
from data.store.files import atomic_write, list_folder, read_bytes, read_records, size_of
from data.store.place import Place
from data.store.rebuild import is_damaged
from data.store.repair import repair, salvage_shard
from data.store.shard import encode_shard
from data.video.types import VideoFacts

MakeRow = Callable[..., Row]
SameRow = Callable[[Row, Row], None]
FACTS = VideoFacts(12.0, 25.0, 300, 64, 48, 0, "h264", "yuv420p", 1234, False, 0)


@pytest.fixture(params=["local", "memory"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where a store can be."""
    if request.param == "local":
        yield tmp_path / "store"
        return
    yield request.getfixturevalue("memory_place")


@pytest.fixture
def rows(make_row: MakeRow) -> list[Row]:
    return [make_row(f"v{number}") for number in range(4)]


@pytest.fixture
def full(here: Place, recipe: Recipe, rows: list[Row]) -> Store:
    return filled(Store.create(here, dataset="tiny", clip_len_s=2.0), recipe, rows)


def filled(store: Store, recipe: Recipe, rows: list[Row]) -> Store:
    with store.writer(recipe) as writer:
        for row in rows:
            writer.add(row)
    store.set_current({recipe.stage: recipe.id})
    contents = {row.key.id: row.key.content for row in rows}
    store.update_catalogue(CatalogueEntry(id, each, FACTS) for id, each in contents.items())
    return store


def errors(store: Store) -> list[str]:
    return [each.message for each in store.verify() if each.level == "error"]


def spoil(place: Place, row: Row) -> bytes:
    """Flip bits of the row in a shard; gives the bytes of before."""
    whole = read_bytes(place)
    start = whole.index(row["clip"].tobytes())
    place.write_bytes(whole[:start] + b"\xff\xff" + whole[start + 2 :])
    return whole


def aside(store: Store) -> dict[str, bytes]:
    """Files that were set aside, by name."""
    folder = store.path / "set-aside" / "clip" / store.current["clip"]
    return {entry.name: read_bytes(folder / entry.name) for entry in list_folder(folder)}


def refill(store: Store, recipe: Recipe, rows: list[Row]) -> list[ItemKey]:
    """What the engine does: add the rows that are not there."""
    there = store.reader(recipe.stage).keys()
    with store.writer(recipe) as writer:
        for row in rows:
            if row.key not in there:
                writer.add(row)
        return list(writer.pending)


def test_whole_items_of_a_damaged_shard_are_kept_and_the_rest_is_made_again(
    full: Store, recipe: Recipe, rows: list[Row], assert_same_row: SameRow
) -> None:
    (shard,) = full.shards("clip")
    spoil(shard, rows[2])
    damaged = read_bytes(shard)
    done = salvage_shard(full, shard)
    assert [key.id for key in done.kept] == ["v0", "v1", "v3"]
    assert [key.id for key in done.lost] == ["v2"]
    assert aside(full) == {shard.name: damaged}
    assert errors(full) == []
    assert refill(full, recipe, rows) == [rows[2].key]
    for row in rows:
        assert_same_row(full.reader("clip").row(row.key.id), row)
    (told,) = read_records(full.path / "set-aside" / "log.jsonl")
    assert told["what"] == f"clip/{recipe.id}/{shard.name}"
    assert [len(told["kept"]), len(told["lost"])] == [3, 1]
    assert "1 damaged items of 4" in told["why"]


def test_a_shard_whose_tables_cannot_be_trusted_is_set_aside_as_a_whole(
    full: Store, recipe: Recipe, rows: list[Row]
) -> None:
    (shard,) = full.shards("clip")
    name, torn = shard.name, read_bytes(shard)[:-200]
    shard.write_bytes(torn)
    done = salvage_shard(full, shard)
    assert (done.kept, done.lost) == ((), ())
    assert aside(full) == {name: torn}
    assert full.reader("clip").keys() == frozenset()
    assert refill(full, recipe, rows) == [row.key for row in rows]
    assert [each.name for each in full.shards("clip")] == [name]
    assert errors(full) == []


def test_a_whole_shard_and_one_that_is_gone_are_left_alone(full: Store) -> None:
    (shard,) = full.shards("clip")
    before = read_bytes(shard)
    done = salvage_shard(full, shard)
    assert (len(done.kept), done.lost, done.set_aside) == (4, (), None)
    assert read_bytes(shard) == before
    gone = salvage_shard(full, shard.with_name("shard-0123456789abcdef.h5"))
    assert (gone.kept, gone.lost, gone.set_aside) == ((), (), None)
    assert repair(full) == []
    assert list_folder(full.path / "set-aside") == []


def test_damage_outside_of_all_items_costs_no_row_and_keeps_a_copy(
    full: Store, rows: list[Row]
) -> None:
    (shard,) = full.shards("clip")
    longer = read_bytes(shard) + b"garbage"
    shard.write_bytes(longer)
    done = salvage_shard(full, shard)
    assert len(done.kept) == 4
    assert aside(full) == {shard.name: longer}
    assert [each.name for each in full.shards("clip")] == [shard.name]
    assert errors(full) == []


def test_what_was_set_aside_before_stays_when_a_file_of_that_name_follows(full: Store) -> None:
    (shard,) = full.shards("clip")
    whole = read_bytes(shard)
    for ending in (b"one", b"two"):
        shard.write_bytes(whole + ending)
        salvage_shard(full, shard)
    assert {content[-3:] for content in aside(full).values()} == {b"one", b"two"}


def test_every_damage_is_repaired_and_refilled_bit_for_bit(
    store: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{number}", clips=3) for number in range(3)]
    filled(store, recipe, rows)
    (shard,) = store.shards("clip")
    whole = shard.read_bytes()
    rng = np.random.default_rng(7)
    for trial in range(40):
        spoiled = bytearray(whole)
        start = int(rng.integers(len(whole)))
        if trial % 4 == 0:
            spoiled = spoiled[:start]
        elif trial % 4 == 1:
            spoiled[start : start + 256] = bytes(len(spoiled[start : start + 256]))
        else:
            spoiled[start] ^= 1 << int(rng.integers(8))
        if bytes(spoiled) == whole:
            continue
        shard.write_bytes(spoiled)
        assert repair(store), start
        assert errors(store) == [], start
        refill(store, recipe, rows)
        assert errors(store) == []
        reader = store.reader("clip")
        for row in rows:
            assert reader.row(row.key.id)["clip"].tobytes() == row["clip"].tobytes()
            assert reader.row(row.key.id).facts == row.facts
        for each in store.shards("clip"):
            each.unlink()
        shard.write_bytes(whole)


def test_a_dry_run_names_the_same_and_changes_nothing(full: Store, rows: list[Row]) -> None:
    (shard,) = full.shards("clip")
    spoil(shard, rows[0])
    spoiled = read_bytes(shard)
    (would,) = repair(full, dry_run=True)
    assert (would.kept, would.lost) == (3, 1)
    assert read_bytes(shard) == spoiled
    assert list_folder(full.path / "set-aside") == []
    assert repair(full) == [would]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["atomic_write", "move", "append_records"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_leaves_nothing_lost(
    step: str,
    when: str,
    store: Store,
    recipe: Recipe,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from data.store import salvage, upkeep

    filled(store, recipe, rows)
    (shard,) = store.shards("clip")
    spoil(shard, rows[1])
    module = upkeep if step == "atomic_write" else salvage
    real = getattr(module, step)

    def last(*args: object) -> None:
        if when == "after":
            real(*args)
        raise Killed

    monkeypatch.setattr(module, step, last)
    with pytest.raises(Killed):
        salvage_shard(store, shard)
    monkeypatch.undo()
    repair(store)
    assert errors(store) == []
    assert store.reader("clip").ids() == ["v0", "v2", "v3"]
    assert shard.name in aside(store)


def test_a_shard_that_a_job_wrote_anew_meanwhile_stays(
    store: Store, recipe: Recipe, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.store import salvage

    filled(store, recipe, rows)
    (shard,) = store.shards("clip")
    whole = spoil(shard, rows[1])
    real = salvage.move

    def after_a_job(source: Place, target: Place) -> None:
        shard.write_bytes(whole)
        monkeypatch.undo()
        real(source, target)

    monkeypatch.setattr(salvage, "move", after_a_job)
    assert salvage_shard(store, shard).set_aside is None
    assert shard.read_bytes() == whole
    assert errors(store) == []


def test_a_shard_in_the_wrong_folder_is_set_aside(
    full: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    other = replace(recipe, version=2)
    content = encode_shard(other, [make_row("v9")])
    name = f"shard-{hashlib.sha256(content).hexdigest()[:16]}.h5"
    (full.folder("clip") / name).write_bytes(content)
    (done,) = repair(full)
    assert f"belongs to clip/{other.id}" in done.told
    assert aside(full) == {name: content}
    assert errors(full) == []


def test_a_shard_of_another_schema_version_is_left_alone_and_named(
    store: Store, recipe: Recipe, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, recipe, rows)
    with monkeypatch.context() as patch:
        patch.setattr("data.store.shard.SCHEMA_VERSION", 2)
        newer = encode_shard(recipe, [replace(rows[0], facts={})])
    place = store.folder("clip") / f"shard-{hashlib.sha256(newer).hexdigest()[:16]}.h5"
    place.write_bytes(newer)
    (left,) = repair(store)
    assert not left.done
    assert "schema version 2; this program reads version 1" in left.told
    assert place.read_bytes() == newer
    with pytest.raises(StoreError, match="schema version 2"):
        salvage_shard(store, place)


def test_a_missing_or_edited_recipe_is_written_again_from_the_shards(
    full: Store, recipe: Recipe
) -> None:
    path = full.folder("clip") / "recipe.json"
    before = read_bytes(path)
    for spoiled in (None, json.dumps(recipe.to_json() | {"version": 2}).encode(), b"{"):
        if spoiled is None:
            path.unlink()
        else:
            path.write_bytes(spoiled)
        (done,) = repair(full)
        assert "written again from the shards" in done.told
        assert read_bytes(path) == before
        assert errors(full) == []


def test_torn_lines_of_failures_go_and_whole_ones_stay(full: Store) -> None:
    log = full.failures("clip")
    for number in range(3):
        log.record(Failure("clip", ItemKey(f"w{number}", "a" * 64), "toy", "no", 1))
    kept = full.failures("clip").read()
    path = full.folder("clip") / "failures.jsonl"
    pieces = list_folder(full.folder("clip") / "failures.jsonl.d")
    if pieces:  # an object store
        path = path.with_name("failures.jsonl.d") / pieces[-1].name
    path.write_bytes(read_bytes(path) + b'{"key": 1}\n{"key": {"id"')
    (done,) = repair(full)
    assert (done.what, done.lost) == ("failures", 2)
    assert full.failures("clip").read() == kept
    assert errors(full) == []


@pytest.fixture
def probed(full: Store, rows: list[Row]) -> Store:
    """Rows of the probe for all videos, two contents for v3."""
    probe = Recipe("probe", 1, {}, {}, Schema())
    with full.writer(probe) as writer:
        for row in rows:
            writer.add(Row(row.key, row.grid, facts=FACTS.to_json()))
        writer.add(Row(replace(rows[3].key, content="e" * 64), rows[3].grid, facts=FACTS.to_json()))
    full.set_current({"probe": probe.id})
    return full


@pytest.mark.parametrize("how", ["missing", "torn", "no entries"])
def test_the_catalogue_is_made_again_from_the_probe(how: str, probed: Store) -> None:
    path = probed.path / "videos.jsonl"
    before, raw = probed.catalogue(), read_bytes(path)
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if how == "torn" else b'{"video_id": 1}\n' * 2)
    (done,) = repair(probed)
    assert done.what == "catalogue"
    # v3 was probed with two contents: only a run that sees the file can tell.
    assert probed.catalogue() == {id: e for id, e in before.items() if id != "v3"}
    assert repair(probed) == []


def test_damaged_annotations_are_set_aside_as_a_whole(full: Store) -> None:
    path = full.path / "annotations" / "val.jsonl"
    if isinstance(path, Path):
        path.parent.mkdir()
    path.write_bytes(b"{}\n")
    (done,) = repair(full)
    assert "`pipeline run` with a config writes it again" in done.told
    assert full.splits() == []
    assert size_of(full.path / "set-aside" / "annotations" / "val.jsonl") == 3
    assert errors(full) == []


def test_any_file_can_be_set_aside(full: Store) -> None:
    (shard,) = full.shards("clip")
    content = read_bytes(shard)
    assert full.set_aside(shard, "of a wrong film") is not None
    assert aside(full) == {shard.name: content}
    assert full.shards("clip") == []
    assert full.set_aside(shard, "again") is None


def test_a_file_that_cannot_be_read_is_not_damage(store: Store, recipe: Recipe) -> None:
    filled(store, recipe, [])
    place = store.folder("clip") / "shard-0123456789abcdef.h5"
    place.mkdir()  # reading it fails as a broken disk does, also for root
    with pytest.raises(StoreError, match="cannot read"):
        salvage_shard(store, place)
    assert place.is_dir()
    assert not (store.path / "set-aside").exists()


def test_lines_that_readers_refuse_go_though_they_are_loose_json(full: Store) -> None:
    lines = [b'{"key":{"id":"v","content":"c","part":0,"parts":1},"forgotten":true}']
    lines += [lines[0][:-5] + b"NaN}", lines[0][:-1] + b',"forgotten":true}']
    place = full.folder("clip") / "failures.jsonl"
    atomic_write(place, b"\n".join(lines) + b"\n")
    (done,) = repair(full)
    assert "has 2 lines that are no records" in done.told
    assert read_bytes(place) == lines[0] + b"\n"


@pytest.mark.parametrize("name", ["annotations/train.jsonl", "recipe.json"])
def test_a_small_file_that_cannot_be_read_is_left_alone(
    name: str, store: Store, recipe: Recipe, rows: list[Row]
) -> None:
    filled(store, recipe, rows)
    root = store.path if "/" in name else store.folder("clip")
    assert isinstance(root, Path)
    (root / name).unlink(missing_ok=True)
    (root / name).mkdir(parents=True)  # reading it is an error of the file system
    (done,) = repair(store)
    assert not done.done
    assert "was left alone" in done.told
    assert (root / name).is_dir()


def test_a_store_json_that_cannot_be_read_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "store.json").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        is_damaged(tmp_path)
