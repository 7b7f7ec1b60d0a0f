"""The shape of the project: packages, console commands, folders that the user fixed."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

PACKAGES = ("pipeline", "models", "data", "training")
TRAINER = ("training", "models/retrieval", "data/store", "data/annotations", "data/dataset.py")
PIPELINE = ("pipeline", "models", "data")
DISTRIBUTIONS = {
    "cv2": "opencv-contrib-python-headless",
    "upath": "universal_pathlib",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "pydantic_core": "pydantic",  # pydantic requires exactly one version of it
}


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", PACKAGES)
def test_each_generic_package_name_resolves_to_this_project(name: str, root: Path) -> None:
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).resolve() == root / name / "__init__.py"


def test_the_distribution_lists_every_package_and_nothing_else(root: Path) -> None:
    listed = set(project(root)["tool"]["setuptools"]["packages"])
    there = {
        ".".join(init.parent.relative_to(root).parts)
        for name in PACKAGES
        for init in (root / name).rglob("__init__.py")
    }
    configs = {
        ".".join(folder.relative_to(root).parts)
        for folder in [root / "configs", *(root / "configs").rglob("*")]
        if folder.is_dir()
    }
    assert listed == there | configs


def test_every_file_that_is_no_code_goes_into_the_distribution(root: Path) -> None:
    patterns = project(root)["tool"]["setuptools"]["package-data"]
    shipped = {
        file
        for package, globs in patterns.items()
        for each in globs
        for file in root.joinpath(*package.split(".")).glob(each)
    }
    there = {
        file
        for name in (*PACKAGES, "configs")
        for file in (root / name).rglob("*")
        if file.is_file() and file.suffix not in {".py", ".pyc"}
    }
    assert shipped == there


def test_every_folder_with_python_files_is_a_package(root: Path) -> None:
    folders = {file.parent for name in PACKAGES for file in (root / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_folders_that_the_user_fixed_are_there(root: Path) -> None:
    wanted = {"pipeline", "models", "data", "tests", "docker", "pyproject.toml", "README.md"}
    assert wanted <= {each.name for each in root.iterdir()}


def test_console_commands_are_pipeline_and_trainer(root: Path) -> None:
    assert project(root)["project"]["scripts"] == {
        "pipeline": "pipeline.cli:main",
        "trainer": "training.cli:main",
    }


@pytest.mark.parametrize(
    ("extras", "sources"),
    [(("trainer", "cqval"), TRAINER), (("pipeline", "flow", "cpd", "openai", "vllm"), PIPELINE)],
)
def test_each_program_lists_what_it_imports(
    extras: tuple[str, ...], sources: tuple[str, ...], root: Path
) -> None:
    table = project(root)["project"]
    named = [each for extra in extras for each in table["optional-dependencies"][extra]]
    requirements = table["dependencies"] + named
    listed = {re.split(r"[^A-Za-z0-9_-]", each)[0].lower() for each in requirements}
    imported = {name for source in sources for name in third_party(root / source)}
    assert {DISTRIBUTIONS.get(name, name) for name in imported} - listed == set()


def third_party(source: Path) -> Iterator[str]:
    """Top names of what a file or folder imports, without the standard library and ourselves."""
    for file in source.rglob("*.py") if source.is_dir() else [source]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            tops = {name.partition(".")[0] for name in names}
            yield from tops - sys.stdlib_module_names - set(PACKAGES)


def test_every_requirement_has_an_exact_pin(root: Path) -> None:
    table = project(root)["project"]
    extras = table["optional-dependencies"]
    wanted = table["dependencies"] + [
        each
        for extra, requirements in extras.items()
        if extra != "vllm"  # of GPU machines, with its own torch
        for each in requirements
    ]
    pinned = re.findall(r"^([\w-]+)==", (root / "constraints.txt").read_text(), re.MULTILINE)
    names = {re.split(r"[^A-Za-z0-9_-]", each)[0] for each in wanted}
    assert {plain(name) for name in names} - {plain(name) for name in pinned} == set()


def test_what_a_pinned_package_needs_is_pinned_too(root: Path) -> None:
    """Else two installations of one commit differ; told by what is installed here."""
    pins = re.findall(r"^([\w.-]+)==", (root / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {plain(name) for name in pins}
    assert {
        f"{each.name} needs {needed.name}"
        for each in importlib.metadata.distributions()
        if plain(each.name) in pinned
        for needed in map(Requirement, each.requires or ())
        if needed.marker is None or needed.marker.evaluate({"extra": ""})
        if plain(needed.name) not in pinned
    } == set()


def plain(distribution: str) -> str:
    """A name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_trainer_imports_nothing_of_the_preprocessing_world(root: Path) -> None:
    forbidden = ["ray", "av", "decord", "open_clip", "transformers", "spacy", "torchvision"]
    script = (
        "import importlib, pkgutil, sys\n"
        "import data.annotations, data.dataset, data.store, models.retrieval, training\n"
        "for package in (training, models.retrieval, data.store, data.annotations):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        f"bad = [name for name in {forbidden} if name in sys.modules]\n"
        "sys.exit(' '.join(bad) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_two_test_files_share_a_name(root: Path) -> None:
    """pytest imports them by their name alone; two of one name stop the whole suite."""
    names = [file.name for file in (root / "tests").rglob("*.py")]
    assert sorted({name for name in names if names.count(name) > 1 and name != "conftest.py"}) == []
