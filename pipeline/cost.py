"""What captions will cost: how many are left, how fast they come, GPU-hours and bytes.

How fast is taken from, in this order: an earlier run of the same recipe into the same store; what
`pipeline plan` measures; the computed limit of the GPU times what such loops reach of it. Which one
it was is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal

from data.errors import UsageError
from data.store import Store
from data.store.files import append_records, read_records
from models.captioners.limits import GPUS, Gpu, Work, bound, gpu_called, most_rows
from pipeline.config import PipelineConfig
from pipeline.progress import LimitOf, duration
from pipeline.speeds import Speed, machine_of, speeds_of
from pipeline.stage import Stage
from pipeline.survey import Inventory, Ledger, Survey
from pipeline.throughput import Machine

__all__ = [
    "Budget",
    "Cost",
    "Pace",
    "check_budget",
    "costs_of",
    "gpu_here",
    "limit_of",
    "paces_of",
    "remember_pace",
]

_REACHED = 0.6
"""Share of the computed limit that a loop of transformers reaches (specs/captioners.md §3.2)."""

_TYPICAL_TOKENS = 60.0
"""New tokens of a caption of two or three sentences, where none was written yet (also §3.2)."""

_BYTES = 900
"""Of a caption in the store: 0.4 KB of text, 0.5 KB of record (specs/captioners.md §4.5)."""

_FILE = ("cache", "paces.jsonl")


@dataclass(frozen=True)
class Pace:
    """How fast an earlier run was.

    Args:
        recipe: of the captions.
        gpu: name of the GPU; "" without one.
        captions: how many were made.
        new_tokens: of them together.
        worker_s: seconds of workers that went into making them.
    """

    recipe: str
    gpu: str
    captions: int
    new_tokens: int
    worker_s: float


def paces_of(store: Store | None) -> tuple[Pace, ...]:
    """All earlier runs that a store remembers; lines of another version are left out."""
    if store is None:
        return ()
    wanted = {each.name for each in fields(Pace)}
    records = read_records(store.path.joinpath(*_FILE), torn=True)
    return tuple(Pace(**each) for each in records if each.keys() == wanted)


def remember_pace(store: Store, pace: Pace) -> None:
    """For the next plan."""
    append_records(store.path.joinpath(*_FILE), [asdict(pace)], durable=False)


def gpu_here(device: str) -> str:
    """Name of the GPU of this machine; "" if networks run on its CPU, or on other machines."""
    if not device.startswith("cuda"):
        return ""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


@dataclass(frozen=True)
class Cost:
    """What is left to do of one stage whose captions are counted.

    Args:
        stage: name of the stage.
        captions: left, those of videos of unknown length guessed.
        unknown: how many videos have an unknown length.
        gpu: name of the GPU that is reckoned with; "" for a CPU, or if nobody knows.
        gpus: GPUs of one worker.
        rate_hz: captions per second of one worker; None if nobody knows.
        source: where that is from.
        limit_hz: what the GPU could do at most; None if nobody knows.
        workers: how many work side by side.
    """

    stage: str
    captions: int
    unknown: int
    gpu: str
    gpus: float
    rate_hz: float | None
    source: Literal["an earlier run", "measured", "computed limit x 0.6", "not known"]
    limit_hz: float | None
    workers: int

    @property
    def hours(self) -> float | None:
        """Until all are there."""
        if self.rate_hz is None:
            return None
        return self.captions / (self.rate_hz * max(1, self.workers)) / 3600

    @property
    def gpu_hours(self) -> float | None:
        """Hours of GPUs; 0 without one; None if nobody knows."""
        if not self.captions or not self.gpus:
            return 0.0
        return None if self.rate_hz is None else self.captions / self.rate_hz * self.gpus / 3600

    @property
    def bytes(self) -> int:
        """Of the store, about."""
        return self.captions * _BYTES

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        more = {"hours": self.hours, "gpu_hours": self.gpu_hours, "bytes": self.bytes}
        return {**asdict(self), **more}

    @property
    def sentence(self) -> str:
        """For a person."""
        guess = f" ({self.unknown:,} videos of unknown length guessed)" if self.unknown else ""
        head = f"{self.stage}: {self.captions:,} captions left{guess}, about {_size(self.bytes)}"
        if self.rate_hz is None or self.hours is None or self.gpu_hours is None:
            return f"{head}; how fast is not known: let `plan` measure, or name the GPU with --gpu"
        where = f" on {self.gpu}" if self.gpu else ""
        share = f", {self.rate_hz / self.limit_hz:.0%} of the limit" if self.limit_hz else ""
        gpu_hours = f", {self.gpu_hours:,.3g} GPU-hours" if self.gpus else ""
        return (
            f"{head}; {self.rate_hz:,.3g} captions/s a worker{where} ({self.source}{share}); "
            f"{self.workers} workers: {duration(3600 * self.hours)}{gpu_hours}"
        )


def costs_of(
    inventory: Inventory,
    ledger: Ledger,
    machine: Callable[[], Machine],
    speeds: Sequence[Speed] = (),
    gpu: str | None = None,
) -> tuple[Cost, ...]:
    """The cost of every stage that counts what it has to do.

    Args:
        inventory: where everything stands.
        ledger: knows the lengths of probed videos, and earlier runs.
        machine: tells what there is; asked only if there is something to do.
        speeds: what was measured.
        gpu: name of a GPU to reckon with; None: that of this machine.

    Raises:
        UsageError: nobody knows that GPU.
    """
    if gpu is not None and gpu_called(gpu) is None:
        known = ", ".join(each.name for each in GPUS)
        raise UsageError(f"--gpu '{gpu}' is not in the table of GPUs; known: {known}")
    paces = paces_of(ledger.store)
    found = []
    for one in inventory.surveys.values():
        captions, unknown = _left(one, ledger)
        if captions or unknown:
            name = gpu if gpu is not None else gpu_here(one.stage.context.device)
            found.append(_cost(one, captions, unknown, name, machine(), speeds, paces))
    return tuple(found)


def check_budget(costs: Iterable[Cost], most_gpu_hours: float) -> None:
    """UsageError if captions will cost more than that, or if nobody can say whether."""
    hours = 0.0
    for cost in costs:
        if cost.gpu_hours is None:
            raise UsageError(
                f"--max-gpu-hours {most_gpu_hours:g}: nobody can say what this will cost. "
                f"{cost.sentence}"
            )
        hours += cost.gpu_hours
    if hours > most_gpu_hours:
        told = "; ".join(cost.sentence for cost in costs)
        raise UsageError(
            f"this would take about {hours:,.3g} GPU-hours, --max-gpu-hours allows "
            f"{most_gpu_hours:g}; nothing was begun. {told}. Do a part (--limit, --share), ask for "
            "fewer captions (stages.captions.every_s), or allow more"
        )


class Budget:
    """What a run may cost.

    Args:
        config: says who works.
        most_gpu_hours: for all captions that are left.
    """

    def __init__(self, config: PipelineConfig, most_gpu_hours: float) -> None:
        self.config = config
        self.most_gpu_hours = most_gpu_hours

    def check(self, inventory: Inventory, ledger: Ledger, tell: Callable[[str], None]) -> None:
        """UsageError for what is too dear; measures where nothing else says how fast it is.

        Args:
            inventory: where everything stands.
            ledger: knows the lengths of probed videos, and earlier runs.
            tell: is told what it will cost, or that nobody can know before the probe.
        """
        there = cache(lambda: machine_of(self.config))
        costs = costs_of(inventory, ledger, there)
        if any(cost.unknown for cost in costs):
            tell(f"--max-gpu-hours {self.most_gpu_hours:g} is looked at when all videos are probed")
            return
        if any(cost.gpu_hours is None for cost in costs):
            dear = {cost.stage for cost in costs}
            speeds = speeds_of(
                inventory, ledger, there, None, lambda stages: bool(dear & set(stages.names))
            )
            costs = costs_of(inventory, ledger, there, speeds)
        check_budget(costs, self.most_gpu_hours)
        for cost in costs:
            tell(cost.sentence)


def _left(one: Survey, ledger: Ledger) -> tuple[int, int]:
    """Captions that are left of a stage, and of how many videos nobody knows the length."""
    if not one.stage.counts:
        return 0, 0
    lengths = {id_: entry.facts for id_, entry in ledger.catalogue().items()}
    known = [
        sum(one.stage.amount(lengths[id_], key.part) for key in keys)
        for id_, keys in one.todo.items()
        if id_ in lengths
    ]
    ids = {*one.todo, *(id_ for id_, state in one.states.items() if state == "waiting")}
    waiting = [id_ for id_ in ids - one.todo.keys() if id_ in lengths]
    known += [
        sum(one.stage.amount(lengths[id_], part) for part in range(one.stage.parts(lengths[id_])))
        for id_ in waiting
    ]
    unknown = len(ids - lengths.keys())
    mean = sum(known) / len(known) if known else 0.0
    return round(sum(known) + unknown * mean), unknown


def _cost(
    one: Survey,
    captions: int,
    unknown: int,
    gpu_name: str,
    machine: Machine,
    speeds: Sequence[Speed],
    paces: Sequence[Pace],
) -> Cost:
    stage = one.stage
    gpus = stage.resources.gpus if gpu_name or stage.context.device.startswith("cuda") else 0.0
    earlier = [each for each in paces if (each.recipe, each.gpu) == (one.recipe.id, gpu_name)]
    tokens = _tokens(earlier)
    limit_hz = _limit_hz(stage, gpu_called(gpu_name), tokens)
    workers = int(machine.gpus / gpus) if gpus and machine.gpus else 1
    rate_hz, source = _rate(stage, earlier, speeds, limit_hz, captions)
    return Cost(
        stage.name, captions, unknown, gpu_name, gpus, rate_hz, source, limit_hz, max(1, workers)
    )


def _rate(
    stage: Stage,
    earlier: Sequence[Pace],
    speeds: Sequence[Speed],
    limit_hz: float | None,
    captions: int,
) -> tuple[float | None, Any]:
    if earlier:
        last = earlier[-1]
        return last.captions / max(last.worker_s, 1e-9), "an earlier run"
    for speed in speeds:
        if stage.name in speed.stages and speed.rates and speed.rates.network_x and speed.seconds:
            return speed.rates.network_x * captions / _all_seconds(speed), "measured"
    if limit_hz is not None:
        return _REACHED * limit_hz, "computed limit x 0.6"
    return None, "not known"


def _all_seconds(speed: Speed) -> float:
    """Of video, those of unknown length counted as the mean of the others."""
    return speed.seconds * speed.videos / max(1, speed.videos - speed.unknown)


def _tokens(earlier: Sequence[Pace]) -> float:
    captions = sum(each.captions for each in earlier)
    return sum(each.new_tokens for each in earlier) / captions if captions else _TYPICAL_TOKENS


def limit_of(stage: Stage, gpu_name: str, workers: int) -> LimitOf | None:
    """The limit of so many workers with GPUs of that name; None if nobody knows it."""
    gpu = gpu_called(gpu_name)
    if gpu is None or not stage.counts or stage.work() is None:
        return None
    gpus = workers * stage.resources.gpus

    def limit(tokens: float) -> float | None:
        one_hz = _limit_hz(stage, gpu, tokens)
        return None if one_hz is None else gpus * one_hz

    return limit


def _limit_hz(stage: Stage, gpu: Gpu | None, tokens: float) -> float | None:
    """Captions per second that a GPU can do at most, as many at once as the stage and its memory
    allow.
    """
    work: Work | None = stage.work() if gpu is not None else None
    if gpu is None or work is None:
        return None
    rows = most_rows(work, gpu.memory_bytes - work.resident_bytes)
    return bound(work, gpu, rows, tokens).captions_hz


def _size(count: int) -> str:
    return f"{count / 2**20:,.3g} MB" if count < 2**30 else f"{count / 2**30:,.3g} GB"
