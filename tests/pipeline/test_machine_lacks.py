"""What a machine lacks is told before anything is decoded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.errors import UsageError
from pipeline.cli import app
from pipeline.config import Decode, Engine, PipelineConfig
from pipeline.here import lacks
from pipeline.stage import STAGES, Stage, StageContext

INLINE = PipelineConfig(engine=Engine(executor="inline"))


def stage(name: str, device: str = "cpu", **options: Any) -> Stage:
    kind = STAGES.get(name)
    return kind(StageContext(2.0, device=device), kind.Options(**options))


def test_a_machine_that_has_everything_lacks_nothing() -> None:
    assert lacks(INLINE, [stage("probe"), stage("clip"), stage("i3d_flow")]) == ()


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/g++")
    (lack,) = lacks(INLINE, [stage("slowfast", compile=True)])
    assert lack.startswith("stage 'slowfast': `compile: true` needs a C++ compiler")
    assert "'/no/such/g++'" in lack
    assert lacks(INLINE, [stage("slowfast")]) == ()


def test_a_gpu_that_is_not_there_is_told_for_networks_only() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = lacks(INLINE, [stage(name, "cuda") for name in ("probe", "clip", "panns", "queries")])
    assert [each.split(":")[0] for each in found] == [
        f"stage '{name}'" for name in ("clip", "panns", "queries")
    ]


def test_a_library_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert "flow tvl1 needs OpenCV" in lacks(INLINE, [stage("i3d_flow", flow="tvl1")])[0]
    config = INLINE.model_copy(update={"decode": Decode(backend="torchcodec")})
    (lack,) = lacks(config, [stage("probe")])
    assert lack.startswith("decode.backend 'torchcodec': the video decoder needs")
    assert lacks(config, [stage("queries")]) == ()


def test_other_machines_are_not_judged_by_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/g++")
    away = PipelineConfig(engine=Engine(address="10.0.0.1:6379"))
    assert lacks(away, [stage("slowfast", compile=True)]) == ()


def test_run_refuses_before_it_decodes_and_plan_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "/no/such/g++")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(b"no film")
    (tmp_path / "pipeline.yaml").write_text(
        "videos: {root: films}\nstore: store\nengine: {executor: inline}\n"
        "stages: {clip: {compile: true}}\n"
    )
    planned = CliRunner().invoke(app, ["plan", "--json"])
    assert planned.exit_code == 0
    told = json.loads(planned.stdout)
    assert "`compile: true` needs a C++ compiler" in told["lacks"][0]
    assert told["speeds"] == []
    assert "cannot run on this machine: stage 'clip'" in CliRunner().invoke(app, ["plan"]).stdout
    ran = CliRunner().invoke(app, ["run"])
    assert ran.exit_code == 2
    assert "`compile: true` needs a C++ compiler" in ran.output
    assert not list((tmp_path / "store").glob("probe/*"))


def test_networks_are_built_without_the_compiler_of_torch() -> None:
    code = "import sys, models.backbones; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_the_check_of_a_stage_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/g++")
    with pytest.raises(UsageError, match="compile: false"):
        stage("i3d", compile=True).check_machine()
