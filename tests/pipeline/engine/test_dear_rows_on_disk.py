"""Dear rows on disk: what is unfinished is kept, many small shards are packed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toys
from talking import Hearing, batches, said, shards, talks, times_made, whole

from data.errors import StoreError
from data.store import Store
from data.store.compact import pack
from data.store.gc import gc
from data.store.unfinished import Unfinished
from data.video.types import Window
from pipeline.packing import Packer
from pipeline.stage import Item

# --- unfinished rows


def unfinished(folder: Path) -> list[Path]:
    return sorted((folder / "store").rglob("unfinished/*"))


def test_what_is_unfinished_is_kept_until_its_row_is_stored(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "halfway-1"])
    log = tmp_path / "log"
    stages = talks(log, part=8, batch=8)
    result = run_toys(["talks"], stages=stages)
    assert [(each.key.id, each.reason) for each in result.failures] == [
        ("halfway-1", "captions-failed")
    ]
    (kept,) = unfinished(tmp_path)
    assert json.loads(json.loads(kept.read_text())["kept"]) == ["halfway-1@0"]
    store = Store.open(tmp_path / "store")
    assert [each for each in store.verify() if each.level == "error"] == []
    again = run_toys(["talks"], stages=stages)
    assert not again.worked, "it waits in quarantine"
    log.unlink()
    assert run_toys(["talks"], stages=stages, retry_failed=True).exit_code == 0
    assert said(tmp_path / "store") == whole("a", "halfway-1")
    assert times_made(log) == Counter(f"halfway-1@{n}" for n in range(1, 8))
    assert unfinished(tmp_path) == []


def test_a_damaged_unfinished_row_is_made_again_as_a_whole_and_verify_tells(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["halfway-1"])
    stages = talks(tmp_path / "log", part=8, batch=8)
    run_toys(["talks"], stages=stages)
    (kept,) = unfinished(tmp_path)
    kept.write_bytes(kept.read_bytes().replace(b"halfway-1@0", b"halfway-1@7"))
    notes = [each for each in Store.open(tmp_path / "store").verify() if each.level == "note"]
    assert [(each.where, each.message) for each in notes] == [
        (str(kept), "is not what was written; its row is made again as a whole")
    ]
    (tmp_path / "log").unlink()
    # nothing is kept of it any more, so this toy leaves it halfway once more
    assert run_toys(["talks"], stages=stages, retry_failed=True).exit_code == 3
    assert times_made(tmp_path / "log") == Counter(f"halfway-1@{n}" for n in range(8))
    assert run_toys(["talks"], stages=stages, retry_failed=True).exit_code == 0


def test_gc_takes_unfinished_rows_with_their_recipe(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "halfway-1"])
    run_toys(["talks"], stages=talks(tmp_path / "log", part=8))
    (kept,) = unfinished(tmp_path)
    store = Store.open(tmp_path / "store")
    (old,) = store.recipes("talks")
    run_toys(["talks"], stages=talks(tmp_path / "log", part=4))
    run_toys(["talks"], stages=talks(tmp_path / "log", part=4), retry_failed=True)
    gc(store, older_than_s=0, now=time.time() + 1e6)
    assert not kept.exists()
    assert old not in store.recipes("talks")
    assert not (tmp_path / "store" / "talks" / old).exists()


# --- shards


def test_many_small_shards_are_packed_when_the_stage_ends(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    assert run_toys(["talks"], stages=talks(tmp_path / "log", batch=2)).exit_code == 0
    assert len(batches(tmp_path / "log")) == 12
    assert len(shards(tmp_path)) == 1
    assert said(tmp_path / "store") == whole("a", "b", "c")


def test_shards_are_packed_on_the_way_too_and_no_row_is_missing_meanwhile(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.packing._EVERY", 4)
    monkeypatch.setattr(Packer.__init__, "__defaults__", (4,))
    toys.write_videos(tmp_path / "videos", ["a", "b", "c", "d"])
    run_toys(["probe"])
    counts: list[tuple[int, int]] = []
    plain = toys.ToyTalks.encode_shared

    def looking(self: toys.ToyTalks, windows: Sequence[tuple[Item, Window]]) -> Sequence[str]:
        (recipe,) = Store.open(tmp_path / "store").recipes("talks")
        reader = Store.open(tmp_path / "store").reader("talks", recipe)
        counts.append((len(reader.keys()), len(shards(tmp_path))))
        time.sleep(0.05)
        return plain(self, windows)

    monkeypatch.setattr(toys.ToyTalks, "encode_shared", looking)
    assert run_toys(["talks"], stages=talks(tmp_path / "log", batch=2)).exit_code == 0
    assert [rows for rows, _ in counts] == list(range(16))
    assert max(files for _, files in counts) < 12


def test_a_disk_that_has_no_room_for_packing_costs_nothing_but_a_sentence(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise StoreError("no space left on device")

    monkeypatch.setattr("pipeline.packing.pack", full)
    toys.write_videos(tmp_path / "videos", ["a"])
    watcher = Hearing()
    result = run_toys(["talks"], stages=talks(tmp_path / "log", batch=2), watcher=watcher)
    assert (result.exit_code, said(tmp_path / "store")) == (0, whole("a"))
    assert "small shards were left as they are: no space left on device" in watcher.notes


def test_a_packing_that_failed_on_the_way_is_not_told_where_a_later_one_made_it_good(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Packer.__init__, "__defaults__", (4,))
    calls: list[object] = []

    def busy_at_first(*args: Any) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise StoreError("another compact is at work")
        return pack(*args)

    monkeypatch.setattr("pipeline.packing.pack", busy_at_first)
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    watcher = Hearing()
    run_toys(["talks"], stages=talks(tmp_path / "log", batch=2), watcher=watcher)
    assert len(calls) > 1
    assert len(shards(tmp_path)) == 1
    assert not [note for note in watcher.notes if "small shards" in note]


def test_whether_rows_are_unfinished_is_looked_up_once_and_not_for_each_of_them(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server each look is a question that a GPU waits for."""
    reads: list[str] = []
    plain = Unfinished._read

    def counting(self: Unfinished, name: str) -> Any:
        reads.append(name)
        return plain(self, name)

    toys.write_videos(tmp_path / "videos", ["a", "b", "c", "halfway-1"])
    log = tmp_path / "log"
    assert run_toys(["talks"], stages=talks(log, part=8, batch=8)).exit_code == 3
    monkeypatch.setattr(Unfinished, "_read", counting)
    log.unlink()
    toys.write_videos(tmp_path / "videos", ["d", "e", "f"])
    run_toys(["talks"], stages=talks(log, part=8, batch=8))
    (kept,) = unfinished(tmp_path)
    assert set(reads) <= {kept.name}
