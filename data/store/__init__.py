"""The store: a directory of immutable HDF5 shards, the only thing that the two programs share."""

from data.store.reader import Problem, StageReader
from data.store.records import CatalogueEntry, Failure, FailureLog, FileHashes
from data.store.store import ShardRef, ShardWriter, Store
from data.store.types import SCHEMA_VERSION, ItemKey, Recipe, Row, Schema, StreamSpec

__all__ = [
    "SCHEMA_VERSION",
    "CatalogueEntry",
    "Failure",
    "FailureLog",
    "FileHashes",
    "ItemKey",
    "Problem",
    "Recipe",
    "Row",
    "Schema",
    "ShardRef",
    "ShardWriter",
    "StageReader",
    "Store",
    "StreamSpec",
]
