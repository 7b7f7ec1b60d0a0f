"""The model and the plug-in of docs/add_a_model.md run as they are printed: found where they lie,
tested by the suite of every model, trained from their YAML."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.small_store import annotation, write_store

pytestmark = pytest.mark.slow

SMALL = {"hidden": 16, "heads": 2, "feedforward": 32, "queries": 4}


@pytest.fixture(scope="module")
def grown(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this project's models and those of the guide, and its YAML."""
    page = (root / "docs/add_a_model.md").read_text()
    model, plugin = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(root / "models", folder / "models", ignore=shutil.ignore_patterns("*.pyc"))
    for name, text in (
        ("models/retrieval/gated_detr.py", model),
        ("models/retrieval/plugins/neighbours.py", plugin),
        ("configs/trainer/gated_detr/qvhighlights.yaml", recipe),
    ):
        assert f"`{name}`" in page
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_they_keep_what_every_model_and_plugin_must(root: Path, grown: Path) -> None:
    chosen = "gated_detr and (plain or neighbours or public_layout or tea_paragraph)"
    words = ["tests/conformance/test_every_model.py", "-q", "-k", chosen, "-p", "no:cacheprovider"]
    done = run(root, "-m", "pytest", *words, "-o", f"pythonpath={grown}")
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    assert passed is not None
    assert int(passed[1]) > 30


def test_the_model_trains_and_scores_from_its_yaml(root: Path, grown: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    splits = {
        split: [annotation(split, video, rng) for video in range(size)]
        for split, size in (("train", 24), ("val", 10))
    }
    store = write_store(tmp_path / "store", splits)
    values = {f"model.options.{name}": value for name, value in SMALL.items()}
    values |= {"data.store": store.path, "loop.device": "cpu", "loop.epochs": 3}
    values["model.plugins"] = "{neighbours: {reach: 2}}"
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    program = f"import sys; sys.path.insert(0, {str(grown)!r}); from training.cli import app; app()"
    config = grown / "configs/trainer/gated_detr/qvhighlights.yaml"
    done = run(root, "-c", program, "fit", "--config", config, *sets, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["selected_by"] == "MR-full-mAP"
    assert metrics["best"]["brief"]["MR-full-mAP"] is not None


def run(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
