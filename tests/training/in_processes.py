"""Work in several processes that have joined a group, as those of `torchrun` do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

__all__ = ["in_processes"]


def in_processes(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)`, a function of a module, returned in each process; tensors and plain
    values."""
    multiprocessing.spawn(_join, (count, work, folder), nprocs=count)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _join(rank: int, count: int, work: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
