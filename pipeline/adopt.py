"""A file that was renamed, or is there twice: its rows are copied to the new id, not made again.

The id of a video is its name, so another name is another input. Rows of stages that depend on
nothing but the content of the file (`Stage.by_content`) are the same ones, though; so is what was
kept of rows that are not finished.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from data.errors import DamageError, GoneError
from data.store import ItemKey, Row, Store
from data.store.reader import StageReader
from pipeline.survey import Inventory, Ledger, Survey

__all__ = ["Adopted", "adopt", "there_already"]

_Content: TypeAlias = tuple[str, int, int]


@dataclass
class Adopted:
    """What was copied.

    Args:
        rows: of all stages together.
        damaged: shards with rows that would have served and are damaged: place to sentence.
    """

    rows: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def adopt(
    store: Store,
    inventory: Inventory,
    ledger: Ledger,
    target_bytes: int,
    tell: Callable[[str], None],
    stop: Callable[[], bool] = bool,
) -> Adopted:
    """Copy stored rows to ids of the same content that lack them, also to those in quarantine.

    Args:
        store: where the rows are.
        inventory: where everything stands.
        ledger: reads what is stored.
        target_bytes: size of a shard.
        tell: is told of how many videos rows were copied.
        stop: whether to end early; what was copied until then stays.

    Raises:
        StoreError: the store cannot be read or written. Damaged rows are no error: they are made
            again.
    """
    done = Adopted()
    for one in inventory.surveys.values():
        if not stop():
            _adopt_kept(store, one)
            _adopt_rows(store, one, ledger, target_bytes, tell, stop, done)
    return done


def there_already(one: Survey, ledger: Ledger) -> dict[ItemKey, list[ItemKey]]:
    """Of the keys that a stage lacks those whose rows are stored under other ids, and which."""
    wanted = _wanted(one)
    reader = ledger.reader(one.recipe) if wanted else None
    return {} if reader is None else _same_content(wanted, reader.keys())


def _wanted(one: Survey) -> list[ItemKey]:
    """What a stage lacks, whether it is to do or in quarantine."""
    if not one.stage.by_content:
        return []
    todo = [key for keys in one.todo.values() for key in keys]
    return todo + [each.key for each in one.failures]


def _same_content(
    wanted: Sequence[ItemKey], stored: Iterable[ItemKey]
) -> dict[ItemKey, list[ItemKey]]:
    contents = {_content(key) for key in wanted}
    by_content: defaultdict[_Content, list[ItemKey]] = defaultdict(list)
    for key in sorted(stored, key=lambda key: key.id):
        if _content(key) in contents:
            by_content[_content(key)].append(key)
    pairs = {key: by_content[_content(key)] for key in wanted if _content(key) in by_content}
    return {key: others for key, others in pairs.items() if key not in others}


def _content(key: ItemKey) -> _Content:
    return key.content, key.part, key.parts


def _adopt_rows(
    store: Store,
    one: Survey,
    ledger: Ledger,
    target_bytes: int,
    tell: Callable[[str], None],
    stop: Callable[[], bool],
    done: Adopted,
) -> None:
    pairs, reader = there_already(one, ledger), ledger.reader(one.recipe)
    if not pairs or reader is None:
        return
    writer = store.writer(one.recipe, target_bytes=target_bytes)
    ids: set[str] = set()
    for wanted, others in pairs.items():
        row = None if stop() else _first_whole(reader, others, done.damaged)
        if row is not None:
            writer.add(replace(row, key=wanted))
            ids.add(wanted.id)
            done.rows += 1
    writer.flush()
    if ids:
        videos = "1 video" if len(ids) == 1 else f"{len(ids):,} videos"
        tell(f"{one.stage.name}: rows of {videos} are there under another name and were copied")


def _first_whole(
    reader: StageReader, keys: Iterable[ItemKey], damaged: dict[str, str]
) -> Row | None:
    for key in keys:
        try:
            return reader.part(key)
        except GoneError:
            continue  # another run set its shard aside
        except DamageError as error:
            damaged[error.shard] = str(error)
    return None


def _adopt_kept(store: Store, one: Survey) -> None:
    """What an earlier attempt left of a part under another id serves under this one, too."""
    wanted = _wanted(one)
    if not wanted or one.recipe.id not in store.recipes(one.stage.name):
        return
    unfinished = store.unfinished(one.stage.name, one.recipe.id)
    kept: Mapping[ItemKey, list[ItemKey]] = _same_content(wanted, unfinished.keys())
    for key, others in kept.items():
        if text := unfinished.of(others[0]):
            unfinished.keep(key, text)
