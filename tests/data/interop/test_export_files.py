"""A store as files of public code, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from feature_folders import annotation, new_store, npy_folder, npz_folder, rows

from benchmarks.public_loader import PublicDataset, collate, l2_normalise
from data.annotations import DATASETS, load_annotations
from data.errors import UsageError
from data.identity import query_id
from data.interop import (
    LAYOUTS,
    ImportOptions,
    export,
    import_streams,
    import_texts,
    open_source,
)
from data.interop.export import MANIFEST
from data.store import Store, StreamSpec
from data.store.place import place_of

MOMENT_DETR = LAYOUTS.get("moment-detr")
VIDEOS = {"RoripwjYFp8_60.0_210.0": rows(5, 1), "b": rows(4, 2), "c": rows(6, 3)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two streams of three videos, texts of their queries; `c` is in split val."""
    made = new_store(tmp_path / "store")
    queries = [
        replace(
            annotation(id, 2.0 * len(array), qid),
            clip_ids=(0, 1),
            saliency=((4.0, 3.0, 2.0), (1.0, 0.0, 2.0)),
        )
        for qid, (id, array) in enumerate(VIDEOS.items())
    ]
    made.save_annotations("train", queries[:2])
    made.save_annotations("val", queries[2:])
    for stream, dtype in (("slowfast", "float16"), ("clip", "float32")):
        folder = npz_folder(
            tmp_path / stream, {id: array.astype(dtype) for id, array in VIDEOS.items()}
        )
        import_streams(made, open_source(folder), ImportOptions(stream))
    (tmp_path / "text").mkdir()
    for qid in range(3):
        np.savez(
            tmp_path / "text" / f"qid{qid}.npz",
            last_hidden_state=rows(3 + qid, qid),
            pooler_output=rows(1, 50 + qid)[0],
        )
    import_texts(made, open_source(tmp_path / "text"), queries)
    return made


def test_an_exported_folder_has_the_arrays_that_were_imported(tmp_path: Path, store: Store) -> None:
    report = export(store, tmp_path / "out", MOMENT_DETR)
    assert report.files == {
        "clip": 3,
        "slowfast": 3,
        "queries": 3,
        "train.jsonl": 2,
        "val.jsonl": 1,
    }
    for stream in ("slowfast", "clip"):
        for id in VIDEOS:
            before = np.load(tmp_path / stream / f"{id}.npz")["features"]
            after = np.load(tmp_path / "out" / f"{stream}_features" / f"{id}.npz")["features"]
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before)
    for qid in range(3):
        before = np.load(tmp_path / "text" / f"qid{qid}.npz")
        after = np.load(tmp_path / "out" / "clip_text_features" / f"qid{qid}.npz")
        for key in ("last_hidden_state", "pooler_output"):
            np.testing.assert_array_equal(after[key], before[key])


@pytest.mark.parametrize("layout", ["moment-detr", "npy"])
def test_an_imported_export_has_equal_rows(tmp_path: Path, store: Store, layout: str) -> None:
    out = tmp_path / "out"
    export(store, out, LAYOUTS.get(layout))
    again = new_store(tmp_path / "again")
    for stream in ("slowfast", "clip"):
        folder = out / (f"{stream}_features" if layout == "moment-detr" else stream)
        import_streams(again, open_source(folder), ImportOptions(stream))
        for id in VIDEOS:
            one, other = store.reader(stream), again.reader(stream)
            assert other.array(id, stream).dtype == one.array(id, stream).dtype
            np.testing.assert_array_equal(other.array(id, stream), one.array(id, stream))
            assert other.grid(id) == one.grid(id)
            assert other.key(id) == one.key(id)


def test_imported_texts_of_an_export_are_equal(tmp_path: Path, store: Store) -> None:
    out = tmp_path / "out"
    export(store, out, MOMENT_DETR)
    queries = load_annotations("qvhighlights", out / "train.jsonl")
    assert queries == store.annotations("train")
    again = new_store(tmp_path / "again")
    import_texts(again, open_source(out / "clip_text_features"), queries)
    for query in queries:
        one, other = (each.reader("queries").row(query_id(query.query)) for each in (store, again))
        for name in ("tokens", "pooled"):
            np.testing.assert_array_equal(other[name], one[name])


def test_the_loader_of_moment_detr_reads_it(tmp_path: Path, store: Store) -> None:
    out = tmp_path / "out"
    export(store, out, MOMENT_DETR)
    (out / "text").symlink_to("clip_text_features")  # where the copy of its loader looks
    loaded = PublicDataset(out, store.annotations("train"), ["slowfast_features", "clip_features"])
    video, video_mask, text, text_mask = collate([loaded[0], loaded[1]])
    assert video.shape == (2, 5, 6 + 6 + 2)
    assert video_mask.sum(dim=1).tolist() == [5, 4]
    assert text_mask.sum(dim=1).tolist() == [3, 4]
    np.testing.assert_allclose(video[0, :, 6:12], l2_normalise(rows(5, 1)), atol=1e-6)
    np.testing.assert_allclose(text[1], l2_normalise(rows(4, 1)), atol=1e-6)


def test_annotations_have_what_its_labels_are_made_of(tmp_path: Path, store: Store) -> None:
    export(store, tmp_path / "out", MOMENT_DETR)
    first, _ = map(json.loads, (tmp_path / "out" / "train.jsonl").read_text().splitlines())
    assert first == {
        "qid": 0,
        "query": "sentence 0",
        "vid": "RoripwjYFp8_60.0_210.0",
        "duration": 10.0,
        "relevant_windows": [[0.0, 2.0]],
        "relevant_clip_ids": [0, 1],
        "saliency_scores": [[4.0, 3.0, 2.0], [1.0, 0.0, 2.0]],
    }


def test_clip_ids_of_another_clip_length_are_read_back_as_they_are(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s", clip_len_s=1.0)
    rated = replace(annotation("a", 3.0), clip_ids=(2,), saliency=((4.0, 3.0, 2.0),))
    store.save_annotations("train", [rated])
    folder = npy_folder(tmp_path / "f", {"a": rows(3)})
    import_streams(store, open_source(folder), ImportOptions("clip"))
    export(store, tmp_path / "out", MOMENT_DETR)
    train = tmp_path / "out" / "train.jsonl"
    assert DATASETS.get("custom").clip_len_at(train) == 1.0
    assert load_annotations("custom", train)[0].clip_ids == (2,)


def test_only_a_split_and_only_a_stream_in_another_type(tmp_path: Path, store: Store) -> None:
    report = export(
        store,
        tmp_path / "out",
        LAYOUTS.get("npy"),
        streams=["clip"],
        splits=["val"],
        dtype="float16",
    )
    assert sorted(each.name for each in (tmp_path / "out").rglob("*.*")) == [
        "c.npy",
        MANIFEST,
        "val.jsonl",
    ]
    array = np.load(tmp_path / "out" / "clip" / "c.npy")
    np.testing.assert_array_equal(array, VIDEOS["c"].astype(np.float16))
    assert report.missing == {}


def test_what_a_split_lacks_is_told(tmp_path: Path, store: Store) -> None:
    store.save_annotations("test", [annotation("unseen", 8.0, 99)])
    report = export(store, tmp_path / "out", MOMENT_DETR, splits=["test"])
    assert report.missing == {"clip": ["unseen"], "slowfast": ["unseen"], "queries": ["99"]}


def test_the_manifest_says_where_everything_comes_from(tmp_path: Path, store: Store) -> None:
    export(store, tmp_path / "out", MOMENT_DETR)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["complete"] is True
    assert manifest["recipes"]["clip"]["id"] == store.current["clip"]
    assert manifest["recipes"]["clip"]["imported"] is True
    assert manifest["clip_len_s"] == 2.0


def test_a_second_export_writes_nothing(tmp_path: Path, store: Store) -> None:
    assert export(store, tmp_path / "out", MOMENT_DETR).written == 11
    assert export(store, tmp_path / "out", MOMENT_DETR).written == 0


def test_an_interrupted_export_goes_on(tmp_path: Path, store: Store) -> None:
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 4

    first = export(store, tmp_path / "out", MOMENT_DETR, stop=stop)
    assert (first.interrupted, first.written) == (True, 4)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["complete"] is False
    assert export(store, tmp_path / "out", MOMENT_DETR).written == 7


def test_other_files_are_not_replaced_unasked(tmp_path: Path, store: Store) -> None:
    out = tmp_path / "out"
    npz_folder(out / "clip_features", {"b": rows(9)})
    with pytest.raises(UsageError, match=r"holds files that no export wrote \(clip_features\)"):
        export(store, out, MOMENT_DETR)
    assert len(np.load(out / "clip_features" / "b.npz")["features"]) == 9
    export(store, out, MOMENT_DETR, overwrite=True)
    assert len(np.load(out / "clip_features" / "b.npz")["features"]) == 4


def test_a_file_of_an_export_that_somebody_changed_stays(tmp_path: Path, store: Store) -> None:
    out = tmp_path / "out"
    export(store, out, MOMENT_DETR)
    npz_folder(out / "clip_features", {"b": rows(9)})
    with pytest.raises(UsageError, match="is there with another content; give --overwrite"):
        export(store, out, MOMENT_DETR)


def test_another_export_needs_another_folder(tmp_path: Path, store: Store) -> None:
    export(store, tmp_path / "out", MOMENT_DETR)
    with pytest.raises(UsageError, match="holds an export of other dtype"):
        export(store, tmp_path / "out", MOMENT_DETR, dtype="float32")


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path, store: Store) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    export(store, out, MOMENT_DETR, streams=["slowfast"])
    elsewhere.mkdir()
    (out / "clip_features").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="leads out of"):
        export(store, out, MOMENT_DETR, streams=["clip"], overwrite=True)
    assert list(elsewhere.iterdir()) == []


def test_a_qid_that_is_a_path_is_refused(tmp_path: Path, store: Store) -> None:
    store.save_annotations("test", [annotation("b", 8.0, "../../etc/x")])
    with pytest.raises(UsageError, match=r"qid '../../etc/x' is not allowed"):
        export(store, tmp_path / "out", MOMENT_DETR)


def test_what_is_no_stream_cannot_be_exported(tmp_path: Path, store: Store) -> None:
    from data.store import Recipe, Schema

    recipe = Recipe("probe", 1, {}, {}, Schema())
    store.writer(recipe)
    store.set_current({"probe": recipe.id})
    with pytest.raises(UsageError, match="stage 'probe' has no features per clip"):
        export(store, tmp_path / "out", MOMENT_DETR, streams=["probe"])
    with pytest.raises(UsageError, match="unknown format of an export 'npx'"):
        LAYOUTS.get("npx")


def test_a_store_of_an_object_store_is_filled_and_exported(tmp_path: Path, store: Store) -> None:
    away = Store.create(
        place_of(f"memory://interop-{uuid4().hex}/s"), dataset="custom", clip_len_s=2.0
    )
    given = store.annotations("train") + store.annotations("val")
    away.save_annotations("all", given)
    for stream in ("slowfast", "clip"):
        import_streams(away, open_source(tmp_path / stream), ImportOptions(stream), given)
    again = import_streams(away, open_source(tmp_path / "clip"), ImportOptions("clip"), given)
    assert {line.outcome for line in again.lines} == {"present"}
    import_texts(away, open_source(tmp_path / "text"), given)
    export(away, tmp_path / "away", MOMENT_DETR)
    export(store, tmp_path / "here", MOMENT_DETR)
    files = list((tmp_path / "here").rglob("*.npz"))
    assert len(files) == 9
    for path in files:
        other = tmp_path / "away" / path.relative_to(tmp_path / "here")
        assert other.read_bytes() == path.read_bytes()


def test_a_store_without_texts_and_annotations_gives_its_streams(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    folder = npy_folder(tmp_path / "f", {"a": rows(3)})
    import_streams(store, open_source(folder), ImportOptions("c3d"))
    report = export(store, tmp_path / "out", LAYOUTS.get("npy"))
    assert report.files == {"c3d": 1}


def test_what_annotations_lack_is_told_without_a_choice_of_splits_too(
    tmp_path: Path, store: Store
) -> None:
    """A loader would fail at the video whose file is not there, in the middle of an epoch."""
    lacking = annotation("not_imported", 6.0, 99)
    store.save_annotations("more", [lacking])
    report = export(store, tmp_path / "out", LAYOUTS.get("moment-detr"))
    assert all(
        "not_imported" in report.missing[name] for name in report.recipes if name != "queries"
    )


def test_states_of_further_encoders_stay_in_the_store_and_that_is_told(
    tmp_path: Path, store: Store
) -> None:
    alone = export(store, tmp_path / "alone", MOMENT_DETR)
    assert not any("stay in the store" in note for note in alone.notes)
    reader, recipe = store.reader("queries"), store.recipe("queries")
    spec = StreamSpec((2,), "float16", "item")
    schema = replace(recipe.schema, arrays={**recipe.schema.arrays, "tokens_llama": spec})
    further = replace(recipe, schema=schema)
    with store.writer(further) as writer:
        for row in map(reader.row, reader.ids()):
            arrays = {**row.arrays, "tokens_llama": np.ones((7, 2), np.float16)}
            writer.add(replace(row, arrays=arrays))
    store.set_current({"queries": further.id})
    told = export(store, tmp_path / "both", MOMENT_DETR)
    assert told.files == alone.files
    (note,) = told.notes
    assert "main encoder's states alone; tokens_llama stay in the store" in note
    one, other = (tmp_path / each / "clip_text_features" for each in ("alone", "both"))
    for file in sorted(one.iterdir()):
        assert (other / file.name).read_bytes() == file.read_bytes()
