"""The same loop on Ray: processes that die, hang and are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import toys

from data.errors import UsageError
from data.store import Store
from pipeline.engine.ray_workers import RayExecutor

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("toys_on_ray")]

ATTEMPTS = {"crash": 2, "killed": 2, "timeout": 2}
ENGINE = {"executor": "ray", "workers": 2, "attempts": ATTEMPTS}


def check_rows(store: Path, ids: list[str]) -> None:
    """Exactly `ids` are stored, each with its vector, each in one shard."""
    opened = Store.open(store)
    reader = opened.reader("rows")
    assert reader.ids() == sorted(ids)
    for id_ in ids:
        np.testing.assert_array_equal(reader.row(id_)["vector"], toys.expected(id_))
    assert opened.verify() == []


def test_only_the_inputs_at_fault_are_given_up(tmp_path: Path, run_toys: toys.RunToys) -> None:
    good = [f"v{number:02}" for number in range(35)]
    bad = ["poison-1", "segv-1", "hang-1", "refuse-1", "refuse-2", "raise-1"]
    toys.write_videos(tmp_path / "videos", [*good, *bad])
    result = run_toys(["rows"], engine=ENGINE | {"timeout_s": 2.0})
    print(result)
    check_rows(tmp_path / "store", good)
    assert result.exit_code == 3
    assert {each.key.id: (each.reason, each.attempts) for each in result.failures} == {
        "poison-1": ("killed", 2),
        "segv-1": ("crash", 2),
        "hang-1": ("timeout", 2),
        "refuse-1": ("toy-refused", 1),
        "refuse-2": ("toy-refused", 1),
        "raise-1": ("exception", 2),
    }
    failures = {each.key.id: each for each in result.failures}
    assert failures["raise-1"].message == "ZeroDivisionError: raise-1 raises"
    assert "toys.py" in failures["raise-1"].log


def test_a_failure_carries_what_the_dead_worker_wrote(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["segv-1", "poison-1"])
    result = run_toys(["rows"], engine=ENGINE)
    failures = {each.key.id: each for each in result.failures}
    crashed, killed = failures["segv-1"], failures["poison-1"]
    assert "its process crashed: SIGSEGV" in crashed.message
    assert "segv-1 is about to end its process" in crashed.log
    assert "in misbehave" in crashed.log  # the trace of faulthandler
    assert "ended from outside" in killed.message
    assert killed.message.endswith("it wrote last: poison-1 is about to end its process")


def test_killed_workers_cost_no_input_anything(tmp_path: Path, run_toys: toys.RunToys) -> None:
    ids = [f"v{number:02}" for number in range(30)]
    toys.write_videos(tmp_path / "videos", ids)
    run_toys(["probe"], engine=ENGINE)
    marks = tmp_path / "marks"
    killed = kill_workers(marks, times=2)
    options = {"rows": {"sleep_s": 0.1, "marks": str(marks)}}
    result = run_toys(["rows"], engine=ENGINE | {"attempts": {"killed": 4}}, stages=options)
    assert len(killed) == 2
    assert (result.exit_code, result.failures) == (0, [])
    check_rows(tmp_path / "store", ids)


def kill_workers(marks: Path, times: int) -> list[int]:
    """Kill -9 the worker that took the latest item, `times` different ones, from a thread."""
    killed: list[int] = []

    def work() -> None:
        deadline = time.monotonic() + 30
        while len(killed) < times and time.monotonic() < deadline:
            seen = [int(mark.name.split(".")[1]) for mark in marks.glob("*")]
            for pid in set(seen) - set(killed):
                if seen.count(pid) >= 3 and len(killed) < times:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.02)

    threading.Thread(target=work, daemon=True).start()
    return killed


def test_a_group_that_dies_is_worked_on_one_by_one(tmp_path: Path, run_toys: toys.RunToys) -> None:
    good = ["a", "b", "q", "r"]
    toys.write_videos(tmp_path / "videos", [*good, "poison-1"])
    engine = ENGINE | {"attempts": {"killed": 1}}
    result = run_toys(["rows"], engine=engine, stages={"rows": {"group": 5}})
    check_rows(tmp_path / "store", good)
    assert [(each.key.id, each.attempts) for each in result.failures] == [("poison-1", 1)]


def test_a_missing_checkpoint_stops_its_stage_with_its_sentence(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    result = run_toys(
        ["rows"], engine=ENGINE, stages={"rows": {"checkpoint": str(tmp_path / "no.pt")}}
    )
    assert result.exit_code == 1
    sentence = f"stage 'rows' cannot run: there is no checkpoint {tmp_path / 'no.pt'}"
    assert result.broken == {"rows": sentence}


def test_a_stage_that_fits_nowhere_is_refused_before_anything_hangs(
    tmp_path: Path, run_toys: toys.RunToys
) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    run_toys(["probe"])
    with pytest.raises(UsageError, match=r"rows needs 64 CPUs.* the Ray cluster has 4 CPUs"):
        run_toys(["rows"], engine=ENGINE, stages={"rows": {"cpus": 64}})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_an_address_where_nothing_listens_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"no Ray cluster answers at .*engine\.address"):
        RayExecutor(address)


def test_workers_may_fill_all_cpus(tmp_path: Path, run_toys: toys.RunToys) -> None:
    ids = [f"v{number}" for number in range(8)]
    toys.write_videos(tmp_path / "videos", ids)
    run_toys(["probe"])
    engine = ENGINE | {"workers": "auto"}
    assert run_toys(["rows"], engine=engine, stages={"rows": {"cpus": 2}}).exit_code == 0
    check_rows(tmp_path / "store", ids)
