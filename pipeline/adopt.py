"""A file that was renamed, or is there twice: its rows are copied to the new id, not made again.

The id of a video is its name, so another name is another input. Rows of stages that depend on
nothing but the content of the file (`Stage.by_content`) are the same ones, though.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from data.store import ItemKey, Store
from pipeline.stage import StageSet
from pipeline.survey import Inventory, Ledger, Survey

__all__ = ["adopt"]

_Content: TypeAlias = tuple[str, int, int]


def adopt(
    store: Store,
    stages: StageSet,
    inventory: Inventory,
    ledger: Ledger,
    target_bytes: int,
    tell: Callable[[str], None],
) -> int:
    """Copy stored rows to ids of the same content that lack them.

    Args:
        store: where the rows are.
        stages: those that are about to run.
        inventory: where everything stands.
        ledger: reads what is stored.
        target_bytes: size of a shard.
        tell: is told how many rows were copied.

    Returns:
        How many rows, of all stages together.

    Raises:
        StoreError: the store cannot be read or written.
    """
    copied = 0
    for stage in stages.stages:
        one = inventory.surveys[stage.name]
        if not stage.by_content or not one.todo:
            continue
        reader = ledger.reader(one.recipe)
        if reader is None:
            continue
        writer = store.writer(one.recipe, target_bytes=target_bytes)
        stored = reader.keys()
        pairs = list(_pairs(one, {_content(key): key for key in stored}))
        for wanted, there in pairs:
            writer.add(replace(reader.part(there), key=wanted))
        writer.flush()
        if pairs:
            ids = len({wanted.id for wanted, _ in pairs})
            tell(f"{stage.name}: the rows of {ids:,} videos are there under another name: copied")
        copied += len(pairs)
    return copied


def _pairs(one: Survey, there: Mapping[_Content, ItemKey]) -> Iterator[tuple[ItemKey, ItemKey]]:
    """What is to do, and the stored row of the same content."""
    for keys in one.todo.values():
        for key in keys:
            found = there.get(_content(key))
            if found is not None:
                yield key, found


def _content(key: ItemKey) -> _Content:
    return key.content, key.part, key.parts
