"""Damaged shards on the way of a run are set aside, so that the run makes their rows again."""

from __future__ import annotations

from collections.abc import Mapping

from data.errors import StoreError
from data.store import Store
from data.store.place import place_of
from data.store.salvage import Salvage, salvage_shard
from pipeline.engine.tally import Watcher

__all__ = ["Healer"]


class Healer:
    """Sets shards aside whose bytes are not what was written, each once, and says so.

    A shard that cannot be read for another reason (disk, network, another version) stays.

    Args:
        store: the store.
        watcher: who is told.
    """

    def __init__(self, store: Store, watcher: Watcher) -> None:
        self._store = store
        self._watcher = watcher
        self._tried: set[str] = set()
        self.told: list[str] = []
        """What was set aside, in sentences."""

    def heal(self, shards: Mapping[str, str]) -> bool:
        """Salvage shards (place to what a reader said of them); whether one was set aside."""
        before = len(self.told)
        for where, said in shards.items():
            if where not in self._tried:
                self._tried.add(where)
                self._salvage(where, said)
        return len(self.told) > before

    def _salvage(self, where: str, said: str) -> None:
        try:
            done = salvage_shard(self._store, place_of(where))
        except StoreError as error:
            self._watcher.note(f"a shard cannot be read and stays where it is: {said} ({error})")
            return
        if done.set_aside is not None:
            self.told.append(_sentence(where, done))
            self._watcher.note(self.told[-1])


def _sentence(where: str, done: Salvage) -> str:
    lost = f"{len(done.lost)} rows of it are" if done.kept or done.lost else "what was in it is"
    return (
        f"damaged shard {where} {done.why}: set aside as {done.set_aside}; {len(done.kept)} rows "
        f"of it are kept, {lost} made again"
    )
