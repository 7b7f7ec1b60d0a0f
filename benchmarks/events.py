"""Boundary scores by the closed form against the self-similarity matrix and a convolution.

The matrix way is what the public one-shot detector does (specs/llmepet_and_pseudo_events.md §4.1):
all cosines, a 5x5 checkerboard convolution over the whole matrix, and its diagonal. One thread;
512-d float32 features of scenes with noise; medians of CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/events.py --check
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Benchmark, cpu_seconds
from numpy.typing import NDArray

from pipeline.events.parser import parse
from pipeline.events.scorers import make_scorer
from pipeline.events.scores import boundary_scores

DIM, HALF_WIDTH = 512, 2
OPTIONS: tuple[Mapping[str, Any], ...] = (
    {"half_widths": [2], "similarity": "cosine"},
    {"half_widths": [8], "similarity": "cosine"},
    {"half_widths": [2, 4, 8], "similarity": "cosine"},
    {"half_widths": [8], "similarity": "l2"},
    {"half_widths": [8], "similarity": "sqeuclidean"},
)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    bench = Benchmark("How much does the closed form of boundary scores save?")
    # The specs measured 4.5 s for the convolution at L = 3,000 and 85 s at 12,000; newer builds of
    # torch need a tenth of that, so the ratio says as much about torch as about us.
    for length, repeats, target in ((1_000, 5, None), (3_000, 5, 500.0), (12_000, 1, 2_000.0)):
        features = scenes(length)
        ours = closed_form_seconds(length)
        bench.figure(f"closed form, L = {length:,}", 1e3 * ours, "ms")
        if not fits(length):
            print(f"The matrix way at L = {length:,} is left out: too little memory is free.")
            continue
        by_matrix = cpu_seconds(partial(matrix_scores, features), repeats)
        bench.figure(f"matrix and conv2d, L = {length:,}", 1e3 * by_matrix, "ms")
        bench.figure(f"ratio, L = {length:,}", by_matrix / ours, "x", at_least=target)
        if length <= 3_000:
            gap = np.abs(matrix_scores(features) - boundary_scores(features, HALF_WIDTH)).max()
            bench.figure(f"largest difference, L = {length:,}", gap, "", at_most=1e-4)
    short, long = (closed_form_seconds(length) for length in (3_000, 12_000))
    bench.figure("time(12,000) / time(3,000)", long / short, "x", at_most=6)
    for options in OPTIONS:
        features = scenes(12_000)
        name = ", ".join(f"{key} {value}" for key, value in options.items())
        scoring = partial(all_scores, features, **options)
        bench.figure(f"12,000 clips, {name}", 1e3 * cpu_seconds(scoring, 3), "ms")
        grown = peak_bytes(scoring) / (features.size * 4)
        bench.figure("  memory beyond the features, in L·D·4 bytes", grown, "", at_most=3)
    hours = scenes(100_000)
    parsing = cpu_seconds(lambda: parse(hours, 1.0, 1e5), 3)
    bench.figure("parse, 100,000 clips", parsing, "s", at_most=1.5)
    hours = np.random.default_rng(1).normal(size=hours.shape).astype(np.float32)
    parsing = cpu_seconds(lambda: parse(hours, 1.0, 1e5), 3)
    bench.figure("parse, 100,000 clips of noise (33,000 splits)", parsing, "s", at_most=1.5)
    bench.finish()


def scenes(length: int) -> NDArray[np.float32]:
    """Features (length, 512): a new mean every 75 clips on average, and noise."""
    rng = np.random.default_rng(0)
    scene = np.cumsum(rng.random(length) < 1 / 75)
    means = rng.normal(size=(scene[-1] + 1, DIM)).astype(np.float32)
    noise = rng.normal(size=(length, DIM)).astype(np.float32)
    return means[scene] + noise


def fits(length: int) -> bool:
    """Whether the matrix, its copies and im2col of the 5x5 kernel fit into free memory."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 80 * length**2 < free


def all_scores(features: NDArray[np.float32], **options: Any) -> NDArray[np.float64]:
    """Scores of the whole video by any scorer."""
    return make_scorer(features, **options).segment(0, len(features))


def peak_bytes(work: Callable[[], object]) -> int:
    """Most memory held at once on top of what is held now."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


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
