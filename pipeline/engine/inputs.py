"""Rows of other stages, as a worker reads them for the item at hand."""

from __future__ import annotations

from collections.abc import Mapping

from data.errors import DamageError, StoreError
from data.store import ItemKey, Row, StageReader, Store
from pipeline.engine.types import UpstreamError

__all__ = ["StoreInputs"]


class StoreInputs:
    """Rows of other stages for the item at hand (`pipeline.stage.Inputs`).

    Args:
        store: where they are.
        upstream: recipe id of every stage that may be read.
    """

    def __init__(self, store: Store, upstream: Mapping[str, str]) -> None:
        self._store = store
        self._recipes = dict(upstream)
        self._readers: dict[str, StageReader] = {}
        self._key: ItemKey | None = None

    def turn_to(self, key: ItemKey) -> None:
        """From now on rows are those of `key`'s id and content."""
        self._key = key

    def row(self, stage: str) -> Row:
        """The row of `stage` for the item at hand, all parts joined.

        Raises:
            UpstreamError: it cannot be read now.
        """
        if self._key is None:
            raise ValueError("rows are asked for before any item")
        if stage not in self._recipes:
            raise ValueError(f"rows of stage '{stage}' are read but it is not in `upstream`")
        try:
            if stage not in self._readers:
                self._readers[stage] = self._store.reader(stage, self._recipes[stage], strict=False)
            return self._readers[stage].row(self._key.id, self._key.content)
        except DamageError as error:
            raise UpstreamError(str(error), error.shard) from error
        except (StoreError, OSError) as error:
            # The next reader looks at the folder anew.
            self._readers.pop(stage, None)
            raise UpstreamError(str(error)) from error
