"""What captions will cost: how many are left, how fast they come, GPU-hours and bytes.

How fast is taken from, in this order: an earlier run of the same recipe into the same store; what
`pipeline plan` measures; the computed limit of the GPU times what such loops reach of it. Which one
it was is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

from data.errors import UsageError
from data.terminal import size_text
from data.video.types import VideoFacts
from models.captioners.limits import GPUS, Gpu, Work, bound, gpu_called, most_rows
from pipeline.adopt import there_already
from pipeline.config import PipelineConfig
from pipeline.paces import Pace, paces_of, recent
from pipeline.progress import LimitOf, duration
from pipeline.speeds import Speed, machine_of, speeds_of
from pipeline.stage import FrameStage, Stage
from pipeline.survey import Inventory, Ledger, Survey
from pipeline.throughput import Layout, Machine

__all__ = [
    "Budget",
    "Cost",
    "check_budget",
    "costs_of",
    "gpu_here",
    "limit_of",
]

_REACHED = 0.6
"""Share of the computed limit that a loop of transformers reaches (specs/captioners.md §3.2)."""

_TYPICAL_TOKENS = 60.0
"""New tokens of a caption of two or three sentences, where none was written yet (also §3.2)."""

_BYTES = 900
"""Of a caption in the store: 0.4 KB of text, 0.5 KB of record (specs/captioners.md §4.5)."""

Source = Literal["an earlier run", "measured", "computed limit x 0.6", "not known"]


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
        captions: left, those of videos of unknown length guessed; 0 if no length is known.
        unknown: how many videos have an unknown length.
        gpu: name of the GPU that is reckoned with; "" for a CPU, or if nobody knows.
        gpus: GPUs of one worker.
        rate_hz: captions per second of one worker; None if nobody knows.
        source: where that is from.
        limit_hz: what the GPUs of one worker could do at most; None if nobody knows.
        workers: how many work side by side.
        problem: why nobody knows the rate; "" if somebody does.
    """

    stage: str
    captions: int
    unknown: int
    gpu: str
    gpus: float
    rate_hz: float | None
    source: Source
    limit_hz: float | None
    workers: int
    problem: str = ""

    @property
    def hours(self) -> float | None:
        """Until all are there."""
        if self.rate_hz is None or not self.captions:
            return None
        return self.captions / (self.rate_hz * max(1, self.workers)) / 3600

    @property
    def gpu_hours(self) -> float | None:
        """Hours of GPUs; 0 without one; None if nobody knows."""
        if not self.gpus:
            return 0.0
        if self.rate_hz is None or not self.captions:
            return None
        return self.captions / self.rate_hz * self.gpus / 3600

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
        videos = "1 video" if self.unknown == 1 else f"{self.unknown:,} videos"
        if not self.captions:
            return (
                f"{self.stage}: {videos} to caption; how many captions that is, and what they "
                "cost, is known after `pipeline run --stage probe`"
            )
        guess = f" ({videos} of unknown length guessed)" if self.unknown else ""
        head = (
            f"{self.stage}: {self.captions:,} captions left{guess}, about {size_text(self.bytes)}"
        )
        if self.rate_hz is None or self.hours is None or self.gpu_hours is None:
            return f"{head}; how fast is not known: {self.problem}"
        where = f" on {self.gpu}" if self.gpu else ""
        measured = self.limit_hz is not None and self.source != "computed limit x 0.6"
        share = f", {self.rate_hz / (self.limit_hz or 1):.0%} of the limit" if measured else ""
        gpu_hours = f", {self.gpu_hours:,.3g} GPU-hours" if self.gpus else ""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return (
            f"{head}; {self.rate_hz:,.3g} captions/s a worker{where} ({self.source}{share}); "
            f"{workers}: {duration(3600 * self.hours)}{gpu_hours}"
        )


def costs_of(
    inventory: Inventory,
    ledger: Ledger,
    machine: Callable[[], Machine],
    speeds: Sequence[Speed] = (),
    gpu: str | None = None,
    workers: int | None = None,
) -> tuple[Cost, ...]:
    """The cost of every stage that counts what it has to do.

    Args:
        inventory: where everything stands.
        ledger: knows the lengths of probed videos, and earlier runs.
        machine: tells what there is; asked only if there is something to do.
        speeds: what was measured, on this machine.
        gpu: name of a GPU to reckon with; None: that of this machine.
        workers: the number that the config asks for; None: as many as fit.

    Raises:
        UsageError: nobody knows that GPU.
    """
    if gpu is not None and gpu_called(gpu) is None:
        known = ", ".join(each.name for each in GPUS)
        raise UsageError(f"--gpu '{gpu}' is not in the table of GPUs; known: {known}")
    paces = paces_of(ledger.store)
    found = []
    for one in inventory.surveys.values():
        left = _left(one, ledger)
        if left.captions or left.unknown:
            here = gpu_here(one.stage.context.device)
            name, measured = (here, speeds) if gpu is None else (gpu, ())
            found.append(_cost(one, left, name, machine(), workers, measured, paces))
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
        self._told: set[str] = set()

    def check(self, inventory: Inventory, ledger: Ledger, tell: Callable[[str], None]) -> None:
        """UsageError for what is too dear; measures where nothing else says how fast it is.

        Args:
            inventory: where everything stands.
            ledger: knows the lengths of probed videos, and earlier runs.
            tell: is told what it will cost, or that nobody can know before the probe.
        """
        there = cache(lambda: machine_of(self.config))
        asked = self.config.engine.workers
        workers = None if asked == "auto" else asked
        costs = costs_of(inventory, ledger, there, workers=workers)
        if any(cost.unknown for cost in costs):
            tell(f"--max-gpu-hours {self.most_gpu_hours:g} is looked at when all videos are probed")
            return
        if any(cost.gpu_hours is None for cost in costs):
            dear = {cost.stage for cost in costs}
            speeds = speeds_of(
                inventory, ledger, there, workers, lambda stages: bool(dear & set(stages.names))
            )
            costs = costs_of(inventory, ledger, there, speeds, workers=workers)
        check_budget(costs, self.most_gpu_hours)
        for cost in costs:
            no_gpu = f"{cost.stage}: {cost.captions:,} captions left, made on CPUs: no GPU-hours"
            sentence = cost.sentence if cost.gpus else no_gpu
            if cost.captions and sentence not in self._told:  # looked at again after the probe
                self._told.add(sentence)
                tell(sentence)


@dataclass(frozen=True)
class _Left:
    """What is left of a stage.

    Args:
        captions: of videos whose length is known, and those of the others guessed.
        unknown: how many videos have an unknown length.
        density_hz: captions per second of video; None if no length is known.
    """

    captions: int
    unknown: int
    density_hz: float | None


def _left(one: Survey, ledger: Ledger) -> _Left:
    stage = one.stage
    if not stage.counts:
        return _Left(0, 0, None)
    lengths = {id_: entry.facts for id_, entry in ledger.catalogue().items()}
    ids = {*one.todo, *(id_ for id_, state in one.states.items() if state == "waiting")}
    adopted = there_already(one, ledger)  # copied by `run`, not made again
    captions = 0
    for id_ in ids & lengths.keys():
        facts = lengths[id_]
        parts: Sequence[int] = range(stage.parts(facts))
        if id_ in one.todo:
            parts = [key.part for key in one.todo[id_] if key not in adopted]
        captions += _amount(stage, facts, parts)
    # Those of unknown length are taken for the mean of all that are known, done or not.
    every = sum(_amount(stage, each, range(stage.parts(each))) for each in lengths.values())
    seconds = sum(each.duration_s for each in lengths.values())
    unknown = len(ids - lengths.keys())
    guessed = unknown * every / len(lengths) if lengths else 0.0
    return _Left(captions + round(guessed), unknown, every / seconds if seconds else None)


def _amount(stage: Stage, facts: VideoFacts, parts: Iterable[int]) -> int:
    return sum(stage.amount(facts, part) for part in parts)


def _cost(
    one: Survey,
    left: _Left,
    gpu_name: str,
    machine: Machine,
    asked: int | None,
    speeds: Sequence[Speed],
    paces: Sequence[Pace],
) -> Cost:
    stage = one.stage
    gpus = _gpus_of(stage, gpu_name)
    earlier = recent(paces, one.recipe.id, gpu_name)
    limit_hz = _limit_hz(stage, gpu_called(gpu_name), gpus, _tokens(earlier))
    rate_hz, source, layout = _rate(stage, earlier, speeds, limit_hz, left.density_hz)
    workers = _workers(stage, gpus, machine, asked) if layout is None else layout.workers
    problem = "" if rate_hz is not None else _why_unknown(stage, gpu_name, gpus)
    return Cost(
        stage=stage.name,
        captions=left.captions,
        unknown=left.unknown,
        gpu=gpu_name,
        gpus=gpus,
        rate_hz=rate_hz,
        source=source,
        limit_hz=limit_hz,
        workers=workers,
        problem=problem,
    )


def _gpus_of(stage: Stage, gpu_name: str) -> float:
    """GPUs of one worker; for a GPU that is not here, as the stage would be on its machine."""
    on_cpu = not stage.context.device.startswith("cuda")
    if on_cpu and not gpu_name:
        return 0.0
    if on_cpu:
        there = replace(stage.context, device="cuda")
        return type(stage)(there, stage.options).resources.gpus
    return stage.resources.gpus


def _workers(stage: Stage, gpus: float, machine: Machine, asked: int | None) -> int:
    if gpus:
        fit = int(machine.gpus / gpus + 1e-9)  # none here: one is reckoned with
    else:
        fit = int(machine.cpus / max(stage.resources.cpus, 1e-9) + 1e-9)
    return max(1, fit if asked is None else min(asked, fit or asked))


def _rate(
    stage: Stage,
    earlier: Sequence[Pace],
    speeds: Sequence[Speed],
    limit_hz: float | None,
    density_hz: float | None,
) -> tuple[float | None, Source, Layout | None]:
    if earlier:
        there = sum(each.captions + each.reused for each in earlier)
        return there / max(sum(each.worker_s for each in earlier), 1e-9), "an earlier run", None
    for speed in speeds:
        layout = speed.layout
        if stage.name in speed.stages and layout is not None and density_hz is not None:
            return layout.rate_x / layout.workers * density_hz, "measured", layout
    if limit_hz is not None:
        return _REACHED * limit_hz, "computed limit x 0.6", None
    return None, "not known", None


def _why_unknown(stage: Stage, gpu_name: str, gpus: float) -> str:
    gpu, work = gpu_called(gpu_name), stage.work()
    if gpu is not None and work is not None:
        return (
            f"{size_text(int(work.resident_bytes))} of weights do not fit into {gpus:g} {gpu.name} "
            f"({size_text(int(gpu.memory_bytes))} each)"
        )
    if isinstance(stage, FrameStage) and not stage.can_be_tried:
        return "nothing is tried out elsewhere; a first run tells (`pipeline run --limit 3`)"
    if gpu is not None:
        return "nobody knows what a caption costs; a first run tells (`pipeline run --limit 3`)"
    return "let `plan` measure, or name the GPU with --gpu"


def _tokens(earlier: Sequence[Pace]) -> float:
    captions = sum(each.captions for each in earlier)
    return sum(each.new_tokens for each in earlier) / captions if captions else _TYPICAL_TOKENS


def limit_of(stage: Stage, gpu_name: str, workers: int) -> LimitOf | None:
    """The limit of so many workers with GPUs of that name; None if nobody knows it."""
    gpu = gpu_called(gpu_name)
    if gpu is None or not stage.counts or stage.work() is None:
        return None

    def limit(tokens: float) -> float | None:
        one_hz = _limit_hz(stage, gpu, stage.resources.gpus, tokens)
        return None if one_hz is None else workers * one_hz

    return limit


def _limit_hz(stage: Stage, gpu: Gpu | None, gpus: float, tokens: float) -> float | None:
    """Captions per second that the GPUs of one worker can do at most, with as many captions at
    once as their memory holds; None if nobody knows, or if the weights do not fit.
    """
    work: Work | None = stage.work() if gpu is not None and gpus else None
    if gpu is None or work is None:
        return None
    free_bytes = gpu.memory_bytes - work.resident_bytes / max(1.0, gpus)
    if free_bytes <= 0:
        return None
    return gpus * bound(work, gpu, most_rows(work, free_bytes), tokens).captions_hz
