"""The page about captions says what the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from models.captioners import CAPTIONERS, CaptionResult
from models.captioners.guards import FLAGS, MAX_WORDS, MIN_WORDS
from models.captioners.prompts import prompt_ids
from pipeline.config import load_pipeline_config
from pipeline.stages.caption_records import Made, record_of
from pipeline.stages.caption_reuse import ReuseOptions
from pipeline.stages.caption_slots import Slot
from pipeline.stages.captions import CaptionsOptions, CaptionsStage
from pipeline.stages.common import WorkerOptions


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "captions.md").read_text()


def tables(text: str, first: str) -> list[list[list[str]]]:
    """Cells of the tables whose first heading is `first`."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    cut = [
        [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in block.splitlines()]
        for block in blocks
    ]
    return [rows[2:] for rows in cut if rows[0][0].strip() == first]


def marked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def defaults(model: type[BaseModel], without: set[str]) -> dict[str, Any]:
    return {
        name: {} if field.default is PydanticUndefined else field.default
        for name, field in model.model_fields.items()
        if name not in without
    }


def test_every_captioner_is_in_the_table(page: str) -> None:
    (rows,) = tables(page, "captioner")
    named = {name for row in rows for name in marked(row[0])}
    assert set(CAPTIONERS.names()) <= named


@pytest.mark.parametrize(
    ("model", "without"),
    [(CaptionsOptions, {*WorkerOptions.model_fields, "reuse"} - {"gpus"}), (ReuseOptions, set())],
)
def test_options_and_defaults_are_those_of_the_code(
    page: str, model: type[BaseModel], without: set[str]
) -> None:
    told = [
        {marked(row[0])[0]: yaml.safe_load(marked(row[1])[0]) for row in rows}
        for rows in tables(page, "option")
    ]
    # `off` is a word here, and no in YAML 1.1
    told = [{k: "off" if v is False else v for k, v in each.items()} for each in told]
    assert defaults(model, without) in told


def test_the_fields_of_a_record_are_those_that_are_written(page: str) -> None:
    (rows,) = tables(page, "field")
    result = CaptionResult("x", "ok", raw="x y", reason="why", end_s=2.0, attempts=2, taken=1)
    made = Made("ab", (1.0,), result, source=0)
    record = yaml.safe_load(record_of(made, Slot(1, 1.0, None, 0), {"prompt": "tea", "seed": 0}))
    assert {name for row in rows for name in marked(row[0])} == record.keys()


def test_flags_and_their_limits_and_prompts_are_those_of_the_code(page: str) -> None:
    guards = page.split("## Quality guards")[1].split("## ")[0]
    assert [flag for flag in marked(guards) if flag in FLAGS] == list(FLAGS)
    assert f"under {MIN_WORDS} words" in guards
    assert f"over {MAX_WORDS}" in guards
    (prompt,) = [row for rows in tables(page, "option") for row in rows if row[0] == "`prompt`"]
    assert set(marked(prompt[2])) == set(prompt_ids())


@pytest.mark.parametrize("name", ["captions", "captioners", "narratives"])
def test_every_piece_of_yaml_is_a_config(root: Path, tmp_path: Path, name: str) -> None:
    text = (root / "docs" / f"{name}.md").read_text()
    pieces = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert pieces
    (tmp_path / "captions.csv").write_text("vid,timestamp,caption\nfilm,0,A room.\n")
    for number, piece in enumerate(pieces):
        file = tmp_path / f"{number}.yaml"
        file.write_text(piece)
        config = load_pipeline_config(file)
        section: Any = config.stage_options.get("captions")
        if section is not None:
            CaptionsStage(config.context, section).check_options()


def test_the_papers_of_the_page_are_the_configs_that_ship(page: str) -> None:
    (rows,) = tables(page, "config")
    for (name,) in (marked(row[0]) for row in rows):
        captions: Any = load_pipeline_config(Path(name)).stage_options["captions"]
        assert captions.prompt == name.removesuffix("_captions")
