"""The same loop on Ray: processes that die, hang and are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import toys
from conftest import RunToys
from data.errors import UsageError
from data.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("toys_on_ray")]

ENGINE = {"executor": "ray", "workers": 2, "timeout_s": 3.0, "attempts": 2, "commit_every_s": 60}


def check_rows(store: Path, ids: list[str]) -> None:
    """Exactly `ids` are stored, each with its vector, each in one shard."""
    opened = Store.open(store)
    reader = opened.reader("rows")
    assert reader.ids() == sorted(ids)
    for id_ in ids:
        np.testing.assert_array_equal(reader.row(id_)["vector"], toys.expected(id_))
    assert opened.verify() == []


def test_only_the_inputs_at_fault_are_given_up(tmp_path: Path, run_toys: RunToys) -> None:
    good = [f"v{number:02}" for number in range(35)]
    bad = ["poison-1", "hang-1", "refuse-1", "refuse-2", "raise-1"]
    toys.write_videos(tmp_path / "videos", [*good, *bad])
    result = run_toys(["rows"], engine=ENGINE)
    print(result)
    check_rows(tmp_path / "store", good)
    assert result.exit_code == 3
    assert {each.key.id: (each.reason, each.attempts) for each in result.failures} == {
        "poison-1": ("crash", 2),
        "hang-1": ("timeout", 2),
        "refuse-1": ("toy-refused", 1),
        "refuse-2": ("toy-refused", 1),
        "raise-1": ("exception", 2),
    }
    (raised,) = [each for each in result.failures if each.reason == "exception"]
    assert raised.message == "ZeroDivisionError: raise-1 raises"
    assert "toys.py" in raised.log
