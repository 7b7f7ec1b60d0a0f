"""Tasks whose items fill batches together, so that short videos do not mean small batches.

A part of a long video fills a batch alone; what is left over of long videos, and short ones, are
put together by best fit. Never does a task of several items hold more than one batch: whatever
ends a worker costs one batch, or one part if that is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.stage import Item

__all__ = ["together"]

_OPEN = 32
"""Batches that are filled at a time; more fill better and come later."""


@dataclass
class _Bin:
    room: int
    items: list[Item] = field(default_factory=list)


def together(
    items: Iterable[Item], amount: Callable[[Item], int], batch_size: int
) -> Iterator[tuple[Item, ...]]:
    """The items in groups, each item once.

    Args:
        items: in any order.
        amount: about how many windows an item has.
        batch_size: windows of a batch.
    """
    bins: list[_Bin] = []
    for item in items:
        size = max(1, amount(item))
        if size >= batch_size:
            yield (item,)
            continue
        fitting = [each for each in bins if each.room >= size]
        if fitting:
            best = min(fitting, key=lambda each: each.room)
        else:
            best = _Bin(batch_size)
            bins.append(best)
        best.items.append(item)
        best.room -= size
        if best.room == 0 or len(bins) > _OPEN:
            full = min(bins, key=lambda each: each.room)
            bins.remove(full)
            yield tuple(full.items)
    for each in sorted(bins, key=lambda each: each.room):
        yield tuple(each.items)
