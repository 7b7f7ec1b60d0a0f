"""`trainer join`: a split that its publication left out, from the files that hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from data.annotations import load_annotations
from training.cli import app


def _file(folder: Path, name: str, **videos: str) -> str:
    entries: dict[str, Any] = {
        video: {"duration": 10, "timestamps": [[0, 5]], "sentences": [sentence]}
        for video, sentence in videos.items()
    }
    (folder / name).write_text(json.dumps(entries))
    return str(folder / name)


def test_the_videos_of_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    files = [
        _file(tmp_path, "train.json", v_a="Ä one.", v_b="two."),
        _file(tmp_path, "val_1.json", v_c="three."),
        _file(tmp_path, "val_2.json", v_c="four."),
    ]
    held = _file(tmp_path, "ood.json", v_b="two.", v_z="gone.")
    out = tmp_path / "anet_train.json"
    command = ["join", *files, "--without", held, "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "1 videos to leave out are in none of the files: v_z" in result.output
    assert f"{out}: 2 videos with 3 queries; 1 videos were left out" in result.output
    rows = load_annotations("activitynet_cd", out)
    assert [(row.qid, row.query) for row in rows] == [
        ("v_a_0", "Ä one."),
        ("v_c_0", "three."),
        ("v_c_1", "four."),
    ]
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "exists; name a new file" in again.output


def test_files_that_cannot_be_joined_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"v_a": {"duration": 10,')
    out = tmp_path / "out.json"
    result = CliRunner().invoke(app, ["join", str(tmp_path / "broken.json"), "--out", str(out)])
    assert result.exit_code == 2
    assert "broken.json are not JSON that can be used" in result.output
    assert not out.exists()
