"""Starting, watching and ending drivers: forked ones with everything imported, real commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from .figures import BrokenError

__all__ = [
    "ROOT",
    "Driver",
    "Ended",
    "belongings",
    "end_all",
    "environment",
    "fork",
    "gone_within",
    "preload",
    "real",
]

ROOT = Path(__file__).resolve().parents[2]
TOYS = ROOT / "tests" / "pipeline"
_TOKEN = "STORYLINE_TORTURE"


class Ended:
    """How a driver ended: its exit code (negative: the signal) and what it said."""

    def __init__(self, code: int, said: str, seconds: float) -> None:
        self.code, self.said, self.seconds = code, said, seconds

    def demand(self, *codes: int) -> Ended:
        """BrokenError unless it ended with one of these codes."""
        if self.code not in codes:
            told = self.said[-1200:]
            raise BrokenError(f"exit code {self.code} instead of {codes}; it said:\n…{told}")
        return self


class Driver:
    """One driver process that was started by `fork` or `real`."""

    def __init__(self, pid: int, log: Path, token: str = "") -> None:
        self.pid, self.log, self.token = pid, log, token
        self._began = time.monotonic()
        self._status: int | None = None

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is None

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._began

    def send(self, number: int) -> None:
        """Send a signal to the driver alone, if it still runs."""
        if self.running:
            os.kill(self.pid, number)

    def wait(self, within_s: float = 180.0) -> Ended:
        """Wait for its end; BrokenError if it hangs."""
        while self.running:
            if self.age_s > within_s:
                self.send(signal.SIGKILL)
                raise BrokenError(f"no end after {within_s:g} s: it hangs; log: {self.log}")
            time.sleep(0.005)
        assert self._status is not None
        said = self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""
        return Ended(self._status, said, self.age_s)


def preload() -> None:
    """Import and build all that a driver needs, so that a fork of this process starts at once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    import pipeline.cli
    import pipeline.engine.inline
    import pipeline.program
    from pipeline.stage import STAGES, StageContext

    del pipeline
    context = StageContext(1.0, fallbacks=(), decode_timeout_s=60.0)
    for name in STAGES:
        kind = STAGES.get(name)
        # Calibration takes seconds and imports nothing.
        quick = {"options": {"calibrated": False}} if name in ("clip", "slowfast", "i3d") else {}
        stage = kind(context, kind.Options(**quick))
        stage.setup()
        stage.close()


def fork(words: Sequence[str], log: Path, *, before: Callable[[], None] | None = None) -> Driver:
    """Run `pipeline <words>` in a child of this process; `before` is called there first."""
    sys.stdout.flush()
    sys.stderr.flush()
    log.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _be_driver(words, log, before)
    return Driver(pid, log)


def _be_driver(words: Sequence[str], log: Path, before: Callable[[], None] | None) -> NoReturn:
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if before is not None:
            before()
        code = _command(words)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(words: Sequence[str]) -> int:
    from pipeline.cli import app

    try:
        app(list(words))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def environment(token: str = "") -> dict[str, str]:
    """The environment of a real driver; processes that it starts carry the token, too."""
    paths = os.pathsep.join([str(ROOT), str(TOYS)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", _TOKEN: token or "none"}


def real(
    words: Sequence[str],
    log: Path,
    *,
    token: str = "",
    program: Sequence[str] = ("-c", "from pipeline.cli import main; main()"),
    **more: Any,
) -> Driver:
    """Start the `pipeline` command as a user does, in a session of its own."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *program, *words],
            cwd=ROOT,
            env=environment(token),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **more,
        )
    # `Driver` waits for the process itself; Popen must not do so, too.
    process.returncode = 0
    return Driver(process.pid, log, token)


def belongings(token: str) -> list[psutil.Process]:
    """Live processes that a real driver with this token started, itself included."""
    return [each for each in psutil.process_iter() if _token_of(each) == token]


def _token_of(process: psutil.Process) -> str:
    with suppress(psutil.Error, OSError):
        variables: Mapping[str, str] = process.environ()
        if process.status() != psutil.STATUS_ZOMBIE:
            return variables.get(_TOKEN, "")
    return ""


def end_all(token: str) -> int:
    """Kill what is left of a real driver; how many there were."""
    left = belongings(token)
    for each in left:
        with suppress(psutil.Error):
            each.kill()
    return len(left)


def gone_within(token: str, seconds: float) -> float | None:
    """Seconds until nothing of a driver is left; None if something is after `seconds`."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if not belongings(token):
            return time.monotonic() - began
        time.sleep(0.2)
    return None
