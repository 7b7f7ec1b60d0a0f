"""What `pipeline plan` says about speed: measured rates, the workers that follow, hours to go."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.measure import can_be_measured, measure, samples_of, seconds_to_do
from pipeline.progress import duration
from pipeline.stage import Item, StageSet
from pipeline.survey import Inventory, Ledger
from pipeline.throughput import Layout, Machine, Rates, lay_out, usable_cpus

__all__ = ["Speed", "machine_of", "speeds_of"]


@dataclass(frozen=True)
class Speed:
    """What is known about the speed of one stage set that has something to do.

    Args:
        stages: names of the stages, which share one decode.
        machine: what there is to work with.
        videos: how many of them are to do.
        seconds: length of those whose length is known.
        unknown: how many were not probed yet.
        rates: what was measured; None if it could not be.
        layout: the workers that follow; None without rates.
        problem: why nothing could be measured.
    """

    stages: tuple[str, ...]
    machine: Machine
    videos: int
    seconds: float
    unknown: int
    rates: Rates | None = None
    layout: Layout | None = None
    problem: str = ""

    @property
    def hours(self) -> float | None:
        """Hours to do, videos of unknown length counted as the mean of the others; None if none
        is known.
        """
        known = self.videos - self.unknown
        if self.layout is None or not known:
            return None
        return self.layout.hours(self.seconds * self.videos / known)

    @property
    def sentences(self) -> tuple[str, ...]:
        """For a person."""
        names = ", ".join(self.stages)
        if self.rates is None or self.layout is None:
            return (f"{names}: speed not known: {self.problem}",)
        return (
            f"{names}: {self.rates.sentence}",
            f"{names}: on {self.machine.cpus:g} CPUs and {self.machine.gpus} GPUs: "
            f"{self.layout.sentence}",
            f"{names}: {self._to_go()}",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        layout = None if self.layout is None else self.layout.to_json()
        return {**asdict(self), "layout": layout, "hours": self.hours}

    def _to_go(self) -> str:
        if self.hours is None:
            return f"{self.videos:,} videos to do, whose length is known after `probe`"
        guess = f" ({self.unknown:,} of unknown length)" if self.unknown else ""
        hours = f"{self.seconds / 3600:,.3g} h of video"
        return f"{self.videos:,} videos to do{guess}, {hours}: {duration(3600 * self.hours)}"


def speeds_of(
    inventory: Inventory,
    ledger: Ledger,
    machine: Callable[[], Machine],
    workers: int | None,
    only: Callable[[StageSet], bool] = can_be_measured,
) -> tuple[Speed, ...]:
    """Measure every set over frames that has something to do.

    Args:
        inventory: where everything stands.
        ledger: knows the lengths of probed videos.
        machine: tells what there is; asked once, and only if there is something to do.
        workers: the number of workers that the config asks for; None: as many as fit.
        only: which sets.
    """
    found: list[Speed] = []
    there: Machine | None = None
    durations_s = {id_: each.facts.duration_s for id_, each in ledger.catalogue().items()}
    for stages in inventory.program.sets:
        items = _to_do(stages, inventory)
        if items and can_be_measured(stages) and only(stages):
            there = machine() if there is None else there
            found.append(_speed(stages, items, durations_s, there, workers))
    return tuple(found)


def machine_of(config: PipelineConfig) -> Machine:
    """The cluster of a config, or this machine.

    Raises:
        UsageError: no cluster answers at the address.
    """
    engine = config.engine
    address = engine.address or os.environ.get("RAY_ADDRESS")
    if engine.executor == "ray" and address:
        from pipeline.engine.ray_workers import RayExecutor

        executor = RayExecutor(engine.address)
        try:
            return executor.machine
        finally:
            executor.close()
    cpus = usable_cpus() if engine.cpus == "auto" else engine.cpus
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cpus, _gpus_here(), pages // 2**20)


def _gpus_here() -> int:
    if not Path("/dev/nvidiactl").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def _to_do(stages: StageSet, inventory: Inventory) -> list[Item]:
    states = [inventory.surveys[name].states for name in stages.names]
    return [
        item
        for item in inventory.videos
        if any(each.get(item.key.id) in ("todo", "waiting") for each in states)
    ]


def _speed(
    stages: StageSet,
    items: Sequence[Item],
    durations_s: dict[str, float],
    machine: Machine,
    workers: int | None,
) -> Speed:
    seconds, unknown = seconds_to_do(items, durations_s)
    bare = Speed(stages.names, machine, len(items), seconds, unknown)
    try:
        rates = measure(stages, samples_of(items))
    # A plan is made of whatever is there: a broken stage or video is for `run` to report.
    except Exception as error:
        return replace(bare, problem=f"{type(error).__name__}: {error}")
    needs = stages.resources
    layout = lay_out(
        machine if _on_gpu(stages) else Machine(machine.cpus, 0, machine.memory_mb),
        rates,
        cpus=needs.cpus,
        memory_mb=needs.memory_mb,
        workers=workers,
        gpu_share=None if needs.auto_gpus else needs.gpus,
    )
    return replace(bare, rates=rates, layout=layout)


def _on_gpu(stages: StageSet) -> bool:
    return any(each.context.device.startswith("cuda") for each in stages.stages)
