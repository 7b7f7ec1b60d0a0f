"""Videos to report with the real commands, the real Ray and the real networks, in small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data.store import Store
from pipeline.cli import app

PER_CLIP = {
    "clip": "clip",
    "slowfast": "slowfast",
    "i3d": "i3d",
    "narratives": "narrative",
    "events": "scores",
}


def demo(out: Path) -> str:
    command = [str(Path(sys.executable).with_name("pipeline")), "demo", "--out", str(out)]
    command += ["--train", "8", "--val", "2", "--test", "1", "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("road") / "demo"
    demo(out)
    return out


@pytest.mark.slow
@pytest.mark.ray
def test_every_stage_has_a_row_for_every_video_and_all_streams_agree(road: Path) -> None:
    store = Store.open(road / "store")
    rows = {stage: store.reader(stage) for stage in PER_CLIP}
    assert {len(reader.ids()) for reader in rows.values()} == {11}
    for video_id in rows["clip"].ids():
        counts = {reader.length(video_id, PER_CLIP[name]) for name, reader in rows.items()}
        assert counts == {24}
    assert store.verify() == []


@pytest.mark.slow
@pytest.mark.ray
def test_the_report_needs_no_network_and_shows_each_part(road: Path) -> None:
    page = (road / "report.html").read_text()
    assert not re.search(r"""\b(src|href)=["'](?!data:)|url\(|@import|<script""", page)
    for word in ("QD-DETR, untrained", "blind baseline", "narratives", "slowfast", "F1 at 0.5 s"):
        assert word in page
    assert page.count('class="timeline"') == 2  # one query of each validation video
    assert page.count("data:image/jpeg;base64,") == 2 * 10


@pytest.mark.slow
@pytest.mark.ray
def test_a_second_demo_works_on_nothing_and_ends_with_the_same_figures(road: Path) -> None:
    before = json.loads((road / "runs/qd_detr/metrics.json").read_text())
    shards = {path: path.stat().st_mtime_ns for path in (road / "store").rglob("*.h5")}
    said = demo(road)
    assert "is rendered already" in said
    assert said.count("is trained already") == 2
    assert {path: path.stat().st_mtime_ns for path in (road / "store").rglob("*.h5")} == shards
    assert json.loads((road / "runs/qd_detr/metrics.json").read_text()) == before


@pytest.mark.slow
@pytest.mark.ray
def test_a_report_of_own_runs_is_one_command_and_refuses_what_is_not_a_run(
    road: Path, tmp_path: Path
) -> None:
    cli = CliRunner()
    asked = ["report", "--config", str(road / "pipeline.yaml"), "--out", str(tmp_path / "r.html")]
    done = cli.invoke(app, [*asked, "--run", str(road / "runs/qd_detr"), "--shown", "1"])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text()
    assert page.count('class="timeline"') == 1
    assert "No true boundaries were given" in page
    refused = cli.invoke(app, [*asked, "--run", str(tmp_path)])
    assert refused.exit_code == 2
    assert "name the folder of a run that is finished" in refused.output
