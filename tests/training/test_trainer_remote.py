"""The trainer on a store that is no folder of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_store import Annotations, write_store
from typer.testing import CliRunner
from upath import UPath

from data.dataset import MomentDataset
from data.store import Store
from data.store.place import text_of
from training.cli import app


@pytest.fixture(params=["memory", "s3"])
def remote_store(request: pytest.FixtureRequest, splits: Annotations) -> Store:
    place: UPath = request.getfixturevalue(f"{request.param}_place")
    return write_store(place, splits)


def test_samples_of_a_remote_store_are_those_of_a_local_one(
    remote_store: Store, store: Store
) -> None:
    remote, local = MomentDataset(remote_store, "val"), MomentDataset(store, "val")
    assert len(remote) == len(local) > 0
    for number in range(len(local)):
        np.testing.assert_array_equal(remote[number].video, local[number].video)
        np.testing.assert_array_equal(remote[number].text, local[number].text)


def test_fit_trains_on_a_url_and_names_it_in_its_run(
    tmp_path: Path, config_file: Callable[..., Path], s3_place: UPath, splits: Annotations
) -> None:
    store = write_store(s3_place, splits)
    config = config_file(loop__epochs=1, data__cache="none")
    arguments = ["fit", "--config", str(config), "--out", str(tmp_path / "run")]
    told = CliRunner().invoke(app, [*arguments, "--set", f"data.store={text_of(store.path)}"])
    assert told.exit_code == 0, told.output
    assert (tmp_path / "run" / "config.yaml").read_text().count(text_of(s3_place)) == 1
    assert "MR-full-mAP" in json.dumps(json.loads((tmp_path / "run/metrics.json").read_text()))
