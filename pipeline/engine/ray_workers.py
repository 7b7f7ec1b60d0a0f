"""Workers as Ray Core actors.

Ray places them, finds out that they died and reaches other machines; attempts, deadlines and
restarts stay with the scheduler (`max_restarts=0`). Tasks and reports are the only things that
pass through Ray's object store.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from typing import Any

from data.errors import UsageError
from pipeline.engine.types import Crashed, Event, Failed, Finished, Job, Ready, Task
from pipeline.engine.work import Worker
from pipeline.stage import Resources

__all__ = ["RayExecutor", "needs_of"]

# Only tasks and reports pass through it; Ray's own default is 30 % of the machine's memory.
_OBJECT_STORE_BYTES = 100 * 2**20

_CONNECT_S = 10.0


class RayExecutor:
    """Connects to a cluster, to the Ray that is already running here, or starts one on loopback.

    Args:
        address: address of a cluster; None means that of `RAY_ADDRESS` (set inside `ray job
            submit` and KubeRay), else a local Ray without dashboard.
        cpus: logical CPUs of a local Ray; None means as many as the machine has.
        workers: workers per stage set; None means as many as fit.

    Raises:
        UsageError: no cluster answers at the address.
    """

    def __init__(
        self, address: str | None = None, cpus: int | None = None, workers: int | None = None
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        if address is None:
            # Ray 2.60 turns 127.0.0.1 into the address of the network card and listens on all
            # interfaces, except with this setting, which it reads when it is imported.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        else:
            _check_answers(address)
        # Without it Ray 2.60 warns about accelerators at each actor with num_gpus=0.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Under `uv run` Ray would start workers through uv again, which can hang.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        self._ray = ray
        self._wanted = workers
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, str]] = {}
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(address, cpus)

    def capacity(self, job: Job) -> int:
        """How many workers fit into the cluster as it is now.

        Raises:
            UsageError: the cluster can never hold even one.
        """
        there = self._ray.cluster_resources()
        needs = needs_of(job)
        room = min(_room(there, needs), self._room_on_nodes(needs))
        if room < 1:
            raise UsageError(
                f"one worker of {', '.join(job.stages.names)} needs {_words(needs)}; the Ray "
                f"cluster has {_words(_as_resources(there))} and no node with enough of each; "
                "connect to a larger cluster (engine.address), or lower what the stage asks for"
            )
        return min(room, self._wanted) if self._wanted else room

    def start(self, worker: int, job: Job) -> None:
        """Create the actor and begin its setup."""
        needs = needs_of(job)
        options: dict[str, Any] = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if needs.memory_mb:
            options["memory"] = needs.memory_mb * 2**20
        actor = self._ray.remote(Worker).options(**options).remote(job)
        self._actors[worker] = actor
        self._calls[actor.setup.remote()] = (worker, "setup")

    def submit(self, worker: int, task: Task, upcoming: Task | None) -> None:
        """Call `Worker.run` on the actor."""
        self._calls[self._actors[worker].run.remote(task, upcoming)] = (worker, "run")

    def flush(self, worker: int) -> None:
        """Call `Worker.flush` on the actor."""
        self._calls[self._actors[worker].flush.remote()] = (worker, "flush")

    def wait(self, timeout_s: float) -> list[Event]:
        """Answers that have come; waits at most `timeout_s` for the first."""
        if not self._calls:
            return []
        calls = list(self._calls)
        done, _ = self._ray.wait(calls, num_returns=1, timeout=timeout_s)
        if done:
            done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        return [self._event(call) for call in done]

    def kill(self, worker: int) -> None:
        """Kill the actor's process."""
        actor = self._actors.pop(worker, None)
        self._calls = {ref: call for ref, call in self._calls.items() if call[0] != worker}
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Kill all actors; stop Ray if this executor started it."""
        for worker in list(self._actors):
            self.kill(worker)
        if self._owns_ray and self._ray.is_initialized():
            self._ray.shutdown()

    def _event(self, call: Any) -> Event:
        worker, kind = self._calls.pop(call)
        errors = self._ray.exceptions
        try:
            report = self._ray.get(call)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Failed(worker, cause)
        except errors.RayError as error:
            self._actors.pop(worker, None)
            return Crashed(worker, _words_of(error))
        return Ready(worker) if kind == "setup" else Finished(worker, report)

    def _room_on_nodes(self, needs: Resources) -> int:
        nodes = [each["Resources"] for each in self._ray.nodes() if each["Alive"]]
        return sum(_room(node, needs) for node in nodes)


def needs_of(job: Job) -> Resources:
    """What one worker of a stage set needs: the stages take turns, GPU memory adds up."""
    each = [stage.resources for stage in job.stages.stages]
    return Resources(
        cpus=max(one.cpus for one in each),
        gpus=_whole_or_fraction(sum(one.gpus for one in each)),
        memory_mb=sum(one.memory_mb for one in each),
    )


def _whole_or_fraction(gpus: float) -> float:
    """Ray takes fractions below one and whole numbers above."""
    return gpus if gpus <= 1 else float(math.ceil(gpus))


def _connect(address: str | None, cpus: int | None) -> None:
    import ray

    if address is not None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise _nobody_at(address, error) from None
        return
    ray.init(
        address="local",
        num_cpus=cpus or os.cpu_count() or 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )


def _check_answers(address: str) -> None:
    """UsageError if nothing listens there: Ray itself would try for minutes (2.60)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _nobody_at(address, error) from None


def _nobody_at(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster answers at {address!r} (engine.address): {error}; start one, or "
        "leave engine.address out to run on this machine"
    )


def _room(there: dict[str, float], needs: Resources) -> int:
    rooms = [
        there.get(name, 0.0) / wanted
        for name, wanted in (
            ("CPU", needs.cpus),
            ("GPU", needs.gpus),
            ("memory", needs.memory_mb * 2**20),
        )
        if wanted
    ]
    # 1e-9: 1 / 0.1 workers must not become 9.
    return math.floor(min(rooms, default=float(os.cpu_count() or 1)) + 1e-9)


def _as_resources(there: dict[str, float]) -> Resources:
    memory_mb = int(there.get("memory", 0.0) / 2**20)
    return Resources(there.get("CPU", 0.0), there.get("GPU", 0.0), memory_mb)


def _words(needs: Resources) -> str:
    words = [f"{needs.cpus:g} CPUs", f"{needs.gpus:g} GPUs"]
    return ", ".join([*words, f"{needs.memory_mb} MB of memory"] if needs.memory_mb else words)


def _words_of(error: Exception) -> str:
    """Ray's reason; the last line is the exception itself if the constructor raised."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    last = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"the worker's process ended ({type(error).__name__}): {last.strip()}"
