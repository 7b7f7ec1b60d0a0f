"""How fast a stage set is on this machine: a few seconds of a few of its own videos.

It runs where the workers will run (`RayExecutor.fit`) or in the process of `pipeline plan`, with
nothing beside it, and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from data.errors import InputError
from data.video import IsolatedDecoder
from data.video.types import Window
from pipeline.stage import FrameStage, Item, StageContext, StageSet
from pipeline.throughput import Rates

__all__ = ["SAMPLES", "can_be_measured", "measure", "samples_of", "seconds_to_do"]

SAMPLES = 3
"""Videos that are looked at."""

_SAMPLE_S = 10.0
"""Seconds of each of them, from its start."""

_NETWORK_BUDGET_S = 2.0
"""Seconds for the network of each stage; one batch is measured however long it takes."""

_CUDA_CONTEXT_MB = 600
"""GPU memory of a process beside torch's: context, cuDNN and cuBLAS (500 to 600 MiB, CUDA 12)."""


def can_be_measured(stages: StageSet) -> bool:
    """Only sets over frames: nobody knows what an item of another one costs."""
    return any(isinstance(each, FrameStage) for each in stages.stages)


def samples_of(items: Sequence[Item], count: int = SAMPLES) -> list[Item]:
    """Some of the items with a video, from all over the list."""
    videos = [each for each in items if each.video is not None]
    if len(videos) <= count:
        return videos
    return [videos[round(n * (len(videos) - 1) / (count - 1))] for n in range(count)]


def measure(stages: StageSet, items: Sequence[Item]) -> Rates:
    """Decode and encode the first seconds of some videos.

    Args:
        stages: not set up; those over frames are measured, and set up and closed for it.
        items: the videos; those that cannot be decoded are left out.

    Raises:
        InputError: none of them can be decoded (the error of the first one).
        Exception: whatever `setup` of a stage raises.
    """
    began = time.perf_counter()
    framed = [each for each in stages.stages if isinstance(each, FrameStage)]
    context = framed[0].context
    found: list[_Sample] = []
    refused: list[InputError] = []
    try:
        with _one_thread(context.device), _decoder_of(context) as decoder:
            for stage in framed:
                stage.setup()
            for item in items:
                try:
                    found.append(_sample(decoder, framed, item))
                except InputError as error:
                    refused.append(error)
            if not found:
                raise refused[0] if refused else InputError("missing", "there is no video")
            cost_s = sum(_encode_cost_s(stage, found) for stage in framed)
            memory_mb, total_mb = _gpu_memory_mb(context.device)
    finally:
        for stage in framed:
            stage.close()
    seconds = sum(each.seconds for each in found)
    return Rates(
        decode_x=seconds / sum(each.decoding_s for each in found),
        network_x=1 / cost_s if cost_s > 0 else None,
        gpu_memory_mb=memory_mb,
        gpu_total_mb=total_mb,
        videos=len(found),
        seconds=seconds,
        took_s=time.perf_counter() - began,
    )


@dataclass
class _Sample:
    """What decoding a part of a video cost and gave: the first batch of each stage is kept."""

    item: Item
    seconds: float
    decoding_s: float = 0.0
    windows: dict[str, list[Window]] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)


def _sample(decoder: IsolatedDecoder, stages: Sequence[FrameStage], item: Item) -> _Sample:
    if item.video is None:
        raise ValueError(f"item {item.key.id} has no video to measure")
    start_s = item.video.start_s
    end_s = min(start_s + _SAMPLE_S, item.video.end_s or start_s + _SAMPLE_S)
    part = replace(item.video, end_s=end_s)
    facts = decoder.probe(part)  # also starts the child, which is not to be measured
    item = replace(item, video=part, facts=facts)
    requests = [replace(each.request(item), name=each.name) for each in stages]
    sample = _Sample(item, max(facts.duration_s, 1e-3))
    sample.units = {each.name: len(each.times_s) for each in requests}
    wanted = {each.name: each.batch_size for each in stages}
    began = time.perf_counter()
    for window in decoder.windows(part, requests):
        kept = sample.windows.setdefault(window.request, [])
        if len(kept) < wanted[window.request]:
            kept.append(window)
    sample.decoding_s = time.perf_counter() - began
    return sample


def _encode_cost_s(stage: FrameStage, samples: Sequence[_Sample]) -> float:
    """Seconds of the network of a stage per second of video."""
    windows = [each for sample in samples for each in sample.windows.get(stage.name, [])]
    if not windows:
        return 0.0
    per_second = sum(s.units[stage.name] for s in samples) / sum(s.seconds for s in samples)
    return _seconds_per_window(stage, samples[0].item, _same_shape(windows)) * per_second


def _same_shape(windows: Sequence[Window]) -> list[Window]:
    """A batch holds pictures of one size; videos of other sizes are left out."""
    shape = windows[0].frames.shape
    return [each for each in windows if each.frames.shape == shape]


def _seconds_per_window(stage: FrameStage, item: Item, windows: Sequence[Window]) -> float:
    on_gpu = stage.context.device.startswith("cuda")
    # On a CPU one window may take seconds; on a GPU a batch that is not full tells nothing.
    batch = _filled(windows, stage.batch_size) if on_gpu else windows[: stage.batch_size]
    rounds: list[float] = []
    first = _timed(stage, item, batch if on_gpu else batch[:1])
    if not on_gpu and first * len(batch) > _NETWORK_BUDGET_S:
        return first
    until = time.perf_counter() + _NETWORK_BUDGET_S
    while not rounds or (len(rounds) < 5 and time.perf_counter() < until):
        rounds.append(_timed(stage, item, batch))
    return min(rounds) / len(batch)


def _filled(windows: Sequence[Window], size: int) -> list[Window]:
    return [windows[n % len(windows)] for n in range(size)]


def _timed(stage: FrameStage, item: Item, batch: Sequence[Window]) -> float:
    began = time.perf_counter()
    stage.encode(item, batch)
    _synchronise(stage.context.device)
    return time.perf_counter() - began


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _gpu_memory_mb(device: str) -> tuple[int, int]:
    """MiB of GPU memory that this process needed, and that there is; 0 without a GPU."""
    if not device.startswith("cuda"):
        return 0, 0
    import torch

    total: int = torch.cuda.mem_get_info()[1]
    return torch.cuda.max_memory_reserved() // 2**20 + _CUDA_CONTEXT_MB, total // 2**20


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """Without a GPU the rate is that of one core, as the workers have it (Ray sets it for them)."""
    if device.startswith("cuda"):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _decoder_of(context: StageContext) -> IsolatedDecoder:
    return IsolatedDecoder(
        context.decoder,
        fallbacks=context.fallbacks,
        damaged="keep",
        timeout_s=context.decode_timeout_s,
        limits=context.limits,
    )


def seconds_to_do(items: Iterable[Item], durations_s: Mapping[str, float]) -> tuple[float, int]:
    """Seconds of the videos of some items, and of how many of them nobody knows the length."""
    known = [durations_s.get(each.key.id) for each in items]
    return sum(each for each in known if each is not None), sum(each is None for each in known)
