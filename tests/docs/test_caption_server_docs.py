"""What the page about captions says of servers, vLLM and files is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from models.captioners.caption_files import COLUMNS
from models.captioners.openai_server import OpenAIServer
from models.captioners.precomputed import Precomputed
from models.captioners.remote.dialects import DIALECTS
from models.captioners.vllm_captioner import VllmCaptioner
from models.options import defaults_of


@pytest.fixture(scope="module")
def section(root: Path) -> str:
    page = (root / "docs" / "captioners.md").read_text()
    return page.split("\n## Servers, vLLM, captions of others\n")[1].split("\n## ")[0]


def part(section: str, name: str) -> str:
    return section.split(f"`{name}`\n", 1)[1].split("\n### ")[0]


def test_every_option_of_a_server_is_named(section: str) -> None:
    text = part(section, "openai")
    options = set(defaults_of(OpenAIServer)) - {"seed", "device"}
    missing = {name for name in options if not re.search(rf"\b{name}\b", text)}
    assert missing == set()
    assert set(DIALECTS) - {"vllm"} <= set(re.findall(r"[a-z.-]+", text))


@pytest.mark.parametrize(
    "name",
    [
        "tries",
        "timeout_s",
        "longest_wait_s",
        "stop_after",
        "side",
        "quality",
        "requests_per_minute",
    ],
)
def test_the_defaults_of_a_server_are_those_of_the_code(name: str, section: str) -> None:
    told = re.search(rf"`{name}`,? \(([\d.]+)", part(section, "openai"))
    assert told is not None
    assert float(told[1]) == defaults_of(OpenAIServer)[name]


def test_the_options_of_vllm_and_their_defaults_are_those_of_the_code(section: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", part(section, "vllm"), re.MULTILINE)
    told = {name: yaml.safe_load(value) for name, value in rows}
    every = defaults_of(VllmCaptioner)
    assert told == {name: every[name] for name in told}
    common = {"seed", "device", "retries", *_DECODING}
    assert set(told) == set(every) - common


_DECODING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


def test_the_columns_and_options_of_files_are_those_of_the_code(section: str) -> None:
    text = part(section, "precomputed")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE)
    assert {name: tuple(re.findall(r"`(\w+)`", names)) for name, names in rows} == COLUMNS
    options = set(defaults_of(Precomputed)) - {"seed", "device"}
    assert {name for name in options if not re.search(rf"\b{name}\b", text)} == set()
