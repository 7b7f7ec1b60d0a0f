"""Where each input of each stage stands: stored, to do, waiting, in quarantine, blocked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from data.store import CatalogueEntry, Failure, ItemKey, Recipe, StageReader, Store
from data.store.place import Place
from data.store.recipes import differences, is_import
from data.store.records import FileHashes
from data.video.types import VideoFacts
from pipeline.corpus import Corpus
from pipeline.engine.types import UNKNOWN_CONTENT, Task
from pipeline.program import PROBE, Program
from pipeline.shared_batches import together
from pipeline.stage import FrameStage, Given, Item, Stage, StageSet

__all__ = [
    "Inventory",
    "Ledger",
    "State",
    "Survey",
    "count_tasks",
    "facts_from_row",
    "survey",
    "tasks_of",
]

T = TypeVar("T")

State: TypeAlias = Literal["present", "todo", "waiting", "quarantined", "blocked"]


class Ledger:
    """What a store says about a program; an absent store says that there is nothing.

    Args:
        store: the store, or None where none was created yet.
    """

    def __init__(self, store: Store | None) -> None:
        self.store = store
        self.damage: list[str] = []
        """Shards that could not be read; their rows count as missing."""
        self.unread: dict[str, str] = {}
        """The same by place."""
        self._readers: dict[str, StageReader] = {}
        self._hashes: _Kept[FileHashes] = _Kept()
        self._catalogue: _Kept[Mapping[str, CatalogueEntry]] = _Kept()

    def reader(self, recipe: Recipe) -> StageReader | None:
        """A reader of what is there now; its shards stay open from one survey to the next."""
        if self.store is None or recipe.id not in self.store.recipes(recipe.stage):
            return None
        reader = self._readers.get(recipe.id)
        if reader is None:
            reader = self.store.reader(recipe.stage, recipe.id, strict=False)
            self._readers[recipe.id] = reader
        else:
            reader.refresh()
        return reader

    def present(self, recipe: Recipe) -> frozenset[ItemKey]:
        """Keys that are stored under a recipe."""
        reader = self.reader(recipe)
        if reader is None:
            return frozenset()
        self.damage += [each.message for each in reader.problems]
        self.unread.update({each.where: each.message for each in reader.problems})
        return reader.keys()

    def failures(self, recipe: Recipe) -> dict[tuple[str, str, int], Failure]:
        """What was given up under a recipe."""
        if self.store is None:
            return {}
        return self.store.failures(recipe.stage, recipe.id).read()

    def hash_of(self, path: Path) -> str | None:
        """Remembered sha256 of a file."""
        if self.store is None:
            return None
        if self._hashes.value is None:
            self._hashes.value = self.store.file_hashes()
        return self._hashes.value.hash_of(path)

    def unhashed(self, items: Iterable[Item]) -> list[Item]:
        """Videos of the catalogue whose files were never hashed on this machine."""
        unknown = [each for each in items if each.key.content == UNKNOWN_CONTENT]
        if self.store is None or not unknown:
            return []
        catalogue, hashes = self.catalogue(), self._hashes.value or self.store.file_hashes()
        return [
            each
            for each in unknown
            if each.key.id in catalogue and each.video and not hashes.knows(each.video.path)
        ]

    def catalogue(self) -> Mapping[str, CatalogueEntry]:
        """Present content and facts of each video."""
        if self.store is None:
            return {}
        return self._catalogue.get(self.store.path / "videos.jsonl", self.store.catalogue)

    def refresh(self) -> None:
        """Look whether hashes were remembered since."""
        if self.store is not None:
            hashes = self.store.file_hashes
            self._hashes.get(self.store.path / "cache" / "files.jsonl", hashes)

    def change(self, recipe: Recipe) -> str:
        """In which points a recipe differs from the current one of the store; "" if in none."""
        if self.store is None:
            return ""
        current = self.store.current.get(recipe.stage, recipe.id)
        if current == recipe.id or current not in self.store.recipes(recipe.stage):
            return ""
        before = self.store.recipe(recipe.stage, current)
        if is_import(before):
            return f"imported rows ({current}) are read until these are complete"
        return differences(before.to_json(), recipe.to_json())


class _Kept(Generic[T]):
    """What was read of a file, for as long as the file is the same."""

    def __init__(self) -> None:
        self.value: T | None = None
        self._stamp: tuple[int, ...] | None = None

    def get(self, path: Place, read: Callable[[], T]) -> T:
        """The value; read again if the file changed, or cannot be told to be the same."""
        stamp = _stamp(path)
        if self.value is None or stamp is None or stamp != self._stamp:
            self.value, self._stamp = read(), stamp
        return self.value


def _stamp(path: Place) -> tuple[int, ...] | None:
    if not isinstance(path, Path):
        return None
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@dataclass
class Survey:
    """Where each input of one stage stands.

    Args:
        stage: the stage.
        recipe: its recipe.
        states: state of each input by id; one in parts is to do as long as a part is.
        todo: keys to work on, in order.
        failures: what is in quarantine.
    """

    stage: Stage
    recipe: Recipe
    states: dict[str, State] = field(default_factory=dict)
    todo: dict[str, list[ItemKey]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def count(self, *states: State) -> int:
        """Number of inputs in any of these states."""
        return sum(state in states for state in self.states.values())


@dataclass
class Inventory:
    """All surveys of a program, and the inputs that they are about."""

    program: Program
    videos: list[Item]
    queries: list[Item]
    surveys: dict[str, Survey]

    @property
    def quarantined(self) -> list[Failure]:
        """Everything that is in quarantine."""
        return [each for one in self.surveys.values() for each in one.failures]

    @property
    def busy(self) -> list[Stage]:
        """The stages that have something to do, now or after others."""
        made = [one for one in self.surveys.values() if not isinstance(one.stage, Given)]
        return [one.stage for one in made if one.count("todo", "waiting")]


def survey(
    program: Program,
    corpus: Corpus,
    ledger: Ledger,
    *,
    retry: frozenset[str] = frozenset(),
    only: Sequence[str] | None = None,
) -> Inventory:
    """Compare what is wanted with what is there.

    Args:
        program: the stages.
        corpus: the inputs.
        ledger: what the store says.
        retry: stages whose quarantined inputs are to be worked on again.
        only: look at these stages and what they read; None means all.
    """
    ledger.refresh()
    ledger.damage.clear()
    ledger.unread.clear()
    videos = corpus.video_items(ledger.hash_of)
    inventory = Inventory(program, videos, list(corpus.queries), {})
    needed = _with_upstream(program, only)
    for stage in program.stages:
        if stage.name in needed:
            inventory.surveys[stage.name] = _survey_stage(stage, inventory, ledger, retry)
    return inventory


def _with_upstream(program: Program, only: Sequence[str] | None) -> set[str]:
    stages = {stage.name: stage for stage in program.stages}
    waiting = list(stages if only is None else only)
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += stages[name].upstream
    return needed


def _survey_stage(
    stage: Stage, inventory: Inventory, ledger: Ledger, retry: frozenset[str]
) -> Survey:
    recipe = inventory.program.recipes[stage.name]
    result = Survey(stage, recipe)
    present = ledger.present(recipe)
    failures = {} if stage.name in retry else ledger.failures(recipe)
    before = _with_upstream(inventory.program, [stage.name]) - {stage.name}
    if isinstance(stage, Given):
        before = {PROBE} & inventory.surveys.keys()
    upstream = [inventory.surveys[name].states for name in before]
    facts = _Facts(ledger, inventory.program) if _is_in_parts(stage) else None
    items = inventory.queries if stage.over == "queries" else inventory.videos
    for item in items:
        blocker = _blocker(item.key.id, upstream)
        if blocker is None or item.key.content != UNKNOWN_CONTENT:
            parts = stage.parts(facts.of(item.key) if facts and blocker is None else None)
            _place(result, item, parts, present, failures, blocker)
        else:
            result.states[item.key.id] = blocker
    return result


def _place(
    result: Survey,
    item: Item,
    parts: int,
    present: frozenset[ItemKey],
    failures: Mapping[tuple[str, str, int], Failure],
    blocker: State | None,
) -> None:
    """Enter one input into a survey."""
    whole = [item.key]
    keys = whole if parts == 1 else [replace(item.key, part=n, parts=parts) for n in range(parts)]
    missing = [key for key in keys if key not in present]
    failed = [failure for key in missing if (failure := _failure(item, key, failures))]
    if not missing:
        result.states[item.key.id] = "present"
    elif blocker is not None:
        result.states[item.key.id] = blocker
    elif isinstance(result.stage, Given):
        result.states[item.key.id] = "blocked"
    else:
        gone = {failure.key.part for failure in failed}
        todo = [key for key in missing if key.part not in gone]
        result.failures += failed
        result.states[item.key.id] = "todo" if todo else "quarantined"
        if todo:
            result.todo[item.key.id] = todo


def _failure(
    item: Item, key: ItemKey, failures: Mapping[tuple[str, str, int], Failure]
) -> Failure | None:
    failure = failures.get((key.id, key.content, key.part))
    if failure is None or key.content != UNKNOWN_CONTENT or item.video is None:
        return failure
    # A file that was missing and is there now is a new input.
    appeared = failure.reason == "missing" and item.video.path.is_file()
    return None if appeared else failure


def _blocker(id_: str, upstream: Sequence[Mapping[str, State]]) -> State | None:
    states = [states[id_] for states in upstream if id_ in states]
    if any(state in ("quarantined", "blocked") for state in states):
        return "blocked"
    return None if all(state == "present" for state in states) else "waiting"


def _is_in_parts(stage: Stage) -> bool:
    return type(stage).parts is not Stage.parts


class _Facts:
    """What the probe found, for one video after the other."""

    def __init__(self, ledger: Ledger, program: Program) -> None:
        recipe = program.recipes.get(PROBE)
        self._reader = ledger.reader(recipe) if recipe is not None else None

    def of(self, key: ItemKey) -> VideoFacts | None:
        if self._reader is None:
            return None
        return facts_from_row(self._reader.facts(key.id, key.content))


def facts_from_row(facts: Mapping[str, Any]) -> VideoFacts:
    """What the probe found, from the facts of its row."""
    names = {each.name for each in fields(VideoFacts)}
    return VideoFacts(**{name: value for name, value in facts.items() if name in names})


# --- tasks


def tasks_of(stages: StageSet, inventory: Inventory, ledger: Ledger) -> Iterator[Task]:
    """What is to do for one stage set, made one by one as workers ask."""
    surveys = [inventory.surveys[name] for name in stages.names]
    first = stages.stages[0]
    items = inventory.queries if first.over == "queries" else inventory.videos
    after_probe = PROBE in _with_upstream(inventory.program, [first.name]) - {first.name}
    facts = _Facts(ledger, inventory.program) if after_probe else None
    if isinstance(first, FrameStage) and first.shares_batches:
        yield from _sharing(first, items, surveys[0], facts)
        return
    group: list[Item] = []
    for item in items:
        todo = {one.stage.name: one.todo[item.key.id] for one in surveys if item.key.id in one.todo}
        if not todo:
            continue
        item = replace(item, facts=facts.of(item.key)) if facts else item
        if len(surveys) > 1:
            yield Task((item,), tuple(todo))
            continue
        for key in todo[first.name]:
            group.append(replace(item, key=key))
            if len(group) >= first.group_size:
                yield Task(tuple(group), stages.names)
                group = []
    if group:
        yield Task(tuple(group), stages.names)


def count_tasks(stages: StageSet, inventory: Inventory, ledger: Ledger) -> int:
    """How many tasks `tasks_of` gives."""
    first, *others = stages.stages
    if isinstance(first, FrameStage) and first.shares_batches:
        return sum(1 for _ in tasks_of(stages, inventory, ledger))
    todo = [inventory.surveys[name].todo.values() for name in stages.names]
    return math.ceil(
        max(sum(map(len, each)) for each in todo) / (1 if others else first.group_size)
    )


def _sharing(
    stage: FrameStage, items: Iterable[Item], survey: Survey, facts: _Facts | None
) -> Iterator[Task]:
    """Tasks of a stage that shares batches; it is always alone in its set."""

    def due() -> Iterator[Item]:
        for item in items:
            keys = survey.todo.get(item.key.id, ())
            if keys and facts:
                item = replace(item, facts=facts.of(item.key))
            yield from (replace(item, key=key) for key in keys)

    def amount(item: Item) -> int:
        return stage.amount(item.facts, item.key.part) if item.facts is not None else 1

    for group in together(due(), amount, stage.batch_size):
        yield Task(group, (stage.name,))
