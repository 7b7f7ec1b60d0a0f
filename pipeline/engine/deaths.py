"""What a worker of Ray died of, from Ray's error and from what the process wrote last."""

from __future__ import annotations

import faulthandler
import os
import re
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.types import Crashed

__all__ = ["Home", "autopsy"]

_EXCERPT_BYTES = 4000

_TRACE = re.compile(r"\*\*\* (SIG[A-Z]+) received|Fatal Python error: .*|terminate called .*")
"""What Ray (2.60), faulthandler and the C++ runtime write when a process dies by its own making."""

_OWN_EXIT = re.compile(r"exits? with an exit code (\d+)\.(?! The process receives a SIGTERM)")

_OOM, _KILL = "out-of-memory", "killed"

_NO_MEMORY = "due to the node running low on memory"

_NODE_GONE = (
    "node has died",
    "node was terminated",
    "node is dead",
    "unexpectedly terminated node",
)

_RAYS_OWN = re.compile(r"^:(job_id|actor_name|task_name):|^\s*$")


@dataclass(frozen=True)
class Home:
    """Where a worker lives.

    Args:
        host: name of the machine.
        node_id: Ray's name of the node.
        pid: number of the process.
        stderr: the file that its stderr goes to; "" if it is none.
    """

    host: str
    node_id: str
    pid: int
    stderr: str

    @classmethod
    def here(cls, node_id: str) -> Home:
        """The calling process, which from now on writes a trace when a signal ends it."""
        if not faulthandler.is_enabled():
            faulthandler.enable()
        sys.stderr.flush()
        stderr = ""
        with suppress(OSError):  # no /proc, or a pipe
            target = Path("/proc/self/fd/2").readlink()
            stderr = str(target) if target.is_file() else ""
        return cls(socket.gethostname(), node_id, os.getpid(), stderr)

    def said(self) -> str:
        """The end of what the process wrote to stderr, or where that is."""
        if not self.stderr:
            return ""
        if self.host != socket.gethostname() or not Path(self.stderr).is_file():
            return f"(its log: {self.stderr} on {self.host})"
        with suppress(OSError), Path(self.stderr).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _EXCERPT_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return "\n".join(line for line in lines if not _RAYS_OWN.match(line))
        return ""


def autopsy(worker: int, error: Exception, home: Home | None, dead_nodes: Iterable[str]) -> Crashed:
    """What a worker died of.

    Args:
        worker: its number.
        error: what Ray raised for the call that was in flight.
        home: where it lived; None if it never said.
        dead_nodes: Ray's names of the nodes that are known to be gone.
    """
    text, said = str(error), home.said() if home is not None else ""
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or _NO_MEMORY in text:
        return Crashed(worker, f"the machine ran out of memory ({_first(text)})", _OOM, said)
    if _is_node_lost(kind, error, text, home, dead_nodes):
        where = f" {home.host}" if home is not None else ""
        return Crashed(worker, f"its machine{where} is gone ({kind})", "node-lost", said)
    trace, code = _TRACE.search(said), _OWN_EXIT.search(text)
    if trace is not None:
        return Crashed(worker, f"its process crashed: {trace[0].strip('* ')}", "crash", said)
    if code is not None or "creation task" in text:
        why = f"exit code {code[1]}" if code is not None else _last(text)
        return Crashed(worker, f"its process ended ({why}){_words(said)}", "crash", said)
    why = "SIGTERM" if "SIGTERM" in text else "SIGKILL or an exit without a trace"
    return Crashed(worker, f"its process was ended from outside ({why}){_words(said)}", _KILL, said)


def _is_node_lost(
    kind: str, error: Any, text: str, home: Home | None, dead_nodes: Iterable[str]
) -> bool:
    # ActorUnavailableError: its raylet does not answer either, or it would have told how it died.
    gone = kind in ("NodeDiedError", "ActorUnavailableError", "LocalRayletDiedError")
    told = any(words in text for words in _NODE_GONE) or bool(getattr(error, "preempted", False))
    return gone or told or (home is not None and home.node_id in set(dead_nodes))


def _words(said: str) -> str:
    """The last line of an excerpt, for a message of one line."""
    last = _last(said)
    return f"; it wrote last: {last[:200]}" if last else ""


def _first(text: str) -> str:
    return next(iter(text.splitlines()), "")[:300]


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
