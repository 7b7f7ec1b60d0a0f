"""Packs the small shards of stages that write each row at once, beside the run and at its end.

A shard per part is what makes a kill cheap, and thousands of them make a store slow to open. So
they are merged (`data.store.compact`) now and then by a thread of the driver, while workers go on.
Nothing depends on it: what could not be packed is said, and `pipeline compact` does it later.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping

from data.errors import StorylineError
from data.store import Recipe, Store
from data.store.compact import pack
from pipeline.engine.tally import Watcher
from pipeline.engine.types import Task
from pipeline.stage import StageSet

__all__ = ["Packer"]

_EVERY = 512
"""Tasks, so about shards, between two packings: opening 500 shards takes about a second."""


class Packer:
    """Merges small shards of the stages of a set whose rows are written one by one.

    Args:
        store: the store.
        stages: the set.
        recipes: recipe of each of the stages.
        target_bytes: size of a shard, about.
        watcher: who is told what could not be done.
        every: tasks between two packings.
    """

    def __init__(
        self,
        store: Store,
        stages: StageSet,
        recipes: Mapping[str, Recipe],
        target_bytes: int,
        watcher: Watcher,
        every: int = _EVERY,
    ) -> None:
        self._store = store
        self._recipes = [recipes[each.name] for each in stages.stages if each.commit_each]
        self._target_bytes = target_bytes
        self._watcher = watcher
        self._every = every
        self._thread: threading.Thread | None = None
        self._trouble = ""
        self._hurried = False

    def beside(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The same tasks; after some of them a packing begins."""
        for number, task in enumerate(tasks, 1):
            if number % self._every == 0:
                self._begin()
            yield task

    def end(self, *, hurried: bool = False) -> None:
        """Wait for a packing that has begun, and pack what is left.

        Args:
            hurried: leave what is left for the next run.
        """
        self._hurried = hurried
        if self._thread is not None:
            self._thread.join()
        if not hurried:
            self._pack()
        if self._trouble:
            self._watcher.note(f"small shards were left as they are: {self._trouble}")

    def _begin(self) -> None:
        if self._recipes and not (self._thread is not None and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._pack, name="packer")
            self._thread.start()

    def _is_wanted(self) -> bool:
        return not self._hurried

    def _pack(self) -> None:
        self._trouble = ""  # that of an earlier packing, which this one makes good
        for recipe in self._recipes:
            try:
                go_on = self._is_wanted
                pack(self._store, recipe.stage, recipe.id, self._target_bytes, go_on)
                unfinished = self._store.unfinished(recipe.stage, recipe.id)
                if unfinished.any():
                    reader = self._store.reader(recipe.stage, recipe.id, strict=False)
                    unfinished.sweep(reader.keys())
            except (StorylineError, OSError) as error:
                self._trouble = str(error)
