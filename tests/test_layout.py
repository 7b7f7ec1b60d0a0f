"""The shape of the project: packages, console commands, folders that the user fixed."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("pipeline", "models", "data", "training")


@pytest.mark.parametrize("name", PACKAGES)
def test_each_generic_package_name_resolves_to_this_project(name: str, root: Path) -> None:
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).resolve() == root / name / "__init__.py"


def test_the_distribution_lists_every_package_and_nothing_else(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    there = {
        ".".join(init.parent.relative_to(root).parts)
        for name in PACKAGES
        for init in (root / name).rglob("__init__.py")
    }
    assert {each for each in listed if not each.startswith("configs")} == there


def test_every_folder_with_python_files_is_a_package(root: Path) -> None:
    folders = {file.parent for name in PACKAGES for file in (root / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_folders_that_the_user_fixed_are_there(root: Path) -> None:
    wanted = {"pipeline", "models", "data", "tests", "docker", "pyproject.toml", "README.md"}
    assert wanted <= {each.name for each in root.iterdir()}


def test_console_commands_are_pipeline_and_trainer(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {
        "pipeline": "pipeline.cli:main",
        "trainer": "training.cli:main",
    }


def test_the_trainer_imports_nothing_of_the_preprocessing_world(root: Path) -> None:
    import subprocess
    import sys

    forbidden = ["ray", "av", "decord", "open_clip", "transformers", "spacy", "torchvision"]
    script = (
        "import sys, training.cli, training.loop, data.dataset, models.retrieval\n"
        f"bad = [m for m in {forbidden} if m in sys.modules]\n"
        "sys.exit(' '.join(bad) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
