"""What captions will cost, told before, and refused where it is too much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import toys
import yaml
from typer.testing import CliRunner

from data.store import Row, Store
from data.video.types import VideoFacts
from models.captioners.limits import Transformer, Work, bound, gpu_called, most_rows
from pipeline.cli import app
from pipeline.paces import Pace, paces_of, remember_pace
from pipeline.stage import STAGES, Inputs, Item, Resources

WORK = Work.of(Transformer(40, 5120, 13824, True, vocab=32000), 0.4e12, 0.3e9, 636, 60)


class ToyDear(toys.ToyRows):
    """One caption for each second, on a GPU of its own."""

    name: ClassVar[str] = "dear"
    summed: ClassVar[tuple[str, ...]] = ("captions", "new_tokens", "reused")

    @property
    def counts(self) -> bool:
        return True

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1.0)

    def amount(self, facts: VideoFacts, part: int) -> int:
        return round(facts.duration_s)

    def work(self) -> Work:
        return WORK

    def process(self, item: Item, inputs: Inputs) -> Row:
        row = super().process(item, inputs)
        made = {"captions": 8, "new_tokens": 8 * 50, "reused": 2}
        return Row(row.key, arrays=row.arrays, facts=made)


@pytest.fixture
def folder(toy_stages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two videos of eight seconds, and a config that asks for `dear`."""
    monkeypatch.setattr(STAGES, "_things", toys.toy_registry() | {"dear": ToyDear})
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    config: Mapping[str, Any] = {
        "videos": {"root": "videos"},
        "store": "store",
        "device": "cpu",
        "decode": {"backend": "toys:ToyDecoder", "fallbacks": []},
        "engine": {"executor": "inline"},
        "stages": {"dear": {}},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def cost(*words: str) -> dict[str, Any]:
    code, output = call("plan", "--json", "--no-measure", *words)
    assert code == 0, output
    found: dict[str, Any] = json.loads(output)["costs"][0]
    return found


def probed() -> None:
    assert call("run", "--stage", "probe")[0] == 0


@pytest.mark.usefixtures("folder")
def test_captions_are_counted_when_the_videos_are_probed() -> None:
    assert (cost()["captions"], cost()["unknown"]) == (0, 2)
    probed()
    assert (cost()["captions"], cost()["unknown"], cost()["bytes"]) == (16, 0, 16 * 900)


@pytest.mark.usefixtures("folder")
def test_a_gpu_that_is_not_here_is_reckoned_with_by_its_computed_limit() -> None:
    probed()
    gpu, found = gpu_called("H200"), cost("--gpu", "H200")
    assert gpu is not None
    rows = most_rows(WORK, gpu.memory_bytes - WORK.resident_bytes)
    limit_hz = bound(WORK, gpu, rows, 60).captions_hz
    assert found["limit_hz"] == pytest.approx(limit_hz)
    assert found["rate_hz"] == pytest.approx(0.6 * limit_hz)
    assert found["gpu_hours"] == pytest.approx(16 / (0.6 * limit_hz) / 3600)


@pytest.mark.usefixtures("folder")
def test_a_gpu_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    probed()
    code, output = call("plan", "--no-measure", "--gpu", "Voodoo2")
    assert code == 2
    assert "Voodoo2" in output
    assert "H200" in output


def test_an_earlier_run_of_the_same_recipe_counts_more_than_arithmetic(folder: Path) -> None:
    probed()
    store = Store.open(folder / "store")
    recipe = json.loads(call("plan", "--json", "--no-measure")[1])["stages"][-1]["recipe"]
    remember_pace(store, Pace("another", "H200", 100, 0, 5000, 1.0))
    remember_pace(store, Pace(recipe, "NVIDIA H200", 90, 10, 5000, 50.0))
    found = cost("--gpu", "H200")
    assert (found["rate_hz"], found["source"]) == (2.0, "an earlier run")
    assert found["gpu_hours"] == pytest.approx(8 / 3600)


@pytest.mark.usefixtures("folder")
def test_what_costs_too_much_is_refused_before_it_begins_and_what_does_not_runs() -> None:
    probed()
    store = Store.open(Path("store"))
    recipe = json.loads(call("plan", "--json", "--no-measure")[1])["stages"][-1]["recipe"]
    # The GPU of this machine has no name here: as for an earlier run without one.
    remember_pace(store, Pace(recipe, "", 16, 0, 800, 7200.0))
    assert cost()["gpu_hours"] == 0.0  # on a CPU nothing is paid for
    code, output = call("run", "--max-gpu-hours", "0")
    assert code == 0
    assert output.count("dear: 16 captions left, made on CPUs: no GPU-hours") == 1
    assert (paces_of(store)[-1].captions, paces_of(store)[-1].reused) == (12, 4)  # of 2 x 8


def test_too_dear_is_exit_code_2_with_the_sum_and_nothing_is_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cost.gpu_here", lambda device: "NVIDIA H200")
    code, output = call("run", "--max-gpu-hours", "0.00001")
    assert code == 2  # refused after the probe, which says how many there are
    assert "GPU-hours, --max-gpu-hours allows 1e-05" in output
    assert not (folder / "store" / "dear").exists()
    assert call("run", "--max-gpu-hours", "1")[0] == 0


def test_what_nobody_can_reckon_is_refused_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cost.gpu_here", lambda device: "Voodoo2")
    code, output = call("run", "--max-gpu-hours", "5")
    assert code == 2
    assert "nobody can say what this will cost" in output
