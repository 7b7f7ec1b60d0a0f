"""What a run makes of a config before and while it works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from rich.console import Console

from data.errors import UsageError
from data.store import Store
from pipeline.config import load_pipeline_config
from pipeline.progress import Progress
from pipeline.run import Result, View, look

pytestmark = pytest.mark.usefixtures("toy_stages")

QUERY = {"qid": 1, "query": "a dog runs", "duration": 8, "vid": "a", "relevant_windows": [[2, 4]]}
SALIENCY = {"relevant_clip_ids": [1], "saliency_scores": [[3, 3, 4]]}


def view_of(folder: Path, asked: list[str], row: dict[str, Any] | None, **config: Any) -> View:
    toys.write_videos(folder / "videos", ["a"])
    values: dict[str, Any] = {"videos": {"root": "videos"}, "store": "store"} | config
    values["stages"] = {"rows": {}, "lengths": {}}
    if row is not None:
        (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
        values["annotations"] = {"train": "train.jsonl"}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(values))
    return look(load_pipeline_config(folder / "pipeline.yaml"), asked, None)


def test_saliency_on_clips_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"clips of 2 s .*clip_len_s is 1;"):
        view_of(tmp_path, [], QUERY | SALIENCY, clip_len_s=1.0)
    assert view_of(tmp_path, [], QUERY | SALIENCY, clip_len_s=2.0).annotations["train"]


def test_a_split_with_a_path_in_its_name_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(QUERY) + "\n")
    with pytest.raises(UsageError, match=r"split of `annotations` '\.\./x' is not allowed"):
        view_of(tmp_path, [], None, annotations={"../x": "q.jsonl"})


def test_moments_without_saliency_go_with_any_clip_length(tmp_path: Path) -> None:
    assert view_of(tmp_path, [], QUERY, clip_len_s=1.0).annotations["train"]


def test_stages_over_queries_are_left_out_of_a_config_without_queries_and_named(
    tmp_path: Path,
) -> None:
    view = view_of(tmp_path, [], None)
    assert [stage.name for stage in view.program.stages] == ["probe", "rows"]
    (note,) = view.notes
    assert note.startswith("lengths: left out")
    assert view_of(tmp_path, [], QUERY).notes == ()


def test_a_stage_over_queries_that_is_asked_for_by_name_needs_queries(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stage lengths works on queries"):
        view_of(tmp_path, ["lengths"], None)


def test_a_decoder_that_cannot_be_imported_is_no_fault_of_the_videos(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYLINE_DECODERS", "nowhere:Decoder")
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    result = run_toys(["bright", "dark"], decode={"backend": "nowhere:Decoder", "fallbacks": []})
    assert result.exit_code == 1
    assert sorted(result.broken) == ["bright", "dark"]
    assert "'nowhere:Decoder' cannot be imported" in result.broken["bright"]
    assert result.failures == []


class Reader(Progress):
    """Notes which recipe a reader gets when the work on a stage begins."""

    def __init__(self, store: Path) -> None:
        super().__init__(Console(quiet=True))
        self.store = store
        self.current: dict[str, str] = {}

    def begin(self, stage: str, total: int, before: int) -> None:
        super().begin(stage, total, before)
        self.current[stage] = Store.open(self.store).current[stage]


def recipe_of(result: Result, stage: str = "rows") -> str:
    return next(line.recipe for line in result.plan.lines if line.stage == stage)


def current(folder: Path, stage: str = "rows") -> str:
    return Store.open(folder / "store").current[stage]


def test_a_recipe_without_rows_gives_way_at_once(tmp_path: Path, run_toys: toys.RunToys) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    failed = {"scale": 2.0, "checkpoint": str(tmp_path / "none.pt")}
    assert "rows" in run_toys(["rows"], stages={"rows": failed}).broken
    reader = Reader(tmp_path / "store")
    result = run_toys(["rows"], watcher=reader)
    assert reader.current["rows"] == recipe_of(result)


def test_readers_follow_a_config_that_goes_back_to_rows_that_are_there(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    first = run_toys(["rows"])
    second = run_toys(["rows"], stages={"rows": {"scale": 2.0}})
    assert current(tmp_path) == recipe_of(second) != recipe_of(first)
    assert not run_toys(["rows"]).worked
    assert current(tmp_path) == recipe_of(first)


def test_a_trial_with_a_limit_does_not_take_the_rows_from_readers(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    first = run_toys(["rows"])
    other = {"rows": {"scale": 2.0}}
    assert run_toys(["rows"], stages=other, limit=1).exit_code == 0
    assert current(tmp_path) == recipe_of(first)
    second = run_toys(["rows"], stages=other)
    assert current(tmp_path) == recipe_of(second)


def test_a_stage_that_waits_for_a_broken_one_does_not_take_the_rows_from_readers(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    first = run_toys(["sums"])
    failed = {"scale": 2.0, "checkpoint": str(tmp_path / "none.pt")}
    assert run_toys(["sums"], stages={"rows": failed}).exit_code == 1
    assert current(tmp_path, "sums") == recipe_of(first, "sums")


def test_a_recipe_under_which_nothing_works_does_not_take_the_rows_from_readers(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["raise-1"])
    (tmp_path / "videos" / "raise-1.mp4").rename(tmp_path / "videos" / "a.mp4")
    first = run_toys(["rows"])
    (tmp_path / "videos" / "a.mp4").rename(tmp_path / "videos" / "raise-1.mp4")
    assert run_toys(["rows"], stages={"rows": {"scale": 2.0}}).exit_code == 3
    assert current(tmp_path) == recipe_of(first)
