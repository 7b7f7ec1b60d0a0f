"""Published predictions have their published scores, whatever folder of them is added."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from training.cli import app

SHARED = Path(
    os.environ.get("STORYLINE_SHARED", Path(__file__).resolve().parents[2].parent / "shared")
)
FOLDERS = sorted(each.parent for each in SHARED.glob("predictions/*/expected.json"))

SPLITS = {
    "*_charades_cd_ood": ("charades_cd", "charades_cd/charades_test_ood.json"),
    "*_charades_cd_iid": ("charades_cd", "charades_cd/charades_test_iid.json"),
    "*_test": ("qvhighlights", "qvhighlights/highlight_test_with_gt.jsonl"),
    "*_val": ("qvhighlights", "qvhighlights/highlight_val_release.jsonl"),
}
"""Dataset and annotations of a folder by its name; the first pattern that fits."""


@pytest.mark.skipif(not FOLDERS, reason=f"needs published predictions, found none below {SHARED}")
@pytest.mark.parametrize("folder", FOLDERS or [SHARED], ids=lambda folder: folder.name)
def test_every_published_number_is_ours(folder: Path, tmp_path: Path) -> None:
    name = folder.name
    pattern = next((each for each in SPLITS if fnmatch(name, each)), None)
    assert pattern, f"which split does {name} answer? add it to SPLITS: {list(SPLITS)}"
    dataset, annotations = SPLITS[pattern]
    (predictions,) = folder.glob("predictions.*")
    result = CliRunner().invoke(
        app,
        [
            *("evaluate", "--dataset", dataset, "--predictions", str(predictions)),
            *("--annotations", str(SHARED / "annotations" / annotations)),
            *("--json", str(tmp_path / "scores.json")),
        ],
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "scores.json").read_text())
    expected = leaves(json.loads((folder / "expected.json").read_text()))
    assert found["mode"] == "official"
    assert expected
    ours = leaves(found)
    assert {key: ours.get(key, "absent") for key in expected} == expected


def test_there_are_published_predictions_to_score(shared: Path) -> None:
    assert {"moment_detr_val", "qd_detr_val", "shuffling_charades_cd_ood"} <= {
        folder.name for folder in (shared / "predictions").iterdir()
    }
    # a folder without expected.json would be left out above without a word
    assert len(FOLDERS) == sum(each.is_dir() for each in (shared / "predictions").iterdir())


def leaves(scores: Mapping[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every number by the path of names to it."""
    found: dict[tuple[str, ...], Any] = {}
    for name, value in scores.items():
        path = (*above, name)
        found |= leaves(value, path) if isinstance(value, Mapping) else {path: value}
    return found
