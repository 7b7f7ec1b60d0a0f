"""Workers as Ray Core actors.

Ray places them, finds out that they died and reaches other machines; attempts, deadlines and
restarts stay with the scheduler (`max_restarts=0`). Tasks and reports are the only things that
pass through Ray's object store. A local Ray whose own processes are killed is started again.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from data.errors import EngineDiedError, UsageError
from pipeline.engine.deaths import Home, autopsy
from pipeline.engine.types import (
    Crashed,
    EngineLostError,
    Event,
    Failed,
    Finished,
    Job,
    Ready,
    Task,
)
from pipeline.engine.work import Worker
from pipeline.measure import can_be_measured, measure
from pipeline.stage import Item, Resources
from pipeline.throughput import Machine, Rates, lay_out, usable_cpus

__all__ = ["RayExecutor", "RayWorker", "needs_of", "reason_of"]

# Only tasks and reports pass through it; Ray's own default is 30 % of the machine's memory.
_OBJECT_STORE_BYTES = 100 * 2**20

_CONNECT_S = 10.0

_JOIN_S = 60.0

_LOOPBACK = re.compile(r"^(ray://)?(127\.|localhost:|\[::1\]:)")

_MEASURE_S = 300.0
"""Longest time for the start of networks and their measurement, and for a GPU to become free."""

_PULSE_S = 1.0
"""How often the processes of a local Ray are looked at."""

_REVIVALS = 3

_CALM_S = 3600.0
"""A local Ray that lived for so long may be started again as often as at first."""


class RayWorker(Worker):
    """A worker that can tell where it lives, so that its log is found when it is dead."""

    def home(self) -> Home:
        """Where this process is; called before `setup`."""
        import ray

        return Home.here(ray.get_runtime_context().get_node_id())


class RayExecutor:
    """Connects to a cluster, to the Ray that is already running here, or starts one on loopback.

    Args:
        address: address of a cluster; None means that of `RAY_ADDRESS` (set inside `ray job
            submit` and KubeRay), else a local Ray without dashboard.
        cpus: logical CPUs of a local Ray; None means as many as this process may use.
        workers: workers per stage set; None means as many as fit.

    Raises:
        UsageError: no cluster answers at the address.
    """

    def __init__(
        self, address: str | None = None, cpus: int | None = None, workers: int | None = None
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        if address is None or _LOOPBACK.search(address):
            # Ray 2.60 turns 127.0.0.1 into the address of the network card and listens on all
            # interfaces, except with this setting, which it reads when it is imported.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if address is not None:
            _check_answers(address)
        # Without it Ray 2.60 warns about accelerators at each actor with num_gpus=0.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Under `uv run` Ray would start workers through uv again, which can hang.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        self._ray = ray
        self._wanted = workers
        self._address, self._cpus = address, cpus
        self._actors: dict[int, Any] = {}
        self._homes: dict[int, Home] = {}
        self._calls: dict[Any, tuple[int, str]] = {}
        self._revivals = 0
        self._revived_at = time.monotonic()
        self._pulse_at = time.monotonic()
        self._owns_ray = not ray.is_initialized()
        self._owns_cluster = self._owns_ray and address is None
        if self._owns_ray:
            _connect(address, cpus)

    @property
    def machine(self) -> Machine:
        """What the cluster has now."""
        there = self._ray.cluster_resources()
        memory_mb = int(there.get("memory", 0.0) / 2**20)
        return Machine(there.get("CPU", 0.0), int(there.get("GPU", 0.0)), memory_mb)

    def fit(self, job: Job, samples: Sequence[Item]) -> tuple[Job, str]:
        """With `gpus: auto`, measure on a worker how many workers a GPU can hold and feed."""
        # Without any GPU `capacity` says what is missing.
        if not (job.stages.resources.auto_gpus and self.machine.gpus):
            return job, ""
        names = ", ".join(job.stages.names)
        if not can_be_measured(job.stages):
            why = "nothing of it is over frames, so it is not measured"
            return job, f"{names}: {why}; gpus: {job.gpu_share:g} for each worker"
        if not samples:
            return job, ""
        try:
            rates = self._measured(job, samples)
        except self._ray.exceptions.RayError as error:
            # What is wrong with a stage is told when its workers are set up.
            rates = Rates(decode_x=1.0)
            told = f"{names}: could not be measured ({reason_of(error)})"
        else:
            told = f"{names}: {rates.sentence}"
        needs = job.stages.resources
        layout = lay_out(
            self.machine,
            rates,
            cpus=needs.cpus,
            memory_mb=needs.memory_mb,
            workers=self._wanted,
        )
        share = layout.gpu_share or 1.0
        return replace(job, gpu_share=share), f"{told}; gpus: {share:g} for each worker"

    def _measured(self, job: Job, samples: Sequence[Item]) -> Rates:
        # max_calls: its process ends, and with it what it holds of the GPU.
        options = {
            "num_cpus": job.stages.resources.cpus,
            "num_gpus": 1,
            "max_calls": 1,
            "max_retries": 0,
        }
        call = self._ray.remote(**options)(measure).remote(job.stages, samples)
        try:
            rates: Rates = self._ray.get(call, timeout=_MEASURE_S)
        except self._ray.exceptions.GetTimeoutError:
            self._ray.cancel(call, force=True)
            raise
        return rates

    def capacity(self, job: Job) -> int:
        """How many workers fit into the cluster as it is now.

        Raises:
            UsageError: the cluster can never hold even one, or does not answer.
        """
        needs = needs_of(job)
        try:
            there = self._ray.cluster_resources()
            room = min(_room(there, needs), self._room_on_nodes(needs))
        except (self._ray.exceptions.RayError, RuntimeError, OSError) as error:
            raise UsageError(f"the Ray cluster does not say what it has: {error}") from error
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
        actor = self._ray.remote(RayWorker).options(**options).remote(job)
        self._actors[worker] = actor
        self._calls[actor.home.remote()] = (worker, "home")
        self._calls[actor.setup.remote()] = (worker, "setup")

    def submit(self, worker: int, task: Task, upcoming: Task | None) -> None:
        """Call `Worker.run` on the actor."""
        self._calls[self._actors[worker].run.remote(task, upcoming)] = (worker, "run")

    def flush(self, worker: int) -> None:
        """Call `Worker.flush` on the actor."""
        self._calls[self._actors[worker].flush.remote()] = (worker, "flush")

    def wait(self, timeout_s: float) -> list[Event]:
        """Answers that have come; waits at most `timeout_s` for the first.

        Raises:
            EngineLostError: the local Ray was killed too often.
        """
        if self._owns_cluster and self._is_dead():
            return self._revive()
        if not self._calls:
            time.sleep(timeout_s)  # all workers rest, or what is left may not be tried yet
            return []
        calls = list(self._calls)
        done, _ = self._ray.wait(calls, num_returns=1, timeout=timeout_s)
        if done:
            done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        events = [self._event(call) for call in done if call in self._calls]
        return [event for event in events if event is not None]

    def is_placed(self, worker: int) -> bool:
        """Whether the worker's process has told where it is."""
        return worker in self._homes

    def said(self, worker: int) -> str:
        """The end of the worker's log, or where that is."""
        home = self._homes.get(worker)
        return home.said() if home is not None else ""

    def kill(self, worker: int) -> None:
        """Kill the actor's process."""
        actor = self._actors.pop(worker, None)
        self._homes.pop(worker, None)
        self._calls = {ref: call for ref, call in self._calls.items() if call[0] != worker}
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Kill all actors; stop Ray if this executor started it."""
        for worker in list(self._actors):
            self.kill(worker)
        if self._owns_ray and self._ray.is_initialized():
            self._ray.shutdown()

    def _event(self, call: Any) -> Event | None:
        worker, kind = self._calls.pop(call)
        if kind == "home":
            # If it died before it could tell, its setup tells why.
            with suppress(self._ray.exceptions.RayError):
                self._homes[worker] = self._ray.get(call)
            return None
        errors = self._ray.exceptions
        try:
            report = self._ray.get(call)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, EngineDiedError):
                said = self.said(worker)
                self.kill(worker)  # its process lives, and holds a GPU that it cannot use
                return Crashed(worker, str(cause), "engine-died", said)
            return Failed(worker, cause)
        except errors.RayError as error:
            event = autopsy(worker, error, self._homes.get(worker), self._dead_nodes())
            # One that cannot be reached may still be alive: it must not write any more.
            self.kill(worker)
            return event
        return Ready(worker) if kind == "setup" else Finished(worker, report)

    def _dead_nodes(self) -> list[str]:
        """Ray's names of the nodes that are known to be gone; [] if Ray cannot tell now."""
        with suppress(self._ray.exceptions.RayError, RuntimeError, OSError):
            return [each["NodeID"] for each in self._ray.nodes() if not each["Alive"]]
        return []

    def _is_dead(self) -> bool:
        """Whether a process without which the local Ray hangs has ended."""
        now = time.monotonic()
        if now - self._pulse_at < _PULSE_S:
            return False
        self._pulse_at = now
        # Private in Ray: a version without it only hangs where this one starts Ray again.
        with suppress(AttributeError, TypeError, ValueError):
            node = self._ray._private.worker._global_node
            dead = node.dead_processes() if node is not None else []
            return any(name in ("raylet", "gcs_server") for name, _ in dead)
        return False

    def _revive(self) -> list[Event]:
        """Start the local Ray again; all workers of the one before are lost."""
        now = time.monotonic()
        self._revivals = 1 if now - self._revived_at > _CALM_S else self._revivals + 1
        self._revived_at = now
        if self._revivals > _REVIVALS:
            raise EngineLostError(
                f"the processes of the local Ray were killed {self._revivals} times; see what "
                "kills them (memory? `dmesg`), then run the same command again to continue"
            )
        why = "a process of the local Ray was killed; Ray is started again"
        lost: list[Event] = [
            Crashed(worker, why, "node-lost", self.said(worker)) for worker in self._actors
        ]
        self._actors.clear()
        self._homes.clear()
        self._calls.clear()
        self._ray.shutdown()
        _connect(self._address, self._cpus)
        return lost

    def _room_on_nodes(self, needs: Resources) -> int:
        nodes = [each["Resources"] for each in self._ray.nodes() if each["Alive"]]
        return sum(_room(node, needs) for node in nodes)


def needs_of(job: Job) -> Resources:
    """What one worker of a job needs; stages that leave their GPUs to the engine share one part."""
    needs = job.stages.resources
    shared = job.gpu_share if needs.auto_gpus else 0.0
    return replace(needs, gpus=_whole_or_fraction(needs.gpus + shared))


def reason_of(error: Exception) -> str:
    """One line about what went wrong on a worker; errors without any words give their type."""
    cause = getattr(error, "cause", None) or error
    return next(iter(str(cause).splitlines()), "") or type(cause).__name__


def _whole_or_fraction(gpus: float) -> float:
    """Ray takes fractions below one and whole numbers above."""
    return gpus if gpus <= 1 else float(math.ceil(gpus))


def _connect(address: str | None, cpus: int | None) -> None:
    """Begin a session; the handler of SIGTERM stays the one that it was."""
    import ray

    _quieten()
    before = signal.getsignal(signal.SIGTERM)
    if address is not None:
        join = functools.partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
        try:
            _interruptibly(functools.partial(join, address=address), _JOIN_S)
        except (ConnectionError, TimeoutError) as error:
            raise _nobody_at(address, error) from None
    else:
        _start_local(cpus)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _interruptibly(work: Callable[[], object], most_s: float) -> None:
    """Do it in a thread: Ray's C++ waits for minutes and hears no Ctrl-C meanwhile.

    Raises:
        TimeoutError: it takes longer; the thread stays, until the process ends.
    """
    raised: list[Exception] = []

    def do() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    until = time.monotonic() + most_s
    while thread.is_alive():
        if time.monotonic() > until:
            raise TimeoutError(f"something listens there and says nothing for {most_s:g} s")
        thread.join(0.1)
    if raised:
        raise raised[0]


def _start_local(cpus: int | None) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpus or usable_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    except (RuntimeError, OSError) as error:
        # A full /tmp, no memory, a process of it that was killed while it started.
        raise EngineLostError(
            f"the local Ray did not start ({type(error).__name__}: {str(error)[:500]}); see that "
            "/tmp and memory have room, or work without it: --executor inline"
        ) from error


def _quieten() -> None:
    """Ray (2.60) prints what raylets say of dead workers, also with `log_to_driver=False`.

    It is in Ray's logs, and the scheduler says it in a sentence.
    """
    with suppress(ImportError):  # private: another version may have another place for it
        from ray._private import worker

        if hasattr(worker, "print_to_stdstream"):
            worker.print_to_stdstream = lambda *_, **__: None


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
