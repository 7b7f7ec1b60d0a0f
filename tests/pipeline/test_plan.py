"""What would run and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from typer.testing import CliRunner

from data.errors import UsageError
from data.store.recipes import differences
from pipeline.cli import app
from pipeline.program import Program
from pipeline.stage import STAGES, Stage, StageContext

CONTEXT = StageContext(clip_len_s=2.0)


def plan_of(*words: str) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["plan", "--json", *words])
    assert done.exit_code == 0, done.output
    return {line["stage"]: line for line in json.loads(done.output)["stages"]}


@pytest.mark.usefixtures("toy_stages")
def test_stages_come_after_what_they_read_and_say_who_needs_them() -> None:
    program = Program.build(CONTEXT, {}, ["sums"])
    assert [stage.name for stage in program.stages] == ["probe", "rows", "sums"]
    assert program.because == {"rows": "sums", "probe": "rows"}


@pytest.mark.usefixtures("toy_stages")
def test_frame_stages_are_put_together_wherever_they_were_named() -> None:
    program = Program.build(CONTEXT, {}, ["bright", "sums", "halves", "dark"])
    assert [each.names for each in program.sets] == [
        ("probe",),
        ("bright", "dark"),
        ("halves",),
        ("rows",),
        ("sums",),
    ]


@pytest.mark.usefixtures("toy_stages")
def test_a_recipe_depends_on_those_of_what_it_reads() -> None:
    plain = Program.build(CONTEXT, {}, ["sums"]).recipes
    options = {"rows": toys.ToyRows.Options(scale=2.0)}
    scaled = Program.build(CONTEXT, options, ["sums"]).recipes
    assert plain["probe"].id == scaled["probe"].id
    assert plain["sums"].id != scaled["sums"].id


@pytest.mark.usefixtures("toy_stages")
def test_without_a_name_the_configured_stages_are_meant() -> None:
    program = Program.build(CONTEXT, {"rows": toys.ToyRows.Options()})
    assert [stage.name for stage in program.stages] == ["probe", "rows"]


@pytest.mark.usefixtures("toy_stages")
def test_an_unknown_stage_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown stage 'brigth'; did you mean 'bright'"):
        Program.build(CONTEXT, {}, ["brigth"])


@pytest.mark.usefixtures("toy_stages")
def test_features_means_the_feature_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: dict[str, type[Stage]] = {"clip": toys.ToyBright, "i3d": toys.ToyDark}
    monkeypatch.setattr(STAGES, "_things", toys.toy_registry() | stages)
    program = Program.build(CONTEXT, {}, ["features"])
    assert [type(stage) for stage in program.stages] == [
        toys.ToyProbe,
        toys.ToyBright,
        toys.ToyDark,
    ]


@pytest.mark.usefixtures("toy_stages")
def test_stages_that_read_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys.ToyRows, "reads", ("sums",))
    with pytest.raises(UsageError, match="circle: sums -> rows -> sums"):
        Program.build(CONTEXT, {}, ["sums"])


def test_differences_name_the_point() -> None:
    before = {"params": {"width": 0.25, "seed": 0}, "version": 1}
    after = {"params": {"width": 0.5, "seed": 0}, "version": 1}
    assert differences(before, after) == "params.width: 0.25 -> 0.5"
    assert differences(before, before) == ""


def test_a_plan_counts_what_is_there_and_what_waits(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toys.write_videos(tmp_path / "videos", ["a", "b", "refuse-1"])
    run_toys(["rows"])
    (tmp_path / "videos" / "new.mp4").write_text("new")
    lines = plan_of("--stage", "sums", "--stage", "bright")
    counts = ("wanted", "present", "missing", "waiting", "quarantined", "blocked")
    assert {name: tuple(line[each] for each in counts) for name, line in lines.items()} == {
        "probe": (4, 3, 1, 0, 0, 0),
        "bright": (4, 0, 4, 1, 0, 0),
        "rows": (4, 2, 1, 1, 1, 0),
        "sums": (4, 0, 3, 1, 0, 1),
    }
    assert lines["rows"]["because"] == "sums"


def test_a_plan_says_what_changed_in_a_recipe(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["rows"])
    line = plan_of("--stage", "rows", "--set", "stages.rows.scale=3.0")["rows"]
    assert (line["missing"], line["change"]) == (1, "params.scale: 1.0 -> 3.0")


@pytest.mark.usefixtures("toy_stages")
def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toys.write_videos(tmp_path / "videos", ["a"])
    config = {"videos": {"root": "videos"}, "store": "store", "stages": {"rows": {}}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    assert plan_of()["rows"]["missing"] == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("toy_stages")
def test_retry_failed_plans_what_is_in_quarantine(
    tmp_path: Path, run_toys: toys.RunToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toys.write_videos(tmp_path / "videos", ["a", "refuse-1"])
    run_toys(["rows"])
    assert plan_of("--stage", "rows")["rows"]["missing"] == 0
    assert plan_of("--stage", "rows", "--retry-failed")["rows"]["missing"] == 1
