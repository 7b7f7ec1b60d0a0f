"""`pipeline run` with the toy stages as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import toys
import yaml

TOY_CLI = Path(toys.__file__).with_name("toy_cli.py")


def write_config(folder: Path, **values: Any) -> Path:
    base = {"videos": {"root": "videos"}, "store": "store", "stages": {"probe": {}, "rows": {}}}
    base["engine"] = {"executor": "inline", "commit_every_s": 0}
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(base | values))
    return file


def start(
    folder: Path, *words: str, limits: Mapping[str, float] | None = None
) -> subprocess.Popen[str]:
    """`pipeline run`, or other words; `limits` are set beside those of a config."""
    return subprocess.Popen(
        [sys.executable, str(TOY_CLI), *(words or ("run",))],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(TOY_CLI.parent), "TOY_LIMITS": json.dumps(limits or {})},
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


def listening(pid: int) -> set[str]:
    """Addresses on which a process and those that it started wait for connections."""
    driver = psutil.Process(pid)
    found: set[str] = set()
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            sockets = process.net_connections(kind="inet")
            found |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    return {address.removeprefix("::ffff:") for address in found}
