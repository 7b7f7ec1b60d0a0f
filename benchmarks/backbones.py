"""How fast are the networks of the embedded default on this machine's cores, and what do they cost?

Frames are in memory, so decoding plays no part. The targets are what keeps `make demo` inside its
time; full-size networks have their own benchmark. FLOP = 2 x multiply-add, counted by torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from harness import Benchmark
from torch.utils.flop_counter import FlopCounterMode

from models.backbones import Backbone, create
from models.captioners import CaptionRequest
from models.captioners import create as create_captioner
from models.text import create as create_text_encoder

BATCHES = {"clip": 64, "i3d": 8, "slowfast": 8}
AT_LEAST = {"clip": 300, "i3d": 40, "slowfast": 25}
REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Median wall seconds after one run to warm up."""
    work()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def gflop(backbone: Backbone, batch: torch.Tensor) -> float:
    """GFLOP of one clip."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        backbone(batch[:1])
    return counter.get_total_flops() / 1e9


def measure(bench: Benchmark, name: str) -> None:
    """Rate, cost and the share of preprocessing of one backbone."""
    backbone = create(name, preset="tiny")
    size, count = backbone.size, BATCHES[name]
    shape = (count, backbone.frames, size, size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    uint8 = torch.from_numpy(frames)
    whole = seconds(lambda: backbone.encode(frames))
    with torch.inference_mode():
        before = seconds(lambda: backbone.preprocess(uint8))
        batch = backbone.preprocess(uint8)
    unit = "images/s" if backbone.frames == 1 else "clips/s"
    bench.figure(f"{name} tiny", count / whole, unit, at_least=AT_LEAST[name])
    bench.figure(f"{name} tiny, preprocess", 100 * before / whole, "% of time")
    bench.figure(f"{name} tiny, cost", gflop(backbone, batch), "GFLOP")


def main() -> None:
    """Print the table."""
    bench = Benchmark(f"Tiny networks on {torch.get_num_threads()} threads, 64 x 64 pixels")
    for name in BATCHES:
        measure(bench, name)
    encoder = create_text_encoder("clip", preset="tiny")
    texts = [f"a red circle number {index} moves to the left" for index in range(128)]
    bench.figure("clip text tiny", len(texts) / seconds(lambda: encoder.encode(texts)), "texts/s")
    captioner = create_captioner("pixel")
    flat = np.full((captioner.frames, 96, 96, 3), 70, dtype=np.uint8)
    flat[:, 30:60, 20:50] = (220, 40, 40)
    asked = [CaptionRequest(flat, "", float(index), str(index)) for index in range(16)]
    rate = len(asked) / seconds(lambda: captioner.caption(asked))
    bench.figure("pixel captions", rate, "captions/s")
    bench.finish()


if __name__ == "__main__":
    main()
