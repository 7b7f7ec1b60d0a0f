"""Tasks as workers ask for them, without those that are not due any more: another job has stored
their rows meanwhile, or their file was replaced since the survey.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from data.errors import StoreError
from data.store import Recipe, StageReader
from pipeline.engine.content import stamp_of, video_content
from pipeline.engine.tally import Watcher
from pipeline.engine.types import UNKNOWN_CONTENT, Task
from pipeline.stage import Item

__all__ = ["HandOut"]

_LOOK_EVERY_S = 30.0

_LOOK_SHARE = 0.05


class HandOut:
    """Filters tasks when they are handed out, which may be days after the survey.

    Args:
        recipes: recipe of each stage of the tasks.
        reader_of: reads what is stored under a recipe now; None if nothing is.
        hash_of: remembered sha256 of a file; None if it is another file by now.
        watcher: who is told.
        look_every_s: how often the store is looked at, in seconds.
        look_share: at most this part of the time goes into looking.
    """

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        reader_of: Callable[[Recipe], StageReader | None],
        hash_of: Callable[[Path], str | None],
        watcher: Watcher,
        look_every_s: float = _LOOK_EVERY_S,
        look_share: float = _LOOK_SHARE,
    ) -> None:
        self._recipes = recipes
        self._reader_of = reader_of
        self._hash_of = hash_of
        self._watcher = watcher
        self._look_every_s = look_every_s
        self._look_share = look_share
        self._look_at = time.monotonic() + look_every_s
        self._readers: dict[str, StageReader | None] = {}
        self._told = False
        self.changed: set[str] = set()
        """Ids of videos whose file was replaced since the survey."""

    def only(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The tasks that are due."""
        for task in tasks:
            self._look()
            items = [item for each in task.items if (item := self._as_surveyed(each)) is not None]
            due = self._without_present(items, task.stages)
            if due is not None:
                yield due

    def _look(self) -> None:
        began = time.monotonic()
        if began < self._look_at:
            return
        for name, recipe in self._recipes.items():
            # A disk that does not answer now is no reason to stop: what is there is made twice.
            with suppress(StoreError, OSError):
                self._readers[name] = self._reader_of(recipe)
        now = time.monotonic()
        self._look_at = now + max(self._look_every_s, (now - began) / self._look_share)

    def _without_present(self, items: list[Item], stages: tuple[str, ...]) -> Task | None:
        """A task of what is not stored by now; a group goes on with what a stage lacks."""
        lacking = {item.key: [s for s in stages if not self._is_present(s, item)] for item in items}
        rest = [item for item in items if lacking[item.key]]
        for item in items:
            for stage in stages:
                if stage not in lacking[item.key]:
                    self._tell(stage)
        if not rest:
            return None
        return Task(tuple(rest), tuple(lacking[rest[0].key]) if len(rest) == 1 else stages)

    def _is_present(self, stage: str, item: Item) -> bool:
        reader = self._readers.get(stage)
        return reader is not None and reader.holds(item.key)

    def _tell(self, stage: str) -> None:
        self._watcher.advance(stage, done=1)
        if not self._told:
            self._told = True
            self._watcher.note("another job works on the same store; what it stores is not redone")

    def _as_surveyed(self, item: Item) -> Item | None:
        """The item with the stamp of its file; None if that was replaced since the survey."""
        if item.video is None or item.key.content == UNKNOWN_CONTENT:
            return item
        try:
            stamp = stamp_of(item.video.path.stat())
            sha256 = self._hash_of(item.video.path)
        except OSError:
            return item  # its stage will say why
        if sha256 is None or video_content(item.video, sha256) != item.key.content:
            if item.key.id not in self.changed:
                self.changed.add(item.key.id)
                self._watcher.note(
                    f"{item.video.path} was replaced since this run began; it is a new input"
                )
            return None
        return replace(item, stamp=stamp)
