"""The pages about features say what the code has: options, defaults, networks, weights."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from models.backbones import BACKBONES
from models.flow import FLOWS
from models.zoo import ZOO, ZOO_PREFIX
from pipeline.config import Decode, DecodeLimits, load_pipeline_config
from pipeline.stage import STAGES
from pipeline.stages.common import NetworkOptions

PAGES = ("features", "decoding", "weights", "interop", "rates")
NETWORKS = [
    name for name in BACKBONES.names() if issubclass(STAGES.get(name).Options, NetworkOptions)
]


def page(root: Path, name: str) -> str:
    return (root / "docs" / f"{name}.md").read_text()


def tables(text: str) -> list[list[list[str]]]:
    """All tables of a page: their rows, their cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in blocks
    ]


def told(text: str, first: str) -> dict[str, str]:
    """First and second column, without code marks, of the table that is headed `first`."""
    (table,) = [each for each in tables(text) if each[0][0] == first]
    return {row[0].strip("`"): row[1].strip("`") for row in table[2:]}


def defaults(model: type[BaseModel]) -> dict[str, str]:
    """Default of each option that is no group, as YAML writes it."""
    values = {name: field.default for name, field in model.model_fields.items()}
    return {
        name: _as_told(value) for name, value in values.items() if not isinstance(value, BaseModel)
    }


def _as_told(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def test_every_option_of_decoding_is_documented_with_its_default(root: Path) -> None:
    assert told(page(root, "decoding"), "`decode.`") == defaults(Decode)
    assert told(page(root, "decoding"), "`decode.limits.`") == defaults(DecodeLimits)


def test_every_option_of_a_network_stage_is_documented(root: Path) -> None:
    text = page(root, "features")
    options = [each for each in tables(text) if each[0][:2] == ["option", "default"]]
    cells = " ".join(row[0] for table in options for row in table[2:])
    names = set(re.findall(r"`(\w+)`", cells))
    names.add("min_heard")  # beside its mask
    assert "`min_heard` (default 0.25)" in text
    assert STAGES.get("panns").Options.model_fields["min_heard"].default == 0.25
    known = {name for each in NETWORKS for name in STAGES.get(each).Options.model_fields}
    assert names == known


def test_the_defaults_of_network_stages_are_as_documented(root: Path) -> None:
    rows = {
        row[0].strip("`"): row[1]
        for table in tables(page(root, "features"))
        if table[0][:2] == ["option", "default"]
        for row in table[2:]
    }
    for name in ("preset", "precision", "compile", "flow", "scaling"):
        (value,) = {
            _as_told(STAGES.get(each).Options.model_fields[name].default)
            for each in NETWORKS
            if name in STAGES.get(each).Options.model_fields
        }
        assert rows[name] == f"`{value}`"
    sizes = {each: STAGES.get(each).Options().batch_size for each in NETWORKS}
    assert rows["batch_size"] == "64 for `clip`, 32 for `panns`, 8 else"
    assert {each: sizes.pop(each) for each in ("clip", "panns")} == {"clip": 64, "panns": 32}
    assert set(sizes.values()) == {8}
    clip = STAGES.get("clip").Options()
    assert rows["cpus`, `gpus`, `memory_mb"] == f"{clip.cpus}, `{clip.gpus}`, {clip.memory_mb}"


def test_the_options_of_every_network_and_flow_are_documented(root: Path) -> None:
    text = page(root, "features")
    (table,) = [each for each in tables(text) if each[0][0] == "`options` of"]
    inner = set(re.findall(r"`(\w+)`", " ".join(row[1] for row in table[2:])))
    narrow = {"divisor", "calibrated", "beta_inv"}
    own = {"checkpoint", "seed", "flow", "flow_checkpoint", "flow_options", "scaling"}
    known = {name for each in BACKBONES.names() for name in arguments(BACKBONES.get(each))}
    assert inner - set(BACKBONES.names()) == known - narrow - own
    assert all(f"`{name}`" in text for name in narrow)
    (flows,) = [each for each in tables(text) if each[0][-1] == "`flow_options`"]
    for row in flows[2:]:
        name = row[0].strip("`")
        given = arguments(FLOWS.get(name)) - {"checkpoint"}
        listed = set(re.findall(r"`(\w+)(?:: [^`]*)?`", row[-1])) & given
        assert listed == given - ({"chunk"} if name == "tvl1" else set())


def arguments(kind: Any) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", PAGES)
def test_every_name_of_weights_on_a_page_is_known(root: Path, name: str) -> None:
    text = page(root, name)
    named = re.findall(rf"{ZOO_PREFIX}([\w.-]+)", text)
    fetched = [each for each in re.findall(r"weights fetch ([\w.:/-]+)", text) if ":" not in each]
    assert set(named) | set(fetched) <= set(ZOO)


@pytest.mark.parametrize("name", [*PAGES, "own_videos"])
def test_every_yaml_of_a_page_is_a_config(root: Path, name: str, tmp_path: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page(root, name), re.DOTALL):
        values = yaml.safe_load(block)
        assert isinstance(values, Mapping)
        file = tmp_path / "pipeline.yaml"
        file.write_text(block)
        load_pipeline_config(file)  # unknown keys and wrong values are errors


def test_every_stage_of_a_network_stands_in_the_first_table(root: Path) -> None:
    rows = told(page(root, "features"), "stage")
    assert set(rows) == set(BACKBONES.names())


@pytest.mark.parametrize(
    "file", ["models", "pipeline", "data", "training", "configs"], ids=lambda name: str(name)
)
def test_pages_that_messages_and_docstrings_name_exist(root: Path, file: str) -> None:
    for each in sorted((root / file).rglob("*")):
        if each.suffix in {".py", ".yaml"}:
            for named in re.findall(r"docs/\w+\.md", each.read_text()):
                assert (root / named).is_file(), f"{each} names {named}"
