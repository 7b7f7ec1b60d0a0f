"""The options of `vlm` and `blip2` on the page about captions are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.captioners import CAPTIONERS
from models.options import defaults_of
from tests.models.captioners.tiny_vlms import FAMILIES

SECTION = "## Any vision-language model, BLIP-2\n"


@pytest.fixture(scope="module")
def section(root: Path) -> str:
    page = (root / "docs" / "captioners.md").read_text()
    return page.split(SECTION)[1].split("\n## ")[0]


def told(table: str) -> dict[str, Any]:
    """Options and defaults of the rows of a table."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE)
    return {name: yaml.safe_load(default) for name, default in rows}


def plain(name: str) -> dict[str, Any]:
    """Options and defaults of a captioner, as YAML writes them."""
    kind: Any = CAPTIONERS.get(name)
    given = {"seed", "device"}  # by the stage
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in defaults_of(kind).items()
        if key not in given
    }


def test_options_and_defaults_are_those_of_the_code(section: str) -> None:
    vlm, blip2 = section.split("`blip2` is BLIP-2 with OPT")
    assert told(vlm) == plain("vlm")
    own = told(blip2)
    also = set(re.findall(r"`(\w+)`", re.findall(r"^(`temp.*) are those", blip2, re.MULTILINE)[0]))
    shared = {name: plain("vlm")[name] for name in also}
    assert own | shared == plain("blip2")


def test_families_that_are_said_to_be_tested_are(section: str) -> None:
    rows = section.split("| family |")[1].split("\n\n")[0]
    named = {
        name.strip()
        for row in re.findall(r"^\| ([A-Z][^|]+)\|", rows, re.M)
        for name in row.split(",")
    }
    tested = {re.sub(r"[^a-z0-9]", "", name) for name in FAMILIES}
    assert {re.sub(r"[^a-z0-9]", "", name.lower()) for name in named} == tested
