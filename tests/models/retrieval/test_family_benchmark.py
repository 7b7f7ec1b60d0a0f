"""The rows of benchmarks/family.py can be built, and there is one for every base and preset."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from models.retrieval import MODELS


def test_every_row_of_the_family_table_can_be_built(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    family = importlib.import_module("family")
    rows = family.entries()
    assert len({row.title for row in rows}) == len(rows)
    assert {row.model for row in rows} == set(MODELS)
    for row in rows:
        config = family._config(row, tmp_path, 2)
        model = family._built(config.model.model_dump())
        assert {"side.narrative"} <= model.reads or not config.data.narratives
        assert {"events"} <= model.reads or not config.data.events
