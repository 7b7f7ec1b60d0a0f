"""One process or several (`torchrun`): who writes, what is averaged, what all must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import UsageError

__all__ = ["ALONE", "World", "device_of", "joined"]


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Args:
        rank: of this process; rank 0 evaluates and writes.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process evaluates and writes."""
        return self.rank == 0

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over processes of scalars that all of them have."""
        if not values:
            return {}
        stacked = torch.stack([value.double() for value in values.values()])
        if self.size > 1:
            dist.all_reduce(stacked)
            stacked /= self.size
        return dict(zip(values, stacked.tolist(), strict=True))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is set in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag), device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The value of rank 0, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that `torchrun` started; alone where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def device_of(name: str, option: str = "loop.device") -> torch.device:
    """The device of a name; `auto` is a GPU if there is one.

    Args:
        name: as given.
        option: where it was given, for error messages.

    Raises:
        UsageError: no such device on this machine.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"{option}={name!r} is no device; allowed: auto, cpu, cuda") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"{option}={name}, but torch sees no GPU here; use cpu or auto")
        device = torch.device("cuda", local if device.index is None else device.index)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UsageError(f"{option}={name!r} is not supported; allowed: auto, cpu, cuda")
    return device
