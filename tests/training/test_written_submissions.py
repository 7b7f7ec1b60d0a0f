"""What `trainer predict` writes is what evaluators of this family read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_store import CLIPS, Annotations
from typer.testing import CliRunner

from training.cli import app
from training.predictions import read_predictions, unsorted


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_submission_has_every_query_once_and_lists_its_best_window_first(
    tmp_path: Path, config_file: Callable[..., Path], splits: Annotations, split: str
) -> None:
    def trainer(*arguments: Any) -> None:
        result = CliRunner().invoke(app, [str(each) for each in arguments])
        assert result.exit_code == 0, result.output

    run, out = tmp_path / "run", tmp_path / "hl_submission.jsonl"
    trainer("fit", "--config", config_file(), "--out", run)
    trainer("predict", "--run", run, "--split", split, "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [
        {"qid": each.qid, "query": each.query, "vid": each.video_id} for each in splits[split]
    ]
    assert [{name: row[name] for name in ("qid", "query", "vid")} for row in rows] == expected
    assert unsorted(read_predictions(out)) == []
    for row in rows:
        assert len(row["pred_saliency_scores"]) == CLIPS
        assert row["pred_relevant_windows"]
        for start, end, score in row["pred_relevant_windows"]:
            assert 0 <= start <= end <= length_of(row, splits[split])
            assert score == round(score, 4)


def length_of(row: dict[str, Any], annotations: Any) -> float:
    found = {each.qid: each.duration_s for each in annotations}
    return float(found[row["qid"]])
