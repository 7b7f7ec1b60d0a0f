"""Machines that are lost and machines that are added, with several raylets on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toys
from drivers import start, wait_for, write_config

from data.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Machines:
    """`raycluster.py` as a process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("raycluster.py"))],
            env=os.environ | {"PYTHONPATH": str(Path(toys.__file__).parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        while self._answer() != word:
            pass

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster ended"
        return line.strip()


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines()
    yield made
    made.close()


def test_the_run_goes_on_when_a_node_is_lost_and_uses_one_that_is_added(
    tmp_path: Path, machines: Machines
) -> None:
    ids = [f"v{number:03}" for number in range(50)]
    toys.write_videos(tmp_path / "videos", ids)
    marks = tmp_path / "marks"
    engine = {"executor": "ray", "address": machines.address, "commit_every_s": 2}
    options = {"rows": {"sleep_s": 0.5, "marks": str(marks), "cpus": 1}}
    write_config(tmp_path, engine=engine, stages=options)
    driver = start(tmp_path, limits={"recheck_s": 1})
    try:
        wait_for(driver, marks, 4)
        machines.tell("kill")
        machines.tell("add")
        out, err = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert driver.returncode == 0, out + err
    assert "is gone" in out
    pids = {mark.name.split(".")[1] for mark in marks.glob("*")}
    assert len(pids) >= 3, "the node that was added did no work"
    reader = Store.open(tmp_path / "store").reader("rows")
    assert reader.ids() == ids
    for id_ in ids:
        np.testing.assert_array_equal(reader.row(id_)["vector"], toys.expected(id_))
