"""The rows that a worker has made: held until a shard is due, written, or kept unfinished."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from data.errors import StoreError
from data.store import ItemKey, Row, ShardRef, ShardWriter, Store
from pipeline.engine.spent import Stopwatch
from pipeline.engine.types import Job
from pipeline.stage import Stage

__all__ = ["Shelf"]

_WRITE_AGAIN_S = 1.0


class Shelf:
    """What a worker writes.

    Args:
        store: where to.
        job: the recipes, and when a shard is due.
        clock: of the worker; writing is charged to the store.
    """

    def __init__(self, store: Store, job: Job, clock: Stopwatch) -> None:
        self._store, self._job, self._clock = store, job, clock
        self._writers: dict[str, ShardWriter] = {}
        self._oldest: dict[str, float] = {}
        self._present: dict[str, frozenset[ItemKey]] = {}
        self._written: list[ShardRef] = []
        self._unfinished: dict[str, frozenset[str]] = {}
        self._kept: dict[str, set[ItemKey]] = {}

    def open(self, stage: Stage) -> None:
        """Get ready for the rows of a stage."""
        # Shards are cut by `write_due`: a full disk must not look like a bad row.
        recipe = self._job.recipes[stage.name]
        self._writers[stage.name] = self._store.writer(recipe, target_bytes=1 << 62)

    def stored(self, stage: str) -> frozenset[ItemKey]:
        """What was stored of a stage when this was asked first."""
        if stage not in self._present:
            with self._clock.on("store"):
                reader = self._store.reader(stage, self._job.recipes[stage].id, strict=False)
                self._present[stage] = reader.keys()
        return self._present[stage]

    def add(self, stage: str, key: ItemKey, row: Row) -> None:
        """Hold a row.

        Raises:
            StoreError, ValueError: it is not what the stage declared, or of another item.
        """
        if row.key != key:
            raise ValueError(f"stage '{stage}' was asked for {key} and gave a row for {row.key}")
        self._writers[stage].add(row)
        self._oldest.setdefault(stage, time.monotonic())

    def take(self) -> tuple[ShardRef, ...]:
        """The shards that were written since this was asked last."""
        written, self._written = self._written, []
        return tuple(written)

    # --- unfinished rows

    def kept(self, stage: str, key: ItemKey) -> str:
        """What an earlier attempt left of a row; "" if nothing."""
        with self._clock.on("store"):
            unfinished = self._store.unfinished(stage, self._job.recipes[stage].id)
            if stage not in self._unfinished:
                # Listed once: items are asked for several times, and a server takes its time.
                self._unfinished[stage] = unfinished.listed()
            text = unfinished.of(key, self._unfinished[stage])
        if text:
            self._kept.setdefault(stage, set()).add(key)
        return text

    def keep(self, stage: str, key: ItemKey, text: str) -> None:
        """Leave it for the next attempt."""
        with self._clock.on("store"):
            self._store.unfinished(stage, self._job.recipes[stage].id).keep(key, text)
        self._unfinished.pop(stage, None)

    # --- shards

    def write_due(self) -> None:
        """Write what is large or old enough.

        Raises:
            OSError, StoreError: the store cannot be written.
        """
        now = time.monotonic()
        self.write(
            name
            for name, writer in self._writers.items()
            if writer.pending_bytes >= self._job.shard_bytes
            or now - self._oldest.get(name, now) >= self._job.commit_every_s
        )

    def write(self, stages: Iterable[str] | None = None) -> None:
        """Write everything that is held of some stages; None means all.

        Raises:
            OSError, StoreError: the store cannot be written.
        """
        with self._clock.on("store"):
            for name in list(self._writers if stages is None else stages):
                shard = self._flush(self._writers[name])
                self._oldest.pop(name, None)
                if shard is not None:
                    self._written.append(shard)
                    self._forget(name, shard.keys)

    def _forget(self, stage: str, keys: Sequence[ItemKey]) -> None:
        """What was kept of rows that are on disk now is not needed any more."""
        kept = self._kept.get(stage, set())
        done = [key for key in keys if key in kept]
        if done:
            self._store.unfinished(stage, self._job.recipes[stage].id).forget(done)
            kept.difference_update(done)

    def _flush(self, writer: ShardWriter) -> ShardRef | None:
        """Once more after a short wait: a server that fails over is back, a full disk is not."""
        try:
            return writer.flush()
        except (StoreError, OSError):
            time.sleep(_WRITE_AGAIN_S)
        return writer.flush()
