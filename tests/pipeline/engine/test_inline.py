"""The loop in one process: what is stored, refused, blocked, resumed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys

from data.store import Failure, Store
from pipeline.engine.stop import StopFlag


def stored(store: Path, stage: str, array: str = "vector") -> dict[str, np.ndarray]:
    reader = Store.open(store).reader(stage)
    return {id_: reader.row(id_)[array] for id_ in reader.ids()}


def decodes(folder: Path) -> list[str]:
    return sorted((folder / "videos" / "decodes.log").read_text().splitlines())


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.h5"))


def test_every_input_is_stored_once_with_its_row(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    result = run_toys(["rows"])
    assert result.exit_code == 0
    rows = stored(tmp_path / "store", "rows")
    assert sorted(rows) == ["a", "b", "c"]
    for id_, vector in rows.items():
        np.testing.assert_array_equal(vector, toys.expected(id_))


def test_a_second_run_does_no_work(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    assert run_toys(["sums"]).worked
    before = shards(tmp_path)
    again = run_toys(["sums"])
    assert (again.worked, again.exit_code) == (False, 0)
    assert shards(tmp_path) == before


def test_a_refused_input_stops_nothing_and_blocks_what_comes_after_it(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "refuse-1", "raise-1"])
    result = run_toys(["sums"])
    assert result.exit_code == 3
    assert {each.key.id: (each.reason, each.attempts) for each in result.failures} == {
        "refuse-1": ("toy-refused", 1),
        "raise-1": ("exception", 2),
    }
    lines = {line.stage: line for line in result.plan.lines}
    assert (lines["rows"].present, lines["rows"].quarantined) == (1, 2)
    assert (lines["sums"].present, lines["sums"].blocked, lines["sums"].missing) == (1, 2, 0)


def test_what_is_in_quarantine_is_left_alone_until_retry_failed(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "refuse-1"])
    marks = tmp_path / "marks"
    options = {"rows": {"marks": str(marks)}}
    run_toys(["rows"], stages=options)
    assert len(list(marks.glob("refuse-1.*"))) == 1
    again = run_toys(["rows"], stages=options)
    assert (again.worked, again.exit_code) == (False, 3)
    assert run_toys(["rows"], stages=options, retry_failed=True).exit_code == 3
    assert len(list(marks.glob("refuse-1.*"))) == 2
    assert len(list(marks.glob("a.*"))) == 1


def test_a_retry_takes_note_only_of_what_had_failed(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    assert run_toys(["rows"], retry_failed=True).exit_code == 0
    assert list((tmp_path / "store").rglob("failures.jsonl")) == []


def test_a_retry_that_succeeds_leaves_the_quarantine(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    (tmp_path / "videos" / "b.mp4").touch()
    assert run_toys(["rows"]).exit_code == 3
    (tmp_path / "videos" / "b.mp4").write_text("now it has bytes")
    assert run_toys(["rows"]).exit_code == 0


def test_a_file_that_is_missing_is_refused_and_taken_up_when_it_appears(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "list.jsonl").write_text('{"video_id": "late", "path": "late.mp4"}\n')
    videos = {"root": "videos/list.jsonl"}
    first = run_toys(["probe"], videos=videos)
    assert [(each.reason, each.key.id) for each in first.failures] == [("missing", "late")]
    assert not run_toys(["probe"], videos=videos).worked
    toys.write_videos(folder, ["late"])
    assert run_toys(["probe"], videos=videos).exit_code == 0


def test_limit_takes_the_first_inputs(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    assert run_toys(["rows"], limit=2).exit_code == 0
    assert sorted(stored(tmp_path / "store", "rows")) == ["a", "b"]
    assert run_toys(["rows"]).exit_code == 0
    assert sorted(stored(tmp_path / "store", "rows")) == ["a", "b", "c"]


def test_a_changed_parameter_is_a_new_recipe_and_the_old_rows_stay(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["rows"])
    store = Store.open(tmp_path / "store")
    old = store.current["rows"]
    run_toys(["rows"], stages={"rows": {"scale": 2.0}})
    assert store.current["rows"] != old
    assert store.reader("rows", old).ids() == ["a"]
    np.testing.assert_array_equal(
        store.reader("rows").row("a")["vector"], toys.expected("a", scale=2.0)
    )
    assert not run_toys(["rows"]).worked


def test_a_changed_file_is_a_new_input(tmp_path: Path, run_toys: toys.RunToys) -> None:
    (video,) = toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["rows"])
    old = toys.key_of(video)
    video.path.write_text("another content")
    assert run_toys(["rows"]).worked
    store = Store.open(tmp_path / "store")
    assert store.reader("rows").keys() == {old, toys.key_of(video)}
    assert store.catalogue()["a"].content == toys.key_of(video).content


def test_a_touched_file_with_the_same_bytes_is_hashed_and_not_computed_again(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    (video,) = toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["rows"])
    before = shards(tmp_path)
    os.utime(video.path, (1, 1))
    assert run_toys(["rows"]).exit_code == 0
    assert shards(tmp_path) == before
    assert not run_toys(["rows"]).worked


def test_frame_stages_share_one_decode(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    assert run_toys(["bright", "dark"]).exit_code == 0
    assert decodes(tmp_path) == ["a bright,dark", "b bright,dark"]
    for stage in ("bright", "dark"):
        means = stored(tmp_path / "store", stage, "mean")
        assert {id_: mean[:, 0].tolist() for id_, mean in means.items()} == {
            "a": [1, 3, 5, 7],
            "b": [1, 3, 5, 7],
        }


def test_a_stage_that_lacks_a_video_is_decoded_for_it_alone(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    run_toys(["bright"], limit=1)
    run_toys(["bright", "dark"])
    assert decodes(tmp_path) == ["a bright", "a dark", "b bright,dark"]


def test_a_failing_stage_does_not_fail_the_others_of_its_set(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    result = run_toys(["bright", "dark"], stages={"bright": {"fails": True}})
    assert [(each.stage, each.reason) for each in result.failures] == [("bright", "exception")]
    assert sorted(stored(tmp_path / "store", "dark", "mean")) == ["a"]


def test_a_video_that_cannot_be_decoded_fails_for_all_stages_of_the_set(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "undecodable"])
    result = run_toys(["bright", "dark"])
    assert sorted((each.stage, each.key.id, each.reason) for each in result.failures) == [
        ("bright", "undecodable", "undecodable"),
        ("dark", "undecodable", "undecodable"),
    ]


def test_a_stage_that_cannot_be_set_up_says_why_and_the_others_go_on(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    result = run_toys(["bright", "dark"], stages={"bright": {"refuses_setup": True}})
    assert result.exit_code == 1
    assert result.broken == {"bright": "stage 'bright' cannot run: the weights are missing"}
    assert sorted(stored(tmp_path / "store", "dark", "mean")) == ["a"]


def test_parts_are_stored_and_resumed_one_by_one(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    assert run_toys(["halves"]).exit_code == 0
    store = Store.open(tmp_path / "store")
    assert {key.part for key in Store.open(tmp_path / "store").reader("halves").keys()} == {0, 1}  # noqa: SIM118
    assert store.reader("halves").row("a")["mean"][:, 0].tolist() == [1, 3, 5, 7]
    assert not run_toys(["halves"]).worked


def test_a_part_in_quarantine_does_not_keep_the_others_from_being_worked_on(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    (video,) = toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["halves"], limit=1)
    store = Store.open(tmp_path / "store")
    recipe = store.current["halves"]
    for shard in store.shards("halves"):
        shard.unlink()
    bad = replace(toys.key_of(video), part=1, parts=2)
    store.failures("halves", recipe).record(Failure("halves", bad, "toy", "told so", 1))
    result = run_toys(["halves"])
    assert (result.worked, result.exit_code) == (True, 3)
    assert store.reader("halves").keys() == {replace(bad, part=0)}


def test_groups_of_items_give_the_same_rows(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "c", "refuse-1", "raise-1"])
    result = run_toys(["rows"], stages={"rows": {"group": 3}})
    assert sorted(stored(tmp_path / "store", "rows")) == ["a", "b", "c"]
    assert sorted(each.key.id for each in result.failures) == ["raise-1", "refuse-1"]


def test_queries_of_all_splits_are_saved_and_each_sentence_is_worked_on_once(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    row = '{"qid": %d, "query": "%s", "vid": "a", "duration": 8, "relevant_windows": [[0, 2]]}\n'
    (tmp_path / "train.jsonl").write_text(row % (1, "a red ball") + row % (2, "a blue box"))
    (tmp_path / "val.jsonl").write_text(row % (3, "a red ball"))
    splits = {"train": "train.jsonl", "val": "val.jsonl"}
    result = run_toys(["lengths"], annotations=splits, videos={})
    assert result.exit_code == 0
    store = Store.open(tmp_path / "store")
    assert store.splits() == ["train", "val"]
    reader = store.reader("lengths")
    texts = [reader.row(id_).texts["text"][0] for id_ in reader.ids()]
    assert sorted(texts) == ["a blue box", "a red ball"]


def test_a_wish_to_stop_leaves_the_rest_for_the_next_run(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    stop = StopFlag()
    stop.request()
    result = run_toys(["rows"], stop=stop)
    assert (result.exit_code, result.interrupted) == (75, True)
    assert run_toys(["rows"]).exit_code == 0


def test_a_damaged_shard_is_named_and_its_rows_are_computed_again(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["rows"])
    (shard,) = (tmp_path / "store" / "rows").rglob("*.h5")
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run_toys(["rows"]).exit_code == 0
    np.testing.assert_array_equal(stored(tmp_path / "store", "rows")["a"], toys.expected("a"))


def test_damaged_videos_that_are_kept_are_named(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "damaged-1"])
    assert run_toys(["probe"]).partial == {"damaged-1": 3}


def test_a_store_that_cannot_be_written_ends_the_run_and_blames_no_input(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.errors import StoreError
    from data.store import ShardWriter

    toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["probe"])

    def full(self: ShardWriter) -> None:
        raise StoreError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(ShardWriter, "flush", full)
        with pytest.raises(StoreError, match="no space left"):
            run_toys(["rows"])
    assert run_toys(["rows"]).exit_code == 0


def test_a_copied_store_continues(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["rows"])
    shutil.move(tmp_path / "store", tmp_path / "moved")
    assert not run_toys(["rows"], store="moved").worked
