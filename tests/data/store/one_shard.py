"""Rows written as one shard and made current."""

from __future__ import annotations

from data.store import Recipe, Row, ShardRef, Store
from data.store.place import Place

__all__ = ["place_of", "write"]


def write(store: Store, recipe: Recipe, rows: list[Row]) -> ShardRef:
    with store.writer(recipe) as writer:
        for row in rows:
            writer.add(row)
        shard = writer.flush()
    assert shard is not None
    store.set_current({recipe.stage: recipe.id})
    return shard


def place_of(store: Store, recipe: Recipe, rows: list[Row]) -> Place:
    """The same; where the shard is."""
    return store.folder(recipe.stage, recipe.id) / write(store, recipe, rows).name
