"""What do the matcher without host synchronisation and the one-softmax ranking loss cost on a CPU?

    python benchmarks/matcher.py [--check] [--batch 32]

The matcher replaces one scipy call per sample and layer, written as the public code does it. On a
GPU its gain is that nothing waits for the device; here only its own work is measured, and on a CPU
scipy is faster from three moments on: the figures say by how much. Five is the most that a query
keeps. The ranking loss replaces eleven contrasts by one weighted log-softmax. Both give the same
values as what they replace, which is checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from harness import Benchmark, median_ratio
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.retrieval.parts.losses import rank_losses
from models.retrieval.parts.matcher import assign

LAYERS, QUERIES, CLIPS = 2, 10, 75


def main() -> None:
    """Compare values, then times."""
    question = "What do the batched matcher and the one-softmax ranking loss cost on a CPU?"
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--batch", type=int, default=32, help="queries per step")
    bench = Benchmark(question, parser)
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    batch: int = bench.args.batch

    # Targets: about half of the lowest of five runs on two cores that others were using as well.
    for moments, at_least in ((1, 1.0), (2, 0.7), (3, 0.3), (5, 0.04)):
        cost = torch.rand(LAYERS * batch, moments, QUERIES, generator=rng)
        mask = torch.ones(cost.shape[:2], dtype=torch.bool)
        assert torch.equal(assign(cost, mask), by_scipy(cost))
        compare(
            bench,
            f"matching {moments} of {QUERIES}",
            lambda cost=cost: by_scipy(cost),
            lambda cost=cost, mask=mask: assign(cost, mask),
            at_least=at_least,
        )

    scores = torch.randn(batch, 2 * CLIPS, generator=rng)
    labels = torch.randint(0, 13, scores.shape, generator=rng).float()
    clips = torch.ones_like(labels, dtype=torch.bool)
    torch.testing.assert_close(rank_losses(scores, labels, clips).mean(), by_loop(scores, labels))
    compare(
        bench,
        "ranking loss",
        lambda: by_loop(scores, labels),
        lambda: rank_losses(scores, labels, clips).mean(),
        at_least=1.3,
    )
    bench.finish()


def compare(
    bench: Benchmark,
    name: str,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    *,
    at_least: float,
) -> None:
    """Add the time of ours, and theirs over ours beside the target."""
    _, seconds, ratio = median_ratio(repeated(theirs), repeated(ours), repeats=7)
    bench.figure(name, 1e3 * seconds / 50, unit="ms")
    bench.figure(f"{name}: scipy or loop / ours", ratio, unit="x", at_least=at_least)


def repeated(work: Callable[[], object]) -> Callable[[], object]:
    """`work` fifty times, so that a clock tick is nothing."""
    return lambda: [work() for _ in range(50)]


def by_scipy(cost: Tensor) -> Tensor:
    """Copy to the CPU, then one sample after the other."""
    found = [torch.as_tensor(linear_sum_assignment(each)[1]) for each in cost.cpu().numpy()]
    return torch.stack(found)


def by_loop(scores: Tensor, labels: Tensor) -> Tensor:
    """One contrast for every label from 1 to 11."""
    total = scores.new_zeros(())
    for step in range(1, 12):
        positive = labels >= step
        logits = scores / 0.5
        logits = logits - logits.amax(1, keepdim=True)
        log_p = logits - torch.log(logits.exp().sum(1, keepdim=True) + 1e-6)
        mean = (positive * log_p).sum(1) / (positive.sum(1) + 1e-6)
        total = total - (mean * (positive.sum(1) > 0)).mean()
    return total / 12


if __name__ == "__main__":
    main()
