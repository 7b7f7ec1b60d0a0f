"""How many workers, what part of a GPU each of them gets, and how fast that is: arithmetic only.

Rates are in x realtime: seconds of video per second. With

    d   what one worker decodes, one core busy
    n   what the networks of the set do on one GPU (without a GPU: on one core)
    C   CPUs, c CPUs per worker (`cpus` of the stage), G GPUs

the workers per GPU are the least of

    ceil(n / d)                   more could not be fed into it
    floor(C / (G c))              more would share a core
    floor(0.9 V / v)              GPU memory V, of one worker v
    floor(M / (G m))              memory M, of one worker m

and at least one. `W` workers then do `min(G n, min(W, C) d)`. Without a GPU there are
`floor(C / c)` workers, decoding and networks share the cores, and they do
`min(W min(d, c n), C / (1/d + 1/n))`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

__all__ = ["Layout", "Machine", "Rates", "lay_out", "usable_cpus"]

Bound: TypeAlias = Literal["network", "CPUs", "GPU memory", "memory", "asked for", "not measured"]

_UNMEASURED_PER_GPU = 4
"""Workers per GPU when nobody knows how fast the networks are, nor how much memory they take."""

_USABLE_GPU_MEMORY = 0.9
"""Libraries, fragments and the peaks of convolutions take the rest."""

_RAY_DIGITS = 10_000
"""Ray counts GPUs in ten-thousandths."""


@dataclass(frozen=True)
class Machine:
    """What there is, of one machine or of a whole cluster.

    Args:
        cpus: CPUs.
        gpus: GPUs.
        memory_mb: MiB of memory; 0: not known.
    """

    cpus: float
    gpus: int = 0
    memory_mb: int = 0


@dataclass(frozen=True)
class Rates:
    """What was measured of a stage set, on one video after the other, with nothing beside it.

    Args:
        decode_x: x realtime of one decoding child with the requests of the stages.
        network_x: x realtime of all networks of the set on one GPU, or on one core; None: not
            known.
        gpu_memory_mb: MiB of GPU memory of one worker; 0: not known.
        gpu_total_mb: MiB of GPU memory that there is; 0: not known.
        videos: how many videos were measured.
        seconds: of video that were decoded for it.
        took_s: what the measurement cost.
    """

    decode_x: float
    network_x: float | None = None
    gpu_memory_mb: int = 0
    gpu_total_mb: int = 0
    videos: int = 0
    seconds: float = 0.0
    took_s: float = 0.0

    @property
    def sentence(self) -> str:
        """What was measured, and how."""
        network = "networks not measured" if self.network_x is None else _x(self.network_x)
        if self.network_x is not None:
            network = f"networks {network}"
        return (
            f"decoding {_x(self.decode_x)} per worker, {network} "
            f"(measured on {self.seconds:.0f} s of {self.videos} videos, took {self.took_s:.1f} s)"
        )


@dataclass(frozen=True)
class Layout:
    """Workers of a stage set and what they do together.

    Args:
        workers: how many.
        per_gpu: how many share a GPU; 0 without one.
        gpu_share: the `gpus` of one worker.
        bound: what keeps them from being more.
        rate_x: x realtime of all together.
        bottleneck: what `rate_x` is limited by.
        other_x: x realtime that the other of decoder and network could do.
    """

    workers: int
    per_gpu: int
    gpu_share: float
    bound: Bound
    rate_x: float
    bottleneck: Literal["decoder", "network"]
    other_x: float | None

    def hours(self, seconds: float) -> float:
        """Hours for so many seconds of video."""
        return seconds / self.rate_x / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """How many, why not more, and what they wait for."""
        each = f", {self.per_gpu} per GPU (gpus: {self.gpu_share:g})" if self.per_gpu else ""
        if self.gpu_share > 1:
            each = f", {self.gpu_share:g} GPUs each"
        other = "network" if self.bottleneck == "decoder" else "decoder"
        could = f", the {other} could do {_x(self.other_x)}" if self.other_x is not None else ""
        return (
            f"{self.workers} workers{each}, bounded by: {self.bound}; together {_x(self.rate_x)}; "
            f"the {self.bottleneck} is the bottleneck{could}"
        )


def lay_out(
    machine: Machine,
    rates: Rates,
    *,
    cpus: float = 1.0,
    memory_mb: int = 0,
    workers: int | None = None,
    gpu_share: float | None = None,
) -> Layout:
    """The workers of a stage set on a machine; the formula is at the top of this module.

    Args:
        machine: what there is.
        rates: what was measured.
        cpus: CPUs of one worker.
        memory_mb: MiB of one worker; 0: not known.
        workers: the number that somebody asked for.
        gpu_share: the part of a GPU that somebody asked for, or the number of GPUs; None: to be
            worked out.
    """
    if gpu_share is not None and gpu_share > 1:
        # A worker over several GPUs is one on a machine of fewer, larger ones.
        each = math.ceil(gpu_share)
        grouped = replace(machine, gpus=max(1, machine.gpus // each))
        layout = lay_out(
            grouped, rates, cpus=cpus, memory_mb=memory_mb, workers=workers, gpu_share=1.0
        )
        return replace(layout, gpu_share=float(each))
    if machine.gpus == 0 or gpu_share == 0.0:
        return _without_gpu(machine, rates, cpus, memory_mb, workers)
    bounds = _bounds_per_gpu(machine, rates, cpus, memory_mb, workers, gpu_share)
    bound = min(bounds, key=lambda name: bounds[name])
    per_gpu = max(1, bounds[bound])
    total = per_gpu * machine.gpus if workers is None else min(workers, per_gpu * machine.gpus)
    decoders_x = min(total, machine.cpus) * rates.decode_x
    networks_x = None if rates.network_x is None else machine.gpus * rates.network_x
    share = _share(per_gpu) if gpu_share is None else gpu_share
    if networks_x is not None and networks_x <= decoders_x:
        return Layout(total, per_gpu, share, bound, networks_x, "network", decoders_x)
    return Layout(total, per_gpu, share, bound, decoders_x, "decoder", networks_x)


def _bounds_per_gpu(
    machine: Machine,
    rates: Rates,
    cpus: float,
    memory_mb: int,
    workers: int | None,
    gpu_share: float | None,
) -> dict[Bound, int]:
    """Workers per GPU that each of the bounds allows; the first of equal ones is told."""
    bounds: dict[Bound, int] = {}
    if workers is not None:
        bounds["asked for"] = math.ceil(workers / machine.gpus)
    if gpu_share is not None:
        bounds["asked for"] = min(bounds.get("asked for", 1 << 30), int(1 / gpu_share + 1e-9))
    elif rates.network_x is None:
        bounds["not measured"] = _UNMEASURED_PER_GPU
    else:
        bounds["network"] = math.ceil(rates.network_x / rates.decode_x)
    bounds["CPUs"] = _whole(machine.cpus / (machine.gpus * cpus))
    if gpu_share is None and rates.gpu_memory_mb and rates.gpu_total_mb:
        usable_mb = _USABLE_GPU_MEMORY * rates.gpu_total_mb
        bounds["GPU memory"] = _whole(usable_mb / rates.gpu_memory_mb)
    if memory_mb and machine.memory_mb:
        bounds["memory"] = _whole(machine.memory_mb / (machine.gpus * memory_mb))
    return bounds


def _without_gpu(
    machine: Machine, rates: Rates, cpus: float, memory_mb: int, workers: int | None
) -> Layout:
    bounds: dict[Bound, int] = {} if workers is None else {"asked for": workers}
    bounds["CPUs"] = _whole(machine.cpus / cpus)
    if memory_mb and machine.memory_mb:
        bounds["memory"] = _whole(machine.memory_mb / memory_mb)
    bound = min(bounds, key=lambda name: bounds[name])
    count = max(1, bounds[bound])
    decode_x, network_x = rates.decode_x, rates.network_x
    if network_x is None:
        alone_x = min(count, machine.cpus) * decode_x
        return Layout(count, 0, 0.0, bound, alone_x, "decoder", None)
    shared_x = machine.cpus / (1 / decode_x + 1 / network_x)
    rate_x = min(count * min(decode_x, cpus * network_x), shared_x)
    decoders_x, networks_x = machine.cpus * decode_x, machine.cpus * network_x
    if network_x <= decode_x:
        return Layout(count, 0, 0.0, bound, rate_x, "network", decoders_x)
    return Layout(count, 0, 0.0, bound, rate_x, "decoder", networks_x)


def _share(per_gpu: int) -> float:
    """The part of a GPU of each of so many workers, rounded down to what Ray can count."""
    return max(1, _RAY_DIGITS // per_gpu) / _RAY_DIGITS


def _whole(room: float) -> int:
    # 1e-9: 1 / 0.1 workers must not become 9.
    return math.floor(room + 1e-9)


def _x(rate: float) -> str:
    return f"{rate:,.3g}x realtime" if rate < 1000 else f"{rate:,.0f}x realtime"


def usable_cpus(quota_files: Sequence[Path] = (Path("/sys/fs/cgroup/cpu.max"),)) -> int:
    """CPUs that this process may use: a container or `taskset` may leave fewer than there are.

    Args:
        quota_files: cgroup v2 `cpu.max`: `<µs per period or max> <µs of a period>`.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cpus = os.cpu_count() or 1
    for file in quota_files:
        try:
            quota, period = file.read_text().split()[:2]
            cpus = min(cpus, max(1, math.floor(int(quota) / int(period))))
        except (OSError, ValueError):
            continue  # no such file, or `max`: no quota
    return cpus
