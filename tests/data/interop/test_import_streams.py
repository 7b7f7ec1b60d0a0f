"""Features of videos from files of others: what is stored, repaired, refused, resumed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_folders import (
    annotation,
    h5_file,
    new_store,
    npy_folder,
    npz_folder,
    rows,
)

from data.annotations.types import Annotation
from data.errors import UsageError
from data.identity import imported_content
from data.interop import (
    ImportOptions,
    ImportReport,
    Line,
    SourceOptions,
    import_streams,
    open_source,
)
from data.interop.lengths import fit, fitted, imported_lengths, pool, pooled_rows
from data.interop.writing import Journey
from data.store import CatalogueEntry, ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.video.types import VideoFacts

SHA = "5" * 64
PLAIN = SourceOptions()


def run(
    store: Store,
    path: Path,
    stage: str = "clip",
    *,
    annotations: Iterable[Annotation] = (),
    journey: Journey | None = None,
    names: SourceOptions = PLAIN,
    **options: Any,
) -> ImportReport:
    made = ImportOptions(stage, names=names, **options)
    return import_streams(store, open_source(path, options=names), made, annotations, journey)


def line(report: ImportReport, id: str) -> Line:
    (found,) = (each for each in report.lines if each.id == id)
    return found


def facts_of(duration_s: float) -> VideoFacts:
    return VideoFacts(duration_s, 25.0, 250, 64, 64, 0, "h264", "yuv420p", 1000, False, 0)


# --- formats


def test_every_layout_gives_the_same_rows(tmp_path: Path) -> None:
    arrays = {"v_a": rows(4, 1), "v_b": rows(7, 2)}
    places = {
        "npz": npz_folder(tmp_path / "npz", arrays),
        "npy": npy_folder(tmp_path / "npy", arrays),
        "flat": h5_file(tmp_path / "flat.h5", arrays),
        "grouped": h5_file(tmp_path / "grouped.hdf5", arrays, key="c3d_features"),
    }
    for name, place in places.items():
        store = new_store(tmp_path / f"store-{name}")
        report = run(store, place, "c3d")
        assert [(each.id, each.outcome, each.fit) for each in report.lines] == [
            ("v_a", "stored", "kept"),
            ("v_b", "stored", "kept"),
        ]
        reader = store.reader("c3d")
        for id, array in arrays.items():
            np.testing.assert_array_equal(reader.array(id, "c3d"), array)
            assert reader.grid(id).n == len(array)


def test_a_group_with_several_arrays_asks_for_the_key(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["v/rgb"], file["v/flow"] = rows(3, 1), rows(3, 2)
    store = new_store(tmp_path / "store")
    with pytest.raises(UsageError, match="holds flow, rgb; say with --key"):
        run(store, tmp_path / "two.h5", "i3d")
    run(store, tmp_path / "two.h5", "i3d", names=SourceOptions(key="flow"))
    np.testing.assert_array_equal(store.reader("i3d").array("v", "i3d"), rows(3, 2))


def test_two_suffixes_stand_side_by_side_as_the_tvsum_loaders_put_them(tmp_path: Path) -> None:
    folder = npy_folder(
        tmp_path / "i3d", {"a_rgb": rows(4, 1), "a_opt": rows(4, 2), "b_rgb": rows(3)}
    )
    store = new_store(tmp_path / "store")
    report = run(store, folder, "i3d", names=SourceOptions(suffixes=("_rgb", "_opt")))
    expected = np.concatenate([rows(4, 1), rows(4, 2)], axis=1)
    np.testing.assert_array_equal(store.reader("i3d").array("a", "i3d"), expected)
    assert report.left_out == {"b": "has no file b_opt"}


def test_a_prefix_is_kept_unless_it_is_to_be_stripped(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", {"v_abc": rows(2)})
    kept, stripped = new_store(tmp_path / "one"), new_store(tmp_path / "two")
    run(kept, folder)
    run(stripped, folder, names=SourceOptions(strip_prefix="v_"))
    assert (kept.reader("clip").ids(), stripped.reader("clip").ids()) == (["v_abc"], ["abc"])


def test_two_names_of_one_video_are_refused(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", {"v_abc": rows(2), "abc": rows(2)})
    with pytest.raises(UsageError, match="are both video 'abc'"):
        run(new_store(tmp_path / "s"), folder, names=SourceOptions(strip_prefix="v_"))


def test_the_map_before_the_mean_over_time_becomes_its_mean(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).standard_normal((5, 4, 3, 1, 1)).astype(np.float32)
    store = new_store(tmp_path / "s")
    run(store, npy_folder(tmp_path / "f", {"a": raw, "b": raw[:1, :, :1]}), "i3d")
    reader = store.reader("i3d")
    np.testing.assert_allclose(reader.array("a", "i3d"), raw.mean(axis=(2, 3, 4)), rtol=1e-6)
    np.testing.assert_array_equal(reader.array("b", "i3d"), raw[:1, :, 0, 0, 0])


def test_auto_says_what_it_cannot_tell(tmp_path: Path) -> None:
    both = npy_folder(tmp_path / "both", {"a": rows(2)})
    npz_folder(both, {"b": rows(2)})
    with pytest.raises(UsageError, match="formats npy and npz; say which with --format"):
        open_source(both)
    (tmp_path / "above" / "clip_features").mkdir(parents=True)
    with pytest.raises(UsageError, match="name one of its folders: clip_features"):
        open_source(tmp_path / "above")
    with pytest.raises(UsageError, match="there is nothing at"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"unknown format of features 'npx'"):
        open_source(both, "npx")


# --- lengths


def test_the_repair_of_each_length_is_explained(tmp_path: Path) -> None:
    folder = npz_folder(
        tmp_path / "f", {"same": rows(5), "long": rows(7), "short": rows(4), "far": rows(9)}
    )
    store = new_store(tmp_path / "s")
    given = [annotation(id, 9.4, id) for id in ("same", "long", "short", "far")]  # 4.7 clips
    report = run(store, folder, annotations=given)
    told = {each.id: (each.outcome, each.fit or each.reason, each.by) for each in report.lines}
    assert told == {
        "same": ("stored", "kept", 0),
        "long": ("stored", "cut", 2),
        "short": ("stored", "repeated", 1),
        "far": ("refused", "length", 0),
    }
    assert line(report, "far").rows == 9
    assert line(report, "long").told == (
        "9.4 s (annotations) are 5 clips; the file has 7 rows: the last 2 cut"
    )
    reader = store.reader("clip")
    np.testing.assert_array_equal(reader.array("long", "clip"), rows(7)[:5])
    np.testing.assert_array_equal(reader.array("short", "clip"), rows(4)[[0, 1, 2, 3, 3]])
    assert reader.facts("short")["told"] == line(report, "short").told
    (failure,) = store.failures("clip").read().values()
    assert failure.reason == "length"
    assert "has 9 rows for 5 clips: 4 more, at most 2 are mended (--most)" in failure.message


def test_without_durations_a_video_has_as_many_clips_as_rows(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    report = run(store, npy_folder(tmp_path / "f", {"a": rows(3)}))
    assert line(report, "a").expected == "rows"
    assert store.reader("clip").grid("a").duration_s == 6.0


def test_a_second_stream_follows_the_first_one(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    run(store, npy_folder(tmp_path / "a", {"v": rows(5)}))
    report = run(store, npy_folder(tmp_path / "b", {"v": rows(6)}), "slowfast")
    assert (line(report, "v").expected, line(report, "v").fit) == ("stream clip", "cut")
    assert store.reader("slowfast").key("v") == store.reader("clip").key("v")


def test_a_second_import_of_the_first_stream_still_has_its_recipe(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    folder = npy_folder(tmp_path / "a", {"v": rows(5)})
    first = run(store, folder)
    run(store, npy_folder(tmp_path / "b", {"v": rows(6)}), "slowfast")
    again = run(store, folder)
    assert again.recipe == first.recipe
    assert [each.outcome for each in again.lines] == ["present"]


def test_later_durations_are_told_where_other_streams_do_not_follow_them(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    run(store, npy_folder(tmp_path / "a", {"v": rows(6)}))
    report = run(
        store,
        npy_folder(tmp_path / "b", {"v": rows(6)}),
        "slowfast",
        annotations=[annotation("v", 10.0)],
    )
    assert any("another number of clips in stream 'clip' (v)" in note for note in report.notes)


def test_files_of_another_clip_length_are_refused_with_the_numbers(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s", clip_len_s=1.0)
    folder = npy_folder(tmp_path / "f", {f"v{i}": rows(60, i) for i in range(3)})
    given = [annotation(f"v{i}", 10.0, i) for i in range(3)]
    with pytest.raises(
        UsageError, match=r"6 rows per clip of 1 s, one every 0.167 s; --rows-per-clip 6"
    ):
        run(store, folder, annotations=given)
    assert store.stages() == []
    run(store, folder, annotations=given, rows_per_clip=6)
    expected = rows(60, 1).reshape(10, 6, -1).mean(axis=1)
    np.testing.assert_allclose(store.reader("clip").array("v1", "clip"), expected, atol=1e-6)


def test_files_of_other_cuts_are_refused_one_by_one(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "f", {f"v{i}": rows(24, i) for i in range(4)})
    given = [annotation(f"v{i}", 40.0, i) for i in range(4)]
    report = run(new_store(tmp_path / "s"), folder, annotations=given)
    assert [each.reason for each in report.lines] == ["length"] * 4


@pytest.mark.parametrize(("count", "clips"), [(12, 2), (14, 2), (15, 3), (17, 3), (1, 1), (2, 1)])
def test_a_last_group_counts_from_half_a_clip_on(count: int, clips: int) -> None:
    array = rows(count)
    pooled = pool(array, 6)
    assert len(pooled) == pooled_rows(count, 6) == clips
    np.testing.assert_allclose(pooled[-1], array[6 * (clips - 1) :][:6].mean(axis=0), atol=1e-6)


def average_to_fixed_length(rows: np.ndarray, clips: int) -> np.ndarray:
    """What 2D-TAN does (lib/datasets/__init__.py), step by step in torch."""
    import torch

    visual = torch.from_numpy(rows)
    count = visual.shape[0]
    at = torch.arange(0, clips + 1, 1.0) / clips * count
    at = torch.min(torch.round(at).long(), torch.tensor(count - 1))
    stretches = []
    for i in range(clips):
        start, end = at[i].item(), at[i + 1].item()
        found = torch.mean(visual[start:end], dim=0) if start < end else visual[start]
        stretches.append(found)
    return torch.stack(stretches).numpy()


@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 40, 255])
def test_resampling_is_that_of_2d_tan(count: int) -> None:
    array = rows(count)
    how = fit(count, 16, "resample", 0)
    np.testing.assert_allclose(fitted(array, how), average_to_fixed_length(array, 16), atol=1e-6)


def test_resampling_is_only_done_when_asked_for(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", {"v": rows(40)})
    store = new_store(tmp_path / "s")
    report = run(store, folder, annotations=[annotation("v", 10.0)])
    assert line(report, "v").reason == "length"
    report = run(store, folder, annotations=[annotation("v", 10.0)], lengths="resample")
    assert (line(report, "v").fit, line(report, "v").clips) == ("resampled", 5)


# --- numbers


def test_rows_stay_as_they_are_and_float16_is_asked_for(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", {"a": rows(3), "b": rows(3, dtype="float16")})
    kept, halved = new_store(tmp_path / "one"), new_store(tmp_path / "two")
    run(kept, folder)
    run(halved, folder, dtype="float16")
    assert kept.reader("clip").array("b", "clip").dtype == np.float32
    np.testing.assert_array_equal(kept.reader("clip").array("a", "clip"), rows(3))
    np.testing.assert_array_equal(
        halved.reader("clip").array("a", "clip"), rows(3).astype(np.float16)
    )


def test_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    report = run(store, npy_folder(tmp_path / "f", {"a": rows(2) * 1e6}), dtype="float16")
    assert line(report, "a").reason == "not-finite"
    assert "too large for float16" in line(report, "a").told


def test_normalised_rows_are_noticed(tmp_path: Path) -> None:
    raw = rows(4)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    told = run(new_store(tmp_path / "a"), npy_folder(tmp_path / "unit", {"v": unit}))
    untold = run(new_store(tmp_path / "b"), npy_folder(tmp_path / "raw", {"v": raw}))
    assert any("normalised before" in note for note in told.notes)
    assert untold.notes == []


# --- recipes and resuming


def test_the_recipe_knows_the_bytes_and_not_the_folder(tmp_path: Path) -> None:
    arrays = {"a": rows(3), "b": rows(4)}
    here, there = npy_folder(tmp_path / "x", arrays), npy_folder(tmp_path / "y" / "z", arrays)
    other = npy_folder(tmp_path / "o", arrays | {"b": rows(4, 9)})
    recipes = [
        run(new_store(tmp_path / f"s{i}"), place).recipe
        for i, place in enumerate((here, there, other))
    ]
    assert recipes[0] == recipes[1] != recipes[2]


def test_the_origin_is_in_the_recipe(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    run(store, npy_folder(tmp_path / "f", {"a": rows(3)}), origin="moment_detr_features.tar.gz")
    given = store.recipe("clip").params["import"]
    assert (given["origin"], given["format"], given["files"]) == (
        "moment_detr_features.tar.gz",
        "npy",
        1,
    )
    assert str(tmp_path) not in str(store.recipe("clip").to_json())


def test_a_changed_file_is_seen_and_no_row_is_mixed(tmp_path: Path) -> None:
    store, folder = new_store(tmp_path / "s"), tmp_path / "f"
    first = run(store, npy_folder(folder, {"a": rows(3), "b": rows(4)}))
    npy_folder(folder, {"b": rows(4, 9), "c": rows(2)})
    second = run(store, folder)
    assert first.recipe != second.recipe == store.current["clip"]
    assert f"since the import {first.recipe}: 1 changed: b; 1 new: c" in second.notes
    np.testing.assert_array_equal(store.reader("clip").array("b", "clip"), rows(4, 9))
    np.testing.assert_array_equal(store.reader("clip", first.recipe).array("b", "clip"), rows(4))


def test_an_interrupted_import_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    folder = npy_folder(tmp_path / "f", {f"v{i}": rows(3, i) for i in range(6)})
    seen: list[int] = []
    stopping = Journey(stop=lambda: len(seen) >= 4, watch=lambda done, count: seen.append(done))
    first = run(store, folder, journey=stopping)
    assert first.interrupted
    assert store.reader("clip").ids() == ["v0", "v1", "v2", "v3"]
    second = run(store, folder)
    assert [each.outcome for each in second.lines] == ["present"] * 4 + ["stored"] * 2
    assert not second.interrupted


def test_an_interrupted_change_leaves_readers_where_they_were(tmp_path: Path) -> None:
    store, folder = new_store(tmp_path / "s"), tmp_path / "f"
    first = run(store, npy_folder(folder, {"a": rows(3), "b": rows(4)}))
    npy_folder(folder, {"b": rows(4, 9)})
    stopped = run(store, folder, journey=Journey(stop=lambda: True))
    assert store.current["clip"] == first.recipe
    assert not stopped.current
    run(store, folder)
    assert store.current["clip"] == stopped.recipe


def test_a_killed_import_has_lost_only_the_open_shard(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    folder = npy_folder(tmp_path / "f", {f"v{i}": rows(100, i) for i in range(6)})

    def killed(done: int, count: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, folder, journey=Journey(shard_bytes=6_000, watch=killed))
    there = store.reader("clip").ids()
    assert there == ["v0", "v1", "v2", "v3"]  # two rows of 2.4 KB and their tables in a shard
    assert store.verify() == []
    run(store, folder)
    assert len(store.reader("clip")) == 6


def test_a_dry_run_writes_nothing_and_says_the_same(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", {"a": rows(3), "b": rows(9)})
    given = [annotation("a", 8.0, 1), annotation("b", 8.0, 2)]
    store = Store(tmp_path / "s", "custom", 2.0)
    dry = run(store, folder, annotations=given, journey=Journey(dry_run=True))
    assert not (tmp_path / "s").exists()
    real = run(new_store(tmp_path / "s"), folder, annotations=given)
    assert dry.recipe == real.recipe
    assert [each.told for each in dry.lines] == [each.told for each in real.lines]
    assert [each.outcome for each in dry.lines] == ["planned", "refused"]


def test_rows_of_the_pipeline_are_not_displaced_unasked(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    made = Recipe(
        "clip", 1, {"weights": "x"}, {}, Schema({"clip": StreamSpec((6,), "float16", "clip")})
    )
    from data.grid import Grid

    with store.writer(made) as writer:
        writer.add(Row(ItemKey("a", SHA), Grid(6.0, 2.0), {"clip": rows(3, dtype="float16")}))
    store.set_current({"clip": made.id})
    folder = npy_folder(tmp_path / "f", {"a": rows(3)})
    with pytest.raises(UsageError, match=r"rows that `pipeline run` made .* --replace"):
        run(store, folder)
    assert store.current["clip"] == made.id
    report = run(store, folder, journey=Journey(replace=True))
    assert store.current["clip"] == report.recipe
    assert store.shards("clip", made.id)


def test_a_probed_video_keeps_its_content_and_its_measured_length(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    folder = npy_folder(tmp_path / "f", {"a": rows(6), "b": rows(6)})
    run(store, folder)
    assert store.reader("clip").key("a").content == imported_content("a")
    store.update_catalogue([CatalogueEntry("a", SHA, facts_of(10.0))])
    report = run(store, folder, annotations=[annotation("a", 12.0)])
    assert store.reader("clip").key("a").content == SHA
    assert (line(report, "a").expected, line(report, "a").fit) == ("probe", "cut")
    assert store.reader("clip").key("b").content == imported_content("b")


def test_an_imported_store_is_right_for_verify_although_nothing_was_probed(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    run(store, npy_folder(tmp_path / "f", {"a": rows(6)}))
    assert store.verify() == []


def test_lengths_for_lint_are_those_of_the_rows(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    folder = npy_folder(tmp_path / "f", {"a": rows(6), "b": rows(5)})
    run(store, folder, annotations=[annotation("a", 8.0)])
    assert imported_lengths(store) == {"a": 12.0, "b": 10.0}
    finer = new_store(tmp_path / "finer")  # rows of a sixth of a clip of 2 s
    run(finer, npy_folder(tmp_path / "g", {"a": rows(30)}), rows_per_clip=6)
    assert imported_lengths(finer) == {"a": pytest.approx(10.0)}


@pytest.mark.parametrize("stage", ["queries", "probe", "annotations", "../x"])
def test_what_is_no_stream_cannot_be_its_name(stage: str) -> None:
    with pytest.raises(UsageError):
        ImportOptions(stage)


@pytest.mark.parametrize("numbers", [{"rows_per_clip": 0}, {"most": -1}])
def test_numbers_without_meaning_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--rows-per-clip must be at least 1 and --most at least"):
        ImportOptions("clip", **numbers)


def test_three_hundred_videos_need_the_memory_of_one_shard(tmp_path: Path) -> None:
    """300 files of 1 MB in shards of 4 MB; without a bound it would be 300 MB more."""
    folder = tmp_path / "f"
    folder.mkdir()
    one = rows(128, width=2048)
    for number in range(300):
        np.save(folder / f"v{number:03d}.npy", one)
    store = new_store(tmp_path / "s")
    # What this import allocates; the largest memory of the process may be that of an earlier test.
    tracemalloc.start()
    try:
        report = run(store, folder, journey=Journey(shard_bytes=4 << 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(report.lines) == 300
    assert peak < 100e6
    assert len(store.shards("clip")) > 50
