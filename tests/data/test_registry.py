"""Things that are chosen by name, also those that nobody has imported yet."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from data.errors import UsageError
from data.registry import Registry

THINGS: Registry[int] = Registry("thing")


def test_what_is_offered_is_imported_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far_thing.py").write_text(
        "from test_registry import THINGS\nTHINGS.register('far')(7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    THINGS.offer("far", lambda: importlib.import_module("far_thing"))
    THINGS.register("near")(1)
    assert (THINGS.names(), "far" in THINGS, list(THINGS)) == (
        ["far", "near"],
        True,
        THINGS.names(),
    )
    assert "far_thing" not in sys.modules
    assert THINGS.get("far") == THINGS.get("far") == 7
    with pytest.raises(UsageError, match="unknown thing 'fa'; did you mean 'far'"):
        THINGS.get("fa")
    with pytest.raises(ValueError, match="thing 'near' is offered twice"):
        THINGS.offer("near", lambda: None)
