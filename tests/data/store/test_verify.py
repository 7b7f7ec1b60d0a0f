from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.store import CatalogueEntry, Recipe, Row, Store
from data.store.inspection import ShardReport, SoundInspector
from data.store.place import Place
from data.store.shard import encode_shard
from data.store.untrusted import ChildInspector
from data.store.verify import verify
from data.video.types import VideoFacts

MakeRow = Callable[..., Row]


@pytest.fixture
def full(store: Store, recipe: Recipe, make_row: MakeRow) -> Store:
    """A store with two stages, a catalogue and failures, in which nothing is wrong."""
    slowfast = replace(recipe, stage="slowfast")
    for each in (recipe, slowfast):
        with store.writer(each) as writer:
            for number in range(3):
                writer.add(make_row(f"v{number}"))
        store.set_current({each.stage: each.id})
    facts = VideoFacts(12.0, 25.0, 300, 64, 48, 0, "h264", "yuv420p", 1234, False, 0)
    ids = [f"v{number}" for number in range(5)]
    store.update_catalogue(CatalogueEntry(id, make_row(id).key.content, facts) for id in ids)
    return store


def found(store: Store, *, deep: bool = True) -> list[tuple[str, str]]:
    """Kind and message of each problem."""
    return [(problem.kind, problem.message) for problem in store.verify(deep=deep)]


def put(store: Store, recipe: Recipe, rows: list[Row]) -> None:
    """A shard with a right name, whatever is in it."""
    content = encode_shard(recipe, rows)
    name = f"shard-{hashlib.sha256(content).hexdigest()[:16]}.h5"
    (store.folder(recipe.stage, recipe.id) / name).write_bytes(content)


@pytest.mark.parametrize("deep", [True, False])
def test_nothing_is_wrong_with_a_store_that_was_just_written(deep: bool, full: Store) -> None:
    assert full.verify(deep=deep) == []
    assert Store.open(full.path).verify(deep=deep) == []


def test_every_flipped_byte_of_a_shard_is_found(full: Store) -> None:
    path = full.shards("clip")[0]
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole), size=50):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(place % 8)
        path.write_bytes(flipped)
        problems = full.verify()
        assert problems
        assert all(path.name in problem.where for problem in problems), place
    path.write_bytes(whole)
    assert full.verify() == []


@pytest.mark.parametrize("change", ["truncated", "longer", "zero page", "empty"])
def test_torn_shards_are_found(change: str, full: Store) -> None:
    path = full.shards("clip")[0]
    whole = path.read_bytes()
    page = bytes(4096) if len(whole) > 8192 else bytes(512)
    torn = {
        "truncated": whole[: len(whole) // 2],
        "longer": whole + b"garbage",
        "zero page": whole[: -len(page)] + page,
        "empty": b"",
    }[change]
    path.write_bytes(torn)
    assert ("shard", str(path)) in {(each.kind, each.where) for each in full.verify()}


def test_a_damaged_item_is_named_with_its_shard(full: Store) -> None:
    path = full.shards("clip")[0]
    row = full.reader("clip").row("v1")
    whole = path.read_bytes()
    place = whole.index(row["clip"].tobytes())
    path.write_bytes(whole[:place] + b"\0\0" + whole[place + 2 :])
    [shard, item] = full.verify()
    assert "its sha256 is not that of its name" in shard.message
    assert (item.kind, item.where) == ("item", f"{path}: v1")
    assert full.verify(deep=False) == []


def test_an_edited_or_missing_recipe_is_found(full: Store, recipe: Recipe) -> None:
    path = full.folder("clip") / "recipe.json"
    path.write_text(json.dumps(recipe.to_json() | {"version": 2}))
    assert [kind for kind, _ in found(full)] == ["recipe"]
    path.unlink()
    [(kind, message)] = found(full)
    assert kind == "recipe"
    assert "missing" in message


def test_a_current_recipe_without_a_folder_is_found(full: Store) -> None:
    full.set_current({"i3d": "0123456789abcdef", "clip": "fedcba9876543210"})
    assert found(full) == [
        ("recipe", "fedcba9876543210 is current but has no folder; `pipeline run --stage clip`"),
        ("recipe", "0123456789abcdef is current but has no folder; `pipeline run --stage i3d`"),
    ]


def test_streams_with_different_numbers_of_clips_are_found(
    full: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    put(full, recipe, [make_row("v4", clips=6)])
    put(full, replace(recipe, stage="slowfast"), [make_row("v4", clips=5)])
    [(kind, message)] = found(full)
    assert kind == "grid"
    assert f"has 5 clips in slowfast/{full.current['slowfast']} and 6 in clip/" in message


def test_equal_duplicates_are_fine_and_different_ones_are_found(
    full: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    put(full, recipe, [make_row("v1")])
    assert full.verify() == []
    put(full, recipe, [replace(make_row("v1"), facts={"flags": [1], "frames": 6})])
    assert {kind for kind, _ in found(full)} == {"duplicate"}


def test_a_video_that_is_not_in_the_catalogue_is_found(
    full: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    put(full, recipe, [make_row("v9")])
    [problem] = full.verify()
    assert problem.where.endswith(": v9")
    assert "--stage probe" in problem.message


def test_a_shard_of_another_clip_length_is_found(full: Store, recipe: Recipe) -> None:
    path = full.path / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_len_s": 1.0}))
    kinds = {kind for kind, _ in found(Store.open(full.path))}
    assert kinds == {"grid"}


def test_unreadable_records_beside_the_shards_are_found(full: Store) -> None:
    (full.path / "videos.jsonl").write_text("{")
    (full.folder("clip") / "failures.jsonl").write_text('{"key": 1}\n')
    (full.path / "annotations").mkdir()
    (full.path / "annotations" / "val.jsonl").write_text("{}\n")
    assert {"catalogue", "failures", "annotations"} <= {kind for kind, _ in found(full)}


def test_a_copied_store_is_as_good(full: Store, tmp_path: Path) -> None:
    moved = full.path.rename(tmp_path / "elsewhere")
    assert Store.open(moved).verify() == []


def test_duplicates_that_differ_by_rounding_are_a_note(
    full: Store, recipe: Recipe, make_row: MakeRow
) -> None:
    row = make_row("v1")
    rounded = np.nextafter(row["clip"], np.float16(9))
    put(full, recipe, [replace(row, arrays={**row.arrays, "clip": rounded})])
    [note] = full.verify()
    assert (note.level, note.kind) == ("note", "duplicate")
    assert "differ by up to 0.00" in note.message
    put(full, recipe, [replace(row, arrays={**row.arrays, "clip": row["clip"] + np.float16(1)})])
    assert "error" in {problem.level for problem in full.verify()}


def test_what_lies_about_is_a_note(full: Store, recipe: Recipe, make_row: MakeRow) -> None:
    folder = full.folder("clip")
    (folder / ".tmp-1-abc").write_bytes(b"half")
    (folder / "copy.h5").write_bytes(b"?")
    made_of = replace(recipe, stage="i3d", upstream={"probe": "0123456789abcdef"})
    with full.writer(made_of) as writer:
        writer.add(make_row("v0"))
    full.set_current({"i3d": made_of.id})
    (full.path / "set-aside" / "clip").mkdir(parents=True)
    (full.path / "set-aside" / "clip" / "x.h5").write_bytes(b"bad")
    problems = full.verify()
    assert {problem.level for problem in problems} == {"note"}
    told = "\n".join(problem.message for problem in problems)
    assert "was left by a killed job" in told
    assert "a shard is called shard-<16 hex>.h5" in told
    assert "was made from probe/0123456789abcdef, which is not in this store" in told
    assert "1 files, 3 bytes; `pipeline gc --set-aside`" in told
    assert len(problems) == 4


def test_a_child_process_finds_the_same(full: Store, recipe: Recipe, make_row: MakeRow) -> None:
    put(full, recipe, [replace(make_row("v1"), facts={"other": 1}), make_row("v9")])
    path = full.shards("slowfast")[0]
    path.write_bytes(path.read_bytes()[:-100])
    with ChildInspector() as inspector:
        found = verify(full, inspector=inspector)
    assert found == full.verify()
    assert {"shard", "duplicate", "catalogue"} <= {problem.kind for problem in found}


@pytest.mark.parametrize("how", ["crash", "memory", "silence"])
def test_a_shard_that_ends_the_process_that_reads_it_is_named(
    how: str, full: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A libhdf5 that does this for one file; the child is a real process.
    bad = full.shards("clip")[0].name
    deed = {
        "crash": "os.kill(os.getpid(), 11)",
        "memory": "bytearray(64 << 30)",
        "silence": "time.sleep(600)",
    }[how]
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "def hook(event, args):\n"
        f"    if event == 'open' and {bad!r} in str(args[0]): {deed}\n"
        "sys.addaudithook(hook)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ChildInspector(timeout_s=2.0) as inspector:
        [problem] = [each for each in verify(full, inspector=inspector) if each.kind == "shard"]
    assert bad in problem.where
    expected = "took more than 2 s" if how == "silence" else "died (exit code"
    assert expected in problem.message


def test_a_shard_that_goes_meanwhile_is_no_damage(full: Store) -> None:
    class Late(SoundInspector):
        def report(self, place: Place, *, deep: bool, clip_len_s: float) -> ShardReport:
            place.unlink()
            return super().report(place, deep=deep, clip_len_s=clip_len_s)

    first, second = verify(full, deep=True, inspector=Late())
    assert first.level == second.level == "note"
    assert "was taken away meanwhile" in first.message
