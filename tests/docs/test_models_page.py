"""docs/models.md says what the registry has: models, parts, switches, plug-ins, sizes."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.family_sizes import PUBLIC, cells, measure
from benchmarks.family_tables import BLOCKS, blocks, published, with_blocks
from data.config import load_config
from models.retrieval import MODELS, PLUGINS, PRESETS, create_model, list_models
from training.config import TrainerConfig

ANEW = "stale: run `python benchmarks/model_sizes.py --write`"


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "models.md").read_text()


@pytest.fixture(scope="module")
def sizes(page: str) -> dict[str, list[str]]:
    """Cells of the table of sizes, by model."""
    lines = blocks(page)["sizes"].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_table_is_what_the_registry_gives(page: str, name: str) -> None:
    assert blocks(page)[name] == BLOCKS[name](), ANEW


def test_every_model_plugin_and_preset_has_its_place(page: str) -> None:
    titles = set(re.findall(r"^### `(\w+)`", page, re.MULTILINE))
    assert titles == {*list_models(), *PLUGINS}
    assert set(PRESETS) <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_option_that_a_preset_changes_is_told_with_its_values(page: str) -> None:
    for name in MODELS:
        section = page.split(f"### `{name}`\n")[1].split("\n### ")[0]
        for preset in PRESETS[1:]:
            for option, value in MODELS.get(name).presets.get(preset, {}).items():
                (row,) = re.findall(rf"^\| `{option}` \|.*", section, re.MULTILINE)
                cell = row.split(" | ")[2 + PRESETS.index(preset)].strip().strip("`")
                default = MODELS.get(name).options.model_fields[option].default
                assert cell == "" if value == default else cell, f"{name}.{option}: {cell}"


def test_every_reason_of_a_refusal_is_told(page: str) -> None:
    for name in PLUGINS:
        section = page.split(f"### `{name}`\n")[-1].split("\n### ")[0]
        for other, reason in PLUGINS.get(name).conflicts.items():
            (line,) = [each for each in section.splitlines() if reason in each]
            assert f"`{other}`" in line


@pytest.mark.parametrize("name", list_models())
def test_parameters_are_those_of_the_built_model(name: str, sizes: dict[str, list[str]]) -> None:
    with torch.device("meta"):
        fixed, release = (published(name, preset) for preset in ("fixed", "release"))
    trained = sum(x.numel() for x in fixed.parameters() if x.requires_grad)
    parameters = sum(x.numel() for x in release.parameters())
    assert sizes[name][0] == f"{trained / 1e6:.2f}", ANEW
    assert sizes[name][4] == f"{parameters / 1e6:.2f}", ANEW
    if name in PUBLIC:
        assert parameters / 1e6 == pytest.approx(PUBLIC[name][0], rel=0.05)


def test_the_table_of_sizes_is_what_is_measured(page: str) -> None:
    """Two models; all of them take a minute."""
    sizes = {}
    for name in ("moment_detr", "qd_detr"):
        fixed, release = (measure(partial(published, name, preset)) for preset in PRESETS[:2])
        assert f"| {' | '.join(cells(name, fixed, release))} |" in blocks(page)["sizes"], ANEW
        sizes[name] = fixed
    assert sizes["qd_detr"].train > 1.5 * sizes["qd_detr"].predict  # the extra pass counts
    assert sizes["moment_detr"].train == sizes["moment_detr"].predict


def test_other_text_is_put_between_the_marks_alone() -> None:
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb\n"
    assert with_blocks(text, {"one": "new"}) == "a\n<!-- one -->\n\nnew\n\n<!-- end -->\nb\n"


def test_the_python_of_the_page_runs(page: str) -> None:
    pieces = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(pieces) == 2
    for piece in pieces:
        exec(compile(piece, "docs/models.md", "exec"), {})


def test_the_configuration_of_the_page_builds_its_model(page: str, tmp_path: Path) -> None:
    (piece,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page.yaml").write_text(piece)
    config = load_config(TrainerConfig, tmp_path / "page.yaml")
    sides = {"narrative": 12} if config.data.narratives else {}
    model = config.model
    built = create_model(
        model.name,
        video_dim=18,
        text_dim=12,
        side_dims=sides,
        preset=model.preset,
        plugins=model.plugins,
        **model.options,
    )
    assert built.reads == {"side.narrative"}
