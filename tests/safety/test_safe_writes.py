"""Whatever ids, paths and files say: a run writes into its store and nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from short_film import film
from typer.testing import CliRunner

from pipeline.cli import app

Inodes = dict[str, tuple[int, int, int]]


def inodes(folder: Path, without: Path) -> Inodes:
    """Inode, size and time of change of everything below a folder."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        if path != without and without not in path.parents:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a video, a secret, and a folder of work below which the store is."""
    (tmp_path / "secret").write_text("canary-7f3a")
    (tmp_path / "work").mkdir()
    film(tmp_path / "work" / "good.mp4", fps=4, frames=8)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "work"))
    return tmp_path


def run(world: Path, videos: list[dict[str, object]], queries: list[dict[str, object]]) -> int:
    """`pipeline run --stage probe` in process, over a list and annotations as given."""
    work = world / "work"
    (work / "list.jsonl").write_text("".join(json.dumps(each) + "\n" for each in videos))
    (work / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in queries))
    config = {
        "videos": {"root": "list.jsonl"},
        "store": "store",
        "annotations": {"train": "train.jsonl"},
        "engine": {"executor": "inline"},
        "decode": {"fallbacks": []},
    }
    (work / "pipeline.yaml").write_text(yaml.safe_dump(config))
    before = inodes(world, work / "store")
    found = CliRunner().invoke(app, ["run", "--stage", "probe"])
    after = inodes(world, work / "store")
    # Only the folder that got the store has changed, if there is one.
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {str(work)}
    assert "canary" not in found.output
    assert not isinstance(found.exception, Exception), found.exception
    assert found.exit_code in (2, 3), found.output
    return found.exit_code


QUERY = {"qid": 1, "query": "a grey square", "duration": 2, "vid": "good"}


@pytest.mark.parametrize(
    "bad",
    ["../escape", "/tmp/escape", "a/../../escape", "..", "x\u0000y", "x\ny", "CON", "a" * 300],
)
def test_a_hostile_id_stops_the_run_before_anything_is_written(bad: str, world: Path) -> None:
    good = {"video_id": "good", "path": "good.mp4"}
    assert run(world, [good, {"video_id": bad, "path": "good.mp4"}], [QUERY]) == 2
    assert run(world, [good], [QUERY | {"vid": bad}]) == 2
    assert not (world / "work" / "store").exists()


def test_hostile_files_go_to_quarantine_and_nothing_outside_changes(world: Path) -> None:
    work = world / "work"
    (work / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{world / 'secret'}\n")
    (work / "link.mp4").symlink_to(world / "secret")
    (work / "circle.mp4").symlink_to(work / "circle.mp4")
    os.mkfifo(work / "pipe.mp4")
    (work / "ansi.mp4").write_bytes(b"\x1b]0;pwned\x07" * 100)
    names = ("good", "list", "link", "circle", "pipe", "ansi", "absent")
    videos: list[dict[str, object]] = [{"video_id": name, "path": f"{name}.mp4"} for name in names]
    videos += [
        {"video_id": "up", "path": "../secret"},
        {"video_id": "device", "path": "/dev/zero"},
        {"video_id": "beyond", "path": "good.mp4", "start_s": 1e9},
    ]
    assert run(world, videos, [QUERY]) == 3  # finished, with inputs in quarantine
    failures = next((work / "store" / "probe").glob("*/failures.jsonl")).read_text()
    rows = [json.loads(line) for line in failures.splitlines()]
    assert {row["key"]["id"] for row in rows} == {each["video_id"] for each in videos} - {"good"}
    assert "canary" not in failures
    reasons = {row["key"]["id"]: row["reason"] for row in rows}
    assert reasons["pipe"] == reasons["device"] == reasons["circle"] == "missing"
    assert reasons["list"] == reasons["link"] == reasons["up"] == "not-media"
    stored = list((work / "store").rglob("*.h5"))
    assert len(stored) == 1
    assert b"canary" not in stored[0].read_bytes()
