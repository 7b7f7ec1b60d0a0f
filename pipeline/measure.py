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
"""Seconds for the network of each stage, about; one batch is timed however long it takes."""

_ROUNDS = 8
"""Batches that are timed at most; the smallest time is the one that nobody disturbed."""

_CUDA_CONTEXT_MB = 600
"""GPU memory of a process beside torch's: context, cuDNN and cuBLAS (500 to 600 MiB, CUDA 12)."""


def can_be_measured(stages: StageSet) -> bool:
    """Only sets over frames, nobody knows what an item of another one costs; and no captioner that
    is elsewhere.
    """
    framed = [each for each in stages.stages if isinstance(each, FrameStage)]
    return bool(framed) and all(each.can_be_tried for each in framed)


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


Pair = tuple[Item, Window]


def _encode_cost_s(stage: FrameStage, samples: Sequence[_Sample]) -> float:
    """Seconds of the network of a stage per second of video."""
    pairs = [(each.item, window) for each in samples for window in each.windows.get(stage.name, [])]
    if not pairs:
        return 0.0
    per_second = sum(s.units[stage.name] for s in samples) / sum(s.seconds for s in samples)
    return _seconds_per_window(stage, _one_batch(stage, pairs)) * per_second


def _one_batch(stage: FrameStage, pairs: Sequence[Pair]) -> list[Pair]:
    """What such a stage gets in one call."""
    if stage.shares_batches:
        # Each is of a video of its own, so that no stage takes one for the repetition of another.
        return [(_renamed(item, n), window) for n, (item, window) in enumerate(pairs)]
    # A batch holds pictures of one size; videos of other sizes are left out.
    shape = pairs[0][1].frames.shape
    return [each for each in pairs if each[1].frames.shape == shape]


def _renamed(item: Item, number: int) -> Item:
    return replace(item, key=replace(item.key, id=f"{item.key.id[:100]}.{number}"))


def _seconds_per_window(stage: FrameStage, pairs: Sequence[Pair]) -> float:
    on_gpu = stage.context.device.startswith("cuda")
    # On a CPU one window may take seconds; on a GPU a batch that is not full tells nothing.
    batch = _filled(stage, pairs) if on_gpu else pairs[: stage.batch_size]
    size = len(batch) if on_gpu else 1
    first = _timed(stage, batch[:size])
    if not on_gpu and first > _NETWORK_BUDGET_S:
        return first
    rounds: list[float] = []
    until = time.perf_counter() + _NETWORK_BUDGET_S
    while not rounds or (len(rounds) < _ROUNDS and time.perf_counter() < until):
        size = min(2 * size, len(batch))  # a caption of a batch costs less than one alone
        rounds.append(_timed(stage, batch[:size]) / size)
    return min(rounds)


def _filled(stage: FrameStage, pairs: Sequence[Pair]) -> list[Pair]:
    size = stage.batch_size
    return _one_batch(stage, [pairs[n % len(pairs)] for n in range(size)])


def _timed(stage: FrameStage, batch: Sequence[Pair]) -> float:
    began = time.perf_counter()
    if stage.shares_batches:
        stage.encode_shared(batch)
    else:
        stage.encode(batch[0][0], [window for _, window in batch])
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
