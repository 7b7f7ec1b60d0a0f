"""Rows of a batch in all processes that train together (`torch.distributed`, if it was joined)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["rows_of_all"]


@torch.no_grad()
def rows_of_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Rows of every process, by rank; what was given where a process is alone.

    All processes must call it, each with any number of rows. They exchange the numbers first,
    because a collective needs equal shapes, and pad to the largest; this waits for the device once.

    Args:
        tensors: each (B, …), of one device, with one B; B may differ between processes.

    Returns:
        each (ΣB, …), without gradient, the same in every process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(tensors)
    count = tensors[0].new_tensor([len(tensors[0])], dtype=torch.int64)
    counts: list[int] = torch.cat(_from_all(count)).tolist()
    return [_without_padding(_from_all(_padded(x, max(counts))), counts) for x in tensors]


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x.detach(), x.new_zeros(rows - len(x), *x.shape[1:])])


def _without_padding(parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _from_all(x: Tensor) -> list[Tensor]:
    """The tensor of every rank; shapes and types must be equal."""
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x.contiguous())
    return found
