"""What the command answers, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.config import PipelineConfig, load_pipeline_config
from pipeline.run import Run

pytestmark = pytest.mark.usefixtures("toy_stages")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(folder: Path, **values: Any) -> None:
    base = {"videos": {"root": "videos"}, "store": "store", "stages": {"rows": {}}}
    base["engine"] = {"executor": "inline"}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(base | values))


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_a_run_ends_with_0_and_a_table(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a", "b"])
    write_config(folder)
    done = call("run")
    assert done.exit_code == 0, done.output
    assert "rows: 2/2" in done.output
    assert "In the store" in done.output
    again = call("run")
    assert again.exit_code == 0
    assert "nothing to do" in again.output


def test_quarantine_ends_with_3_and_says_how_many_why_and_how_to_retry(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a", "refuse-1", "refuse-2", "damaged-1"])
    write_config(folder)
    done = call("run", "--stage", "rows", "--limit", "4")
    assert done.exit_code == 3
    assert "In quarantine: 2" in done.output
    assert "toy-refused" in done.output
    assert "refuse-1: refuse-1 is refused" in done.output
    assert "pipeline run --stage rows --limit 4 --retry-failed" in done.output
    again = call("run", "--stage", "rows", "--limit", "4", "--retry-failed")
    assert again.output.count("--retry-failed") == 1
    assert "decode.damaged is 'keep'" in done.output
    assert "damaged-1 (3 packets)" in done.output


def test_what_has_no_queries_to_work_on_is_said(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a"])
    write_config(folder, stages={"rows": {}, "lengths": {}})
    for command in ("plan", "run"):
        done = call(command)
        assert done.exit_code == 0, done.output
        assert "lengths: left out" in done.stdout


def test_a_damaged_shard_is_named_by_plan_and_set_aside_by_run(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a", "b"])
    write_config(folder)
    call("run")
    (shard,) = (folder / "store" / "rows").rglob("*.h5")
    shard.write_bytes(shard.read_bytes()[:-100])
    assert shard.name in call("plan").stdout
    assert shard.exists()
    done = call("run", "--limit", "1")
    assert done.exit_code == 0, done.output
    # as a note when it happens, and in the summary
    assert done.stdout.count(f"damaged shard {shard} ") == 2
    assert "what was in it is made again" in done.stdout
    assert "damaged" not in call("run").stdout


def test_a_store_may_have_any_name_and_stands_in_the_command_that_retries(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a", "refuse-1"])
    write_config(folder)
    done = call("run", "--store", "2026", "--set", "stages.rows.scale=2")
    assert done.exit_code == 3, done.output
    assert (folder / "2026" / "store.json").is_file()
    again = "pipeline run --set stages.rows.scale=2 --store 2026 --retry-failed"
    assert again in done.stdout
    assert call("plan", "--store", "2026").exit_code == 0


WRONG = {
    "unknown stage": (["run", "--stage", "rosw"], "unknown stage 'rosw'; did you mean 'rows'"),
    "unknown key": (["run", "--set", "stroe=x"], "unknown key 'stroe'; did you mean 'store'"),
    "unknown option": (
        ["run", "--set", "stages.rows.scael=2"],
        "unknown key 'stages.rows.scael'; did you mean 'scale'",
    ),
    "unknown stage in the config": (
        ["run", "--set", "stages.rosw={}"],
        "unknown key 'stages.rosw'; did you mean 'rows'",
    ),
    "wrong value": (["run", "--set", "clip_len_s=-1"], "'clip_len_s': "),
    "infinite value": (["run", "--set", "clip_len_s=.inf"], "'clip_len_s': input should be a fin"),
    "unknown device": (["run", "--set", "device=tpu"], "'device': input should be 'auto'"),
    "unknown decoder": (
        ["run", "--set", "decode.backend=pyva"],
        "unknown video decoder 'pyva'; did you mean 'pyav'",
    ),
    "missing folder": (["run", "--set", "videos.root=nowhere"], "nowhere does not exist"),
    "empty folder": (["run", "--set", "videos.root=empty"], "holds no videos"),
    "empty list": (["run", "--set", "videos.root=empty.jsonl"], "lists no videos"),
    "id with a path": (["run", "--set", "videos.root=bad.jsonl"], "'../a' is not allowed"),
    "no config": (["run", "--config", "none.yaml"], "extends: tiny"),
    "no store to look at": (["status", "--store", "nowhere"], "store nowhere does not exist"),
    "queries without annotations": (["run", "--stage", "lengths"], "annotations: {train: FILE}"),
    "foreign folder": (["run", "--store", "empty"], "empty exists and is not empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_answered_with_a_sentence_and_2(folder: Path, name: str) -> None:
    toys.write_videos(folder / "videos", ["a"])
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").touch()
    (folder / "empty.jsonl").touch()
    (folder / "bad.jsonl").write_text('{"video_id": "../a", "path": "a.mp4"}\n')
    write_config(folder)
    words, sentence = WRONG[name]
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert done.stdout == ""
    assert not (folder / "store").exists()


def test_a_store_of_another_schema_version_is_refused(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a"])
    write_config(folder)
    call("run")
    file = folder / "store" / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 99}))
    for words in (["run"], ["status"], ["plan"], ["status", "--store", "store"]):
        done = call(*words)
        assert done.exit_code == 2, done.output
        assert "99" in done.stderr


def test_a_store_that_cannot_be_made_ends_with_1_and_how_to_continue(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a"])
    write_config(folder)
    (folder / "file").touch()
    done = call("run", "--store", "file/store")
    assert done.exit_code == 1, done.output
    assert "cannot write" in done.stderr
    assert "to continue:\n  pipeline run --store file/store" in done.stderr


def test_a_signal_while_the_config_is_read_is_a_wish_to_stop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write_videos(folder / "videos", ["a"])
    write_config(folder)

    def slowly(*arguments: Any) -> PipelineConfig:
        os.kill(os.getpid(), signal.SIGUSR1)
        return load_pipeline_config(*arguments)

    monkeypatch.setattr("pipeline.cli.load_pipeline_config", slowly)
    done = call("run")
    assert done.exit_code == 75, done.output
    assert "interrupted; to continue:\n  pipeline run" in done.stderr


def test_status_counts_with_and_without_a_config(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a", "b", "refuse-1"])
    write_config(folder)
    call("run")
    for words in ([], ["--store", "store"]):
        done = call("status", "--json", *words)
        assert done.exit_code == 0, done.output
        stages = {each["stage"]: each for each in json.loads(done.stdout)["stages"]}
        counts = {name: (s["done"], s["missing"], s["failed"]) for name, s in stages.items()}
        assert counts == {"probe": (3, 0, 0), "rows": (2, 0, 1)}
        assert stages["rows"]["bytes"] > 0
    assert "rows" in call("status").stdout


def test_a_stage_that_cannot_be_set_up_is_told_once_with_the_reason(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a"])
    write_config(folder, stages={"rows": {"checkpoint": str(folder / "none.pt")}})
    done = call("run", "--stage", "rows")
    assert done.exit_code == 1
    assert done.stderr.startswith("pipeline: stage 'rows' cannot run: there is no checkpoint ")
    assert done.stderr.count("stage 'rows'") == 1


def test_doctor_says_what_it_found() -> None:
    done = call("doctor", "--json")
    checks = {each["name"]: each for each in json.loads(done.stdout)}
    assert checks["package pipeline"]["state"] == "ok"
    assert checks["package data"]["state"] == "ok"
    assert {"Python", "torch", "Ray cluster", "decoder av", "torchvision"} <= set(checks)
    assert {"fsspec", "stores on s3://", "stores on gs://"} <= set(checks)


def test_doctor_says_where_scratch_is_and_that_it_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYLINE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("STORYLINE_SCRATCH_GB", "7")
    assert "at most 7 GB" in scratch_of_doctor()["found"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("STORYLINE_SCRATCH", str(tmp_path / "file"))
    found = scratch_of_doctor()
    assert found["state"] == "warn"
    assert f"local scratch {tmp_path}/file cannot be used" in found["found"]


def scratch_of_doctor() -> dict[str, str]:
    checks = json.loads(call("doctor", "--json").stdout)
    return next(each for each in checks if each["name"] == "local scratch")


@pytest.mark.parametrize(("package", "command"), [("ray", "run"), ("jinja2", "report")])
def test_a_package_that_is_not_installed_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, command: str
) -> None:
    toys.write_videos(folder / "videos", ["a"])
    write_config(folder, engine={"executor": "ray"})
    # As if it were not there; what has imported it already would not notice.
    for name in [each for each in sys.modules if each.startswith((package, "pipeline.report"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    done = call(command, *(["--run", "runs/first"] if command == "report" else []))
    assert done.exit_code == 2, done.output
    assert f"the Python package '{package}', which is not installed: pip install" in done.stderr
    assert "'.[pipeline]'" in done.stderr


def test_a_shadowed_package_is_found_by_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    foreign = types.ModuleType("data")
    foreign.__file__ = str(tmp_path / "data" / "__init__.py")
    monkeypatch.setitem(sys.modules, "data", foreign)
    done = call("doctor", "--json")
    checks = {each["name"]: each for each in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert checks["package data"]["state"] == "fail"


def test_an_interrupted_retry_goes_on_as_a_retry(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write_videos(folder / "videos", ["a"])
    write_config(folder)
    monkeypatch.setattr(Run, "run", _interrupted)
    done = call("run", "--retry-failed")
    assert done.exit_code == 75
    assert "to continue:\n  pipeline run --retry-failed" in done.stderr


def _interrupted(run: Run, *, retry_failed: bool) -> None:
    assert retry_failed
    raise KeyboardInterrupt
