"""What surveys of one run keep: readers and small files that did not change."""

from __future__ import annotations

from pathlib import Path

from data.grid import Grid
from data.store import CatalogueEntry, ItemKey, Recipe, Row, Schema, Store
from data.video.types import VideoFacts
from pipeline.survey import Ledger

RECIPE = Recipe("probe", 1, {}, {}, Schema())
FACTS = VideoFacts(2.0, 25.0, 50, 64, 48, 0, "h264", "yuv420p", 5, False, 0)


def put(store: Store, id: str) -> None:
    with store.writer(RECIPE) as writer:
        writer.add(Row(ItemKey(id, "0" * 64), Grid(2.0, 2.0)))


def test_rows_that_were_written_between_two_surveys_are_seen(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", dataset="toys", clip_len_s=2.0)
    ledger = Ledger(store)
    assert ledger.present(RECIPE) == frozenset()
    for number in range(3):
        put(store, f"v{number}")
        assert {key.id for key in ledger.present(RECIPE)} == {f"v{n}" for n in range(number + 1)}


def test_a_shard_that_becomes_damaged_is_told_when_it_is_new_to_the_ledger(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", dataset="toys", clip_len_s=2.0)
    put(store, "v0")
    ledger = Ledger(store)
    assert ledger.present(RECIPE)
    (store.folder("probe", RECIPE.id) / f"shard-{'0' * 16}.h5").write_bytes(b"torn")
    assert {key.id for key in ledger.present(RECIPE)} == {"v0"}
    assert len(ledger.damage) == len(ledger.unread) == 1


def test_hashes_and_catalogue_are_read_again_when_another_job_wrote_them(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", dataset="toys", clip_len_s=2.0)
    video = tmp_path / "v0.mp4"
    video.write_text("a video")
    ledger = Ledger(store)
    ledger.refresh()
    assert ledger.hash_of(video) is None
    assert ledger.catalogue() == {}
    store.file_hashes().remember(video, "1" * 64, video.stat())
    store.update_catalogue([CatalogueEntry("v0", "1" * 64, FACTS)])
    ledger.refresh()
    assert ledger.hash_of(video) == "1" * 64
    assert set(ledger.catalogue()) == {"v0"}
    assert ledger.catalogue() is ledger.catalogue()


def test_an_absent_store_has_nothing(tmp_path: Path) -> None:
    ledger = Ledger(None)
    ledger.refresh()
    assert ledger.present(RECIPE) == frozenset()
    assert ledger.hash_of(tmp_path) is None
    assert ledger.catalogue() == {}
