"""The short version of `make torture`: every section once, and what each of them found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .__main__ import SECTIONS
from .figures import Findings

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def fire(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Findings]:
    """What each section found."""
    folder = tmp_path_factory.mktemp("torture")
    words = ["--size", "short", "--folder", str(folder), "--keep"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", *words],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    files = {name: folder / f"{name}.json" for name in SECTIONS}
    return {
        name: Findings.from_json(json.loads(file.read_text()))
        for name, file in files.items()
        if file.exists()
    }


@pytest.mark.parametrize("section", list(SECTIONS))
def test_nothing_is_lost_under_fire(section: str, fire: dict[str, Findings]) -> None:
    assert section in fire, "the section died; see above"
    found = fire[section]
    assert found.figures
    assert found.broken == []
    assert [each for each in found.figures if not each.met] == []
