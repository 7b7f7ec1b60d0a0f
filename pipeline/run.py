"""`pipeline run`: everything that is asked for and not in the store yet, stage set by stage set."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from data.annotations import DATASETS, dataset_of, load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from data.identity import check_id
from data.store import CatalogueEntry, Failure, Store
from data.video.types import Video, VideoFacts
from pipeline.config import PipelineConfig
from pipeline.corpus import Corpus, query_items
from pipeline.engine.scheduler import Limits, Scheduler, Watcher
from pipeline.engine.stop import StopFlag
from pipeline.engine.types import Executor, Job, StageSetupError, Unit, unit_of
from pipeline.plan import Plan, make_plan
from pipeline.program import PROBE, Program
from pipeline.stage import STAGES, Item, StageSet
from pipeline.survey import Inventory, Ledger, facts_from_row, survey, tasks_of

__all__ = ["Result", "Run", "StageWatcher", "look"]


class StageWatcher(Watcher, Protocol):
    """Who is told how the stages of a run go."""

    def begin(self, stage: str, total: int, before: int) -> None:
        """A stage begins."""
        ...

    def end(self, stage: str) -> None:
        """A stage ended."""
        ...


@dataclass
class Result:
    """How a run ended.

    Args:
        plan: where everything stands now.
        failures: what is in quarantine, of this run and of earlier ones.
        partial: damaged videos that were kept: id and number of undecodable packets.
        short: videos shorter than half a clip, which have one clip all the same: id and seconds.
        broken: stages that could not be set up, with the sentence why.
        interrupted: whether the run was asked to stop before its end.
        worked: whether there was anything to do.
    """

    plan: Plan
    failures: list[Failure] = field(default_factory=list)
    partial: dict[str, int] = field(default_factory=dict)
    short: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    worked: bool = False

    @property
    def exit_code(self) -> int:
        """0 complete, 3 with quarantine, 75 interrupted, 1 a stage could not be set up."""
        if self.broken:
            return 1
        if self.plan.missing:
            return 75
        held_up = any(line.quarantined or line.blocked for line in self.plan.lines)
        return 3 if held_up else 0


@dataclass(frozen=True)
class View:
    """A config turned into what the loop needs."""

    program: Program
    corpus: Corpus
    annotations: Mapping[str, list[Annotation]]
    store: Path
    left_out: tuple[str, ...] = ()
    """Stages over queries of a config without annotations, if nobody asked for them by name."""
    whole: bool = True
    """False where `--limit` leaves inputs out: then no complete recipe comes of it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user does not get, and how to get it."""
        return tuple(
            f"{name}: left out, the config has no queries; add `annotations: {{train: FILE}}`"
            for name in self.left_out
        )


def look(config: PipelineConfig, asked: Sequence[str], limit: int | None) -> View:
    """Read everything that a config names; writes nothing.

    Raises:
        UsageError: unknown stage, missing folder or key, bad annotation file, ...
    """
    if config.store is None:
        raise UsageError("no store is given; add `store: FOLDER` to the config, or --set store=...")
    annotations = _read_annotations(config)
    options = config.stage_options
    left_out = () if asked or annotations else _over_queries(options)
    wanted = {name: each for name, each in options.items() if name not in left_out}
    program = Program.build(config.context, wanted, asked)
    if not program.stages:
        raise UsageError("no stage is asked for; name one with --stage, or add `stages:`")
    over = {stage.over for stage in program.stages}
    if "queries" in over and not annotations:
        names = ", ".join(each.name for each in program.stages if each.over == "queries")
        raise UsageError(
            f"stage {names} works on queries and the config has none; "
            "add `annotations: {train: FILE}`, or leave the stage out"
        )
    videos = _list_videos(config) if "videos" in over else ()
    corpus = Corpus(tuple(videos), query_items(annotations) if "queries" in over else ())
    some = corpus.first(limit)
    return View(program, some, annotations, config.store, left_out, whole=some == corpus)


class Run:
    """One `pipeline run`.

    Args:
        config: what to do and how.
        view: what the config names.
        make_executor: makes the executor when the first stage has something to do.
        watcher: who is told.
        stop: the wish to stop.
    """

    def __init__(
        self,
        config: PipelineConfig,
        view: View,
        make_executor: Callable[[Program], Executor],
        watcher: StageWatcher,
        stop: StopFlag,
    ) -> None:
        self.config = config
        self.view = view
        self.watcher = watcher
        self.stop = stop
        self.store = Store.open_or_create(
            view.store, dataset=config.dataset, clip_len_s=config.clip_len_s
        )
        self.ledger = Ledger(self.store)
        self.broken: dict[str, str] = {}
        self._make_executor = make_executor
        self._executor: Executor | None = None

    def run(self, *, retry_failed: bool = False) -> Result:
        """Work on everything that is missing; with `retry_failed` on what is in quarantine, too."""
        for split, rows in self.view.annotations.items():
            self.store.save_annotations(split, rows)
        names = frozenset(self.view.program.recipes) if retry_failed else frozenset()
        inventory = self._survey(retry=names)
        for note in self.view.notes:
            self.watcher.note(note)
        for damage in self.ledger.damage:
            self.watcher.note(f"rows of a damaged shard count as missing: {damage}")
        worked = make_plan(inventory, self.ledger).missing > 0
        if worked:
            try:
                self._run_sets(names)
            finally:
                if self._executor is not None:
                    self._executor.close()
            inventory = self._survey()
        elif PROBE in self.view.program.recipes:
            self._update_catalogue(inventory)
        self._announce_complete(inventory)
        return self._result(inventory, worked)

    def _survey(
        self, *, retry: frozenset[str] = frozenset(), only: Sequence[str] | None = None
    ) -> Inventory:
        view = self.view
        return survey(view.program, view.corpus, self.ledger, retry=retry, only=only)

    def _run_sets(self, retry: frozenset[str]) -> None:
        for stages in self.view.program.sets:
            waiting = [stages]
            while waiting and not self.stop:
                some = waiting.pop(0)
                waiting += self._run_set(some, retry & frozenset(some.names))

    def _run_set(self, stages: StageSet, retry: frozenset[str]) -> list[StageSet]:
        """Run one set; what is left to run of it if one of its stages cannot be set up."""
        inventory = self._survey(retry=retry, only=stages.names)
        busy = tuple(each for each in stages.stages if inventory.surveys[each.name].todo)
        self._announce_first(stages)
        try:
            if busy:
                self._work(StageSet(busy), inventory, retry)
        except StageSetupError as error:
            self.watcher.note(str(error))
            if error.stage == "":
                return [StageSet((each,)) for each in busy]
            self.broken[error.stage] = str(error)
            rest = tuple(each for each in stages.stages if each.name != error.stage)
            return [StageSet(rest)] if rest else []
        if PROBE in stages.names:
            self._update_catalogue(self._survey(only=[PROBE]))
        self._announce_complete(self._survey(only=stages.names))
        return []

    def _work(self, stages: StageSet, inventory: Inventory, retry: frozenset[str]) -> None:
        recipes = inventory.program.recipes
        executor = self._started()
        failures = {name: self.store.failures(name, recipes[name].id) for name in stages.names}
        surveys = [inventory.surveys[name] for name in stages.names]
        for one in surveys:
            if one.stage.name in retry:
                failures[one.stage.name].forget(key for keys in one.todo.values() for key in keys)
            total = sum(map(len, one.todo.values()))
            self.watcher.begin(one.stage.name, total, one.count("present"))
        job = self._job(stages, inventory)
        scheduler = Scheduler(
            job,
            executor,
            self._limits(),
            failures,
            self.store.file_hashes(),
            self._durable,
            self.watcher,
            self.stop,
        )
        tasks = max(sum(map(len, one.todo.values())) for one in surveys)
        size = stages.stages[0].group_size if len(surveys) == 1 else 1
        room = executor.capacity(job)
        if isinstance(self.config.engine.workers, int) and room < self.config.engine.workers:
            self.watcher.note(f"{room} of {self.config.engine.workers} workers fit")
        workers = min(room, math.ceil(tasks / size))
        scheduler.run(tasks_of(stages, inventory, self.ledger), workers)
        for one in surveys:
            self.watcher.end(one.stage.name)

    def _job(self, stages: StageSet, inventory: Inventory) -> Job:
        engine = self.config.engine
        recipes = inventory.program.recipes
        return Job(
            stages=stages,
            recipes={name: recipes[name] for name in stages.names},
            upstream={up: recipes[up].id for each in stages.stages for up in each.upstream},
            store=self.view.store,
            shard_bytes=int(engine.shard_mb * 2**20),
            commit_every_s=engine.commit_every_s,
        )

    def _limits(self) -> Limits:
        engine = self.config.engine
        return Limits(
            attempts=engine.attempts,
            timeout_s=engine.timeout_s,
            setup_timeout_s=engine.setup_timeout_s,
        )

    def _started(self) -> Executor:
        if self._executor is None:
            self._executor = self._make_executor(self.view.program)
            # Ray puts its own handler for SIGTERM in place when it starts.
            self.stop.install()
        return self._executor

    def _durable(self, units: Mapping[Unit, Item]) -> set[Unit]:
        """Which of these units are on disk."""
        recipes = self.view.program.recipes
        present = {name: self.ledger.present(recipes[name]) for name in {unit[0] for unit in units}}
        return {
            unit_of(unit[0], item.key)
            for unit, item in units.items()
            if item.key in present[unit[0]]
        }

    def _announce_first(self, stages: StageSet) -> None:
        """Send readers to a recipe as soon as it begins where they have nothing else to read."""
        current = self.store.current
        self._announce(
            name
            for name in stages.names
            if name not in current or not self.store.shards(name, current[name])
        )

    def _announce_complete(self, inventory: Inventory) -> None:
        """Send readers to another recipe than before when its rows are there, not earlier."""
        if self.view.whole:
            self._announce(
                name
                for name, one in inventory.surveys.items()
                if one.count("present") and not one.count("todo", "waiting")
            )

    def _announce(self, names: Iterable[str]) -> None:
        current = self.store.current
        recipes = {name: self.view.program.recipes[name] for name in names}
        news = {name: one for name, one in recipes.items() if current.get(name) != one.id}
        for recipe in news.values():
            # A recipe that readers are sent to must be there before its first row.
            self.store.writer(recipe)
        if news:
            self.store.set_current({name: recipe.id for name, recipe in news.items()})

    def _update_catalogue(self, inventory: Inventory) -> None:
        """Enter the probed videos that the catalogue lacks."""
        known = self.store.catalogue()
        states = inventory.surveys[PROBE].states
        lacking = [
            item.key
            for item in inventory.videos
            if states[item.key.id] == "present"
            and (item.key.id not in known or known[item.key.id].content != item.key.content)
        ]
        if lacking:
            reader = self.store.reader(PROBE, self.view.program.recipes[PROBE].id, strict=False)
            self.store.update_catalogue(
                CatalogueEntry(
                    key.id, key.content, facts_from_row(reader.facts(key.id, key.content))
                )
                for key in lacking
            )

    def _result(self, inventory: Inventory, worked: bool) -> Result:
        facts = self._facts_of_videos(inventory)
        half_a_clip_s = self.store.clip_len_s / 2
        return Result(
            plan=make_plan(inventory, self.ledger),
            failures=inventory.quarantined,
            partial={id: each.damaged for id, each in facts.items() if each.damaged},
            short={
                id: each.duration_s for id, each in facts.items() if each.duration_s < half_a_clip_s
            },
            broken=self.broken,
            interrupted=bool(self.stop),
            worked=worked,
        )

    def _facts_of_videos(self, inventory: Inventory) -> dict[str, VideoFacts]:
        """What probing found, of the videos of this run that were probed."""
        if PROBE not in inventory.surveys:
            return {}
        known: Mapping[str, CatalogueEntry] = self.store.catalogue()
        found = {item.key.id: _facts(known.get(item.key.id)) for item in inventory.videos}
        return {id: facts for id, facts in found.items() if facts is not None}


def ray_or_inline(config: PipelineConfig) -> Callable[[Program], Executor]:
    """The executor that a config asks for; Ray is imported when it is made."""

    def make(program: Program) -> Executor:
        engine = config.engine
        if engine.executor == "inline":
            from pipeline.engine.inline import InlineExecutor

            return InlineExecutor()
        from pipeline.engine.ray_workers import RayExecutor

        workers = None if engine.workers == "auto" else engine.workers
        return RayExecutor(engine.address, _logical_cpus(config, program), workers)

    return make


def _logical_cpus(config: PipelineConfig, program: Program) -> int:
    """Enough for the workers that are asked for, on a machine however small."""
    if config.engine.cpus != "auto":
        return config.engine.cpus
    workers = 1 if config.engine.workers == "auto" else config.engine.workers
    widest = max(stage.resources.cpus for stage in program.stages)
    return max(os.cpu_count() or 1, math.ceil(widest * workers))


def _facts(entry: CatalogueEntry | None) -> VideoFacts | None:
    return None if entry is None else entry.facts


def _list_videos(config: PipelineConfig) -> tuple[Video, ...]:
    from data.video import DECODERS, list_videos

    for name in (config.decode.backend, *config.decode.fallbacks):
        # A decoder of one's own, `module:Class`, is imported where it decodes.
        if ":" not in name:
            DECODERS.get(name)
    if config.videos.root is None:
        raise UsageError(
            "no videos are given; add `videos: {root: FOLDER}` to the config, "
            "or --set videos.root=FOLDER"
        )
    return list_videos(config.videos.root).videos


def _read_annotations(config: PipelineConfig) -> dict[str, list[Annotation]]:
    name = config.annotations_format or dataset_of(config.dataset).name
    splits = {split: load_annotations(name, path) for split, path in config.annotations.items()}
    for split, rows in splits.items():
        check_id(split, what="split of `annotations`")
        if any(row.saliency is not None for row in rows):
            _check_saliency_grid(name, config.annotations[split], config.clip_len_s)
    return splits


def _check_saliency_grid(dataset: str, file: Path, clip_len_s: float) -> None:
    """Saliency belongs to clips by number, so it means nothing on clips of another length."""
    scored_s = DATASETS.get(dataset).clip_len_at(file)
    if scored_s != clip_len_s:
        raise UsageError(
            f"the saliency scores in {file} belong to clips of {scored_s:g} s (format "
            f"'{dataset}'), but clip_len_s is {clip_len_s:g}; set clip_len_s: {scored_s:g}, or "
            "leave the saliency fields out of the file"
        )


def _over_queries(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if STAGES.get(name).over == "queries")
