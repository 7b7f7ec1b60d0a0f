"""Drivers that are killed, asked to stop, or started again: real processes, real exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import toys
import yaml

from data.store import Store

TOY_CLI = Path(toys.__file__).with_name("toy_cli.py")


def write_config(folder: Path, **values: Any) -> Path:
    base = {"videos": {"root": "videos"}, "store": "store", "stages": {"probe": {}, "rows": {}}}
    base["engine"] = {"executor": "inline", "commit_every_s": 0}
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(base | values))
    return file


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TOY_CLI), *(words or ("run",))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(TOY_CLI.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(driver: subprocess.Popen[str], marks: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(marks.glob("*"))) < count:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "the driver does not work"
        time.sleep(0.02)


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
        assert store.verify() == []
    assert 6 <= len(store.reader("rows")) < 12
    done = start(tmp_path)
    out, err = done.communicate()
    assert done.returncode == 0, out + err
    assert len(list(marks.glob("*"))) <= 12 + 2
    for id_ in ids:
        np.testing.assert_array_equal(store.reader("rows").row(id_)["vector"], toys.expected(id_))


def listening(pid: int) -> set[str]:
    """Addresses on which a process and those that it started wait for connections."""
    driver = psutil.Process(pid)
    found: set[str] = set()
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            sockets = process.net_connections(kind="inet")
            found |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    return {address.removeprefix("::ffff:") for address in found}


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_writes_what_is_done_and_says_how_to_continue(tmp_path: Path) -> None:
    toys.write_videos(tmp_path / "videos", [f"v{number:02}" for number in range(40)])
    marks = tmp_path / "marks"
    engine = {"executor": "ray", "workers": 2, "commit_every_s": 600}
    options = {"rows": {"sleep_s": 0.5, "marks": str(marks)}}
    write_config(tmp_path, engine=engine, stages=options)
    driver = start(tmp_path)
    wait_for(driver, marks, 4)
    assert listening(driver.pid) == {"127.0.0.1"}
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 75, err
    assert "interrupted; to continue:\n  pipeline run" in err
    started = {mark.name.split(".")[0] for mark in marks.glob("*")}
    assert set(Store.open(tmp_path / "store").reader("rows").ids()) == started


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
