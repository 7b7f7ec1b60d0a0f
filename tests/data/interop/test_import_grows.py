"""An import that grows: new files are added, changed ones begin a new recipe, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_folders import annotation, new_store, npy_folder, rows

from data.annotations.types import Annotation
from data.errors import UsageError
from data.interop import ImportOptions, ImportReport, import_streams, import_texts, open_source
from data.interop.writing import Journey
from data.store import Store


def run(
    store: Store,
    path: Path,
    annotations: list[Annotation] | None = None,
    journey: Journey | None = None,
    **options: Any,
) -> ImportReport:
    made = ImportOptions("clip", **options)
    return import_streams(store, open_source(path), made, annotations or (), journey)


def outcomes(report: ImportReport) -> dict[str, str]:
    return {each.id: each.outcome for each in report.lines}


def test_new_files_of_a_folder_are_added_to_the_import(tmp_path: Path) -> None:
    store, folder = new_store(tmp_path / "s"), tmp_path / "f"
    first = run(store, npy_folder(folder, {"a": rows(3), "b": rows(4)}))
    shards = store.shards("clip")
    second = run(store, npy_folder(folder, {"c": rows(2)}))
    assert second.recipe == first.recipe == store.current["clip"]
    assert outcomes(second) == {"a": "present", "b": "present", "c": "stored"}
    assert set(shards) < set(store.shards("clip"))
    assert run(store, folder).counts() == {("present", "kept"): 3}


def test_a_dry_run_knows_that_rows_are_added(tmp_path: Path) -> None:
    store, folder = new_store(tmp_path / "s"), tmp_path / "f"
    first = run(store, npy_folder(folder, {"a": rows(3)}))
    dry = run(store, npy_folder(folder, {"b": rows(3)}), journey=Journey(dry_run=True))
    assert (dry.recipe, outcomes(dry)) == (first.recipe, {"a": "present", "b": "planned"})


def test_a_second_folder_is_added_and_takes_nothing_away(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    first = run(store, npy_folder(tmp_path / "train", {"a": rows(3), "b": rows(4)}))
    second = run(store, npy_folder(tmp_path / "val", {"c": rows(2)}))
    assert second.recipe == first.recipe
    assert store.reader("clip").ids() == ["a", "b", "c"]
    assert "2 rows of this import have no file here (a, b): they stay" in second.notes


def test_a_broken_file_that_was_mended_costs_one_row(tmp_path: Path) -> None:
    store, folder = new_store(tmp_path / "s"), npy_folder(tmp_path / "f", {"a": rows(3)})
    (folder / "b.npy").write_bytes(b"half a download")
    first = run(store, folder)
    assert outcomes(first) == {"a": "stored", "b": "refused"}
    second = run(store, npy_folder(folder, {"b": rows(4)}))
    assert (second.recipe, outcomes(second)) == (first.recipe, {"a": "present", "b": "stored"})
    assert second.refused == []


def test_a_file_that_cannot_be_read_now_leaves_its_row(tmp_path: Path) -> None:
    store, folder = new_store(tmp_path / "s"), npy_folder(tmp_path / "f", {"a": rows(3)})
    first = run(store, npy_folder(folder, {"b": rows(4)}))
    (folder / "b.npy").write_bytes(b"half a download")
    second = run(store, folder)
    assert (second.recipe, outcomes(second)) == (first.recipe, {"a": "present", "b": "present"})


def test_part_of_the_files_with_a_changed_one_would_lose_the_others(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    first = run(store, npy_folder(tmp_path / "f", {"a": rows(3), "b": rows(4), "c": rows(2)}))
    other = npy_folder(tmp_path / "new", {"a": rows(3, 9)})
    with pytest.raises(
        UsageError, match=r"\(1 changed: a\).* lose the 2 rows .*\(b, c\).*--replace"
    ):
        run(store, other)
    assert store.current["clip"] == first.recipe
    second = run(store, other, journey=Journey(replace=True))
    assert store.current["clip"] == second.recipe != first.recipe
    assert store.reader("clip").ids() == ["a"]


def test_other_options_or_columns_do_not_take_rows_away_unasked(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    run(store, npy_folder(tmp_path / "f", {"a": rows(4), "b": rows(4)}))
    more = npy_folder(tmp_path / "g", {"c": rows(4)})
    with pytest.raises(UsageError, match=r"params.import.rows_per_clip: 1 -> 2"):
        run(store, more, rows_per_clip=2)
    wide = npy_folder(tmp_path / "w", {"c": np.ones((4, 9), np.float32)})
    with pytest.raises(UsageError, match=r"schema.arrays.clip.shape: \[6\] -> \[9\]"):
        run(store, wide)


def test_other_durations_begin_a_new_recipe(tmp_path: Path) -> None:
    store, folder = new_store(tmp_path / "s"), tmp_path / "f"
    first = run(store, npy_folder(folder, {"a": rows(4), "b": rows(4)}))
    second = run(store, folder, [annotation("a", 6.0)])
    assert second.recipe != first.recipe
    assert store.reader("clip").length("a", "clip") == 3
    assert f"since the import {first.recipe}: 1 changed: a" in second.notes


def test_two_imports_at_once_lose_nothing(tmp_path: Path) -> None:
    """The second one begins and ends while the first one is at work."""
    store = new_store(tmp_path / "s")
    run(store, npy_folder(tmp_path / "f", {"a": rows(3), "b": rows(4)}))
    changed = npy_folder(tmp_path / "x", {"a": rows(3, 8), "b": rows(4)})
    other = npy_folder(tmp_path / "y", {"a": rows(3, 9), "b": rows(4)})
    between: list[ImportReport] = []

    def meanwhile(done: int, count: int) -> None:
        if done == 1:
            between.append(run(store, other))

    first = run(store, changed, journey=Journey(watch=meanwhile))
    assert not first.current
    assert store.current["clip"] == between[0].recipe


def test_annotations_and_files_that_lack_each_other_are_told(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    folder = npy_folder(tmp_path / "f", {"a": rows(3), "x": rows(3)})
    report = run(store, folder, [annotation("a", 6.0, 1), annotation("b", 6.0, 2)])
    assert "1 of 2 videos of the annotations have no file (b)" in report.notes
    assert "1 files are of videos that no annotation names (x)" in report.notes


@pytest.mark.parametrize(
    ("id", "hint"),
    [
        ("v_QOlSCBRmfWY", "'v_QOlSCBRmfWY' and 'QOlSCBRmfWY' differ: --strip-prefix v_"),
        ("qolSCBRmfWY", "'qolSCBRmfWY' is there: ids differ by upper and lower case"),
    ],
)
def test_ids_of_another_spelling_are_recognised(tmp_path: Path, id: str, hint: str) -> None:
    store = new_store(tmp_path / "s")
    report = run(store, npy_folder(tmp_path / "f", {id: rows(3)}), [annotation("QOlSCBRmfWY", 6.0)])
    assert any(note.endswith(hint) for note in report.notes), report.notes


def text_folder(folder: Path, qids: dict[int, int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for qid, seed in qids.items():
        np.savez(folder / f"qid{qid}.npz", last_hidden_state=rows(5, seed))
    return folder


def query(qid: int, text: str) -> Annotation:
    return Annotation(qid=qid, video_id="v", query=text, windows=((0.0, 2.0),), duration_s=10.0)


def test_texts_of_a_second_split_are_added(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    train, val = [query(5, "one"), query(6, "two")], [query(1, "one"), query(2, "three")]
    folder = text_folder(tmp_path / "t", {5: 1, 6: 2})
    first = import_texts(store, open_source(folder), train)
    text_folder(folder, {1: 3, 2: 4})
    second = import_texts(store, open_source(folder), [*train, *val])
    assert second.recipe == first.recipe
    assert sorted((each.id, each.outcome) for each in second.lines) == [
        ("2", "stored"),
        ("5", "present"),
        ("6", "present"),
    ]
    text_folder(folder, {5: 9})
    third = import_texts(store, open_source(folder), [*train, *val])
    assert third.recipe != first.recipe
    assert json.dumps(third.to_json())
