"""Drivers that are killed, asked to stop, or started again: real processes, real exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import toys
from drivers import TOY_CLI, listening, start, wait_for, write_config

from data.store import Store


def test_a_killed_driver_leaves_nothing_torn_and_the_next_run_continues(tmp_path: Path) -> None:
    ids = [f"v{number:02}" for number in range(12)]
    toys.write_videos(tmp_path / "videos", ids)
    marks = tmp_path / "marks"
    write_config(tmp_path, stages={"rows": {"sleep_s": 0.1, "marks": str(marks)}})
    for count in (4, 9):
        driver = start(tmp_path)
        wait_for(driver, marks, count)
        driver.kill()
        driver.communicate()
        store = Store.open(tmp_path / "store")
        assert [each for each in store.verify() if each.level == "error"] == []
    assert 6 <= len(store.reader("rows")) < 12
    done = start(tmp_path)
    out, err = done.communicate()
    assert done.returncode == 0, out + err
    assert len(list(marks.glob("*"))) <= 12 + 2
    for id_ in ids:
        np.testing.assert_array_equal(store.reader("rows").row(id_)["vector"], toys.expected(id_))


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "hang-1"])
    marks = tmp_path / "marks"
    write_config(tmp_path, stages={"rows": {"marks": str(marks)}})
    driver = start(tmp_path)
    wait_for(driver, marks, 2)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.3)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=20)
    assert driver.returncode == 75, err


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_while_a_cluster_does_not_answer(tmp_path: Path) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(60)
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        write_config(tmp_path, engine={"executor": "ray", "address": address})
        driver = start(tmp_path)
        calls = [mute.accept()[0] for _ in range(2)]  # a look whether it is there, then Ray
        driver.send_signal(signal.SIGINT)
        time.sleep(0.5)
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=20)
        for each in calls:
            each.close()
    assert driver.returncode == 75, err
    assert "interrupted; to continue:\n  pipeline run" in err


def test_a_run_with_nothing_to_do_does_not_import_ray(tmp_path: Path) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    write_config(tmp_path)
    first = start(tmp_path)
    first.communicate()
    assert first.returncode == 0
    script = "import sys, runpy; sys.argv = ['toy_cli.py', 'run', '--executor', 'ray']\n"
    script += f"try: runpy.run_path({str(TOY_CLI)!r}, run_name='__main__')\n"
    script += "except SystemExit as end: print('code', end.code)\n"
    script += "print('ray' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TOY_CLI.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "nothing to do" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["code 0", "False False"], done.stdout + done.stderr


def test_a_lost_terminal_is_a_wish_to_stop(tmp_path: Path) -> None:
    toys.write_videos(tmp_path / "videos", [f"v{number:02}" for number in range(40)])
    marks = tmp_path / "marks"
    engine = {"executor": "inline", "commit_every_s": 600}
    write_config(tmp_path, engine=engine, stages={"rows": {"sleep_s": 0.1, "marks": str(marks)}})
    driver = start(tmp_path)
    wait_for(driver, marks, 3)
    driver.send_signal(signal.SIGHUP)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 75, err
    started = {mark.name.split(".")[0] for mark in marks.glob("*")}
    assert set(Store.open(tmp_path / "store").reader("rows").ids()) == started


def working_on_ray(folder: Path) -> subprocess.Popen[str]:
    """A driver with a local Ray whose workers have begun with `rows`."""
    toys.write_videos(folder / "videos", [f"v{number:02}" for number in range(60)])
    options = {"rows": {"sleep_s": 0.5, "marks": str(folder / "marks")}}
    engine = {"executor": "ray", "workers": 2, "commit_every_s": 600}
    write_config(folder, engine=engine, stages=options)
    driver = start(folder)
    wait_for(driver, folder / "marks", 3)
    return driver


def below(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes that a driver started."""
    return psutil.Process(driver.pid).children(recursive=True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_that_is_killed_is_started_again_and_a_sigterm_writes_what_is_done(
    tmp_path: Path,
) -> None:
    driver = working_on_ray(tmp_path)
    assert listening(driver.pid) == {"127.0.0.1"}
    processes = below(driver)
    (raylet,) = [each for each in processes if each.name() == "raylet"]
    raylet.kill()
    # What its workers still begin is begun again later, not now.
    psutil.wait_procs([raylet, *(each for each in processes if is_worker(each))], timeout=60)
    marks = tmp_path / "marks"
    wait_for(driver, marks, len(list(marks.glob("*"))) + 4)
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 75, out + err
    # No noise of Ray beside it.
    assert err == "pipeline: interrupted; to continue:\n  pipeline run\n"
    assert "a process of the local Ray was killed; Ray is started again" in out
    after = {mark.name.split(".")[0] for mark in sorted(marks.glob("*"), key=begun)[-4:]}
    assert after <= set(Store.open(tmp_path / "store").reader("rows").ids())


def has_started(driver: subprocess.Popen[str], name: str) -> bool:
    """Whether a driver has a process of that name below it."""
    for each in below(driver):
        with suppress(psutil.NoSuchProcess):
            if each.name() == name:
                return True
    return False


def is_worker(process: psutil.Process) -> bool:
    """Whether it is a worker of Ray, not one of the agents that outlive their raylet."""
    try:
        title = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return title.startswith("ray::") and not title.startswith(("ray::Dash", "ray::Runt"))


def begun(mark: Path) -> int:
    """When an item was begun."""
    return int(mark.name.split(".")[2])


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_behind(tmp_path: Path) -> None:
    driver = working_on_ray(tmp_path)
    processes = below(driver)
    assert len(processes) >= 4
    # Ray's own agents (2.60) try for a minute to tell the dead head of their raylet's death.
    working = [each for each in processes if not each.name().startswith(("ray::Dash", "ray::Runt"))]
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(working, timeout=60)
    assert alive == []
    assert Store.open(tmp_path / "store").verify() == []


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_while_ray_starts_ends_with_the_hint(tmp_path: Path) -> None:
    toys.write_videos(tmp_path / "videos", ["a"])
    write_config(tmp_path, engine={"executor": "ray", "workers": 1})
    driver = start(tmp_path)
    deadline = time.monotonic() + 60
    # Before it, Python asks `uname` for the machine, and nobody listens to signals yet.
    while not has_started(driver, "gcs_server"):
        assert time.monotonic() < deadline, driver.communicate()
        time.sleep(0.02)
    processes = below(driver)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=90)
    assert driver.returncode == 75, err
    assert "interrupted; to continue:\n  pipeline run" in err
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
