"""What does optical flow cost? Seconds for a pair of frames, and x realtime at 25 fps.

    python benchmarks/flow.py [--device cuda] [--pairs 4] [--flow tvl1-torch raft-small ...]

Frames are those of a rendered film (moving shapes and noise), 256 x 340, the size at which
`i3d_flow` computes. TV-L1 works until a pair rests, so its time depends on the pictures; RAFT's
does not. Its weights are random here: they cost the same. `tvl1` is left out where OpenCV's contrib
modules are not installed, and a line says so. There are no targets: flow is an option with a price.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from harness import Benchmark
from torch import Tensor

from data.errors import UsageError
from models.flow import Flow, create_flow

FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "tvl1": ("tvl1", {}),
    "tvl1-torch": ("tvl1-torch", {}),
    "raft-large": ("raft", {"model": "large"}),
    "raft-small": ("raft", {"model": "small"}),
}
HEIGHT, WIDTH = 256, 340
RATE_FPS = 25


def film(frames: int) -> Tensor:
    """uint8 (1, frames, H, W, 3): a texture that moves 1.5 pixels a frame, and a disc."""
    random = np.random.Generator(np.random.PCG64(5))
    coarse = torch.from_numpy(random.uniform(0, 1, (1, 3, 40, 60)).astype(np.float32))
    texture = torch.nn.functional.interpolate(coarse, (400, 600), mode="bicubic")[0]
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    pictures = []
    for index in range(frames):
        shift = round(1.5 * index)
        picture = texture[:, :HEIGHT, shift : shift + WIDTH].clone()
        picture[:, (y - 128) ** 2 + (x - 60 - 3 * index) ** 2 < 40**2] = 0.9
        noise = torch.from_numpy(random.normal(0, 0.01, picture.shape).astype(np.float32))
        pictures.append(((picture + noise).clamp(0, 1) * 255).to(torch.uint8))
    return torch.stack(pictures).permute(0, 2, 3, 1)[None]


def seconds_of(flow: Flow, frames: Tensor) -> tuple[float, float]:
    """Wall and CPU seconds of all pairs of `frames`, after a first pair."""
    flow(frames[:, :2])
    synchronise(frames)
    wall, cpu = time.perf_counter(), time.process_time()
    flow(frames)
    synchronise(frames)
    return time.perf_counter() - wall, time.process_time() - cpu


def synchronise(frames: Tensor) -> None:
    """Wait for the GPU."""
    if frames.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of frames")
    parser.add_argument("--flow", nargs="+", default=list(FLOWS), choices=list(FLOWS))
    bench = Benchmark("What does optical flow cost, for pairs of 256 x 340?", parser)
    frames = film(bench.args.pairs + 1).to(bench.args.device)
    for name in bench.args.flow:
        kind, options = FLOWS[name]
        try:
            flow = create_flow(kind, **options).to(bench.args.device)
        except UsageError as error:
            print(f"{name}: left out: {error}")
            continue
        wall_s, cpu_s = seconds_of(flow, frames)
        pair_s = (wall_s if frames.is_cuda else cpu_s) / bench.args.pairs
        bench.figure(
            f"{name}, {'wall' if frames.is_cuda else 'CPU'} seconds of a pair", pair_s, "s"
        )
        bench.figure(f"{name}, realtime at 25 fps", 1 / pair_s / RATE_FPS, "x")
    bench.finish()


if __name__ == "__main__":
    main()
