"""Boundary scores by the closed form against the self-similarity matrix and a convolution.

The matrix way is what the public one-shot detector does (specs/llmepet_and_pseudo_events.md §4.1):
all cosines, a 5x5 checkerboard convolution over the whole matrix, and its diagonal. One thread;
512-d float32 features of scenes with noise; medians of CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/events.py --check
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from harness import Benchmark, cpu_seconds
from numpy.typing import NDArray

from pipeline.events.parser import parse
from pipeline.events.scores import boundary_scores

DIM, HALF_WIDTH = 512, 2


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    bench = Benchmark("How much does the closed form of boundary scores save?")
    # The specs measured 4.5 s for the convolution at L = 3,000, which would be over 2,000x; newer
    # builds of torch need 0.5 to 1.6 s, so the ratio says as much about torch as about us.
    for length, repeats, target in ((1_000, 5, None), (3_000, 3, 200.0)):
        features = scenes(length)
        by_matrix = cpu_seconds(partial(matrix_scores, features), repeats)
        ours = closed_form_seconds(length)
        difference = np.abs(matrix_scores(features) - boundary_scores(features, HALF_WIDTH)).max()
        bench.figure(f"matrix and conv2d, L = {length:,}", 1e3 * by_matrix, "ms")
        bench.figure(f"closed form, L = {length:,}", 1e3 * ours, "ms")
        bench.figure(f"ratio, L = {length:,}", by_matrix / ours, "x", at_least=target)
        bench.figure(f"largest difference, L = {length:,}", difference, "", at_most=1e-4)
    short, long = (closed_form_seconds(length) for length in (3_000, 12_000))
    bench.figure("time(12,000) / time(3,000)", long / short, "x", at_most=6)
    hours = scenes(100_000)
    parsing = cpu_seconds(lambda: parse(hours, 1.0, 1e5), 3)
    bench.figure("parse, 100,000 clips", parsing, "s", at_most=1.5)
    bench.finish()


def scenes(length: int) -> NDArray[np.float32]:
    """Features (length, 512): a new mean every 75 clips on average, and noise."""
    rng = np.random.default_rng(0)
    scene = np.cumsum(rng.random(length) < 1 / 75)
    means = rng.normal(size=(scene[-1] + 1, DIM)).astype(np.float32)
    noise = rng.normal(size=(length, DIM)).astype(np.float32)
    return means[scene] + noise


def closed_form_seconds(length: int) -> float:
    """Median CPU seconds of our way."""
    features = scenes(length)
    return cpu_seconds(lambda: boundary_scores(features, HALF_WIDTH), 15)


def matrix_scores(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Diagonal of the convolution of the full cosine matrix with a checkerboard, zero padded."""
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    side = torch.ones(HALF_WIDTH)
    v = torch.cat([side, torch.zeros(1), -side])
    matrix = (unit @ unit.T)[None, None]
    out = torch.nn.functional.conv2d(matrix, torch.outer(v, v)[None, None], padding=HALF_WIDTH)
    scores: NDArray[np.float32] = out[0, 0].diagonal().numpy()
    return scores


if __name__ == "__main__":
    main()
