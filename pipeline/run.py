"""`pipeline run`: everything that is asked for and not in the store yet, stage set by stage set."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data.commands import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_QUARANTINE, EXIT_WRONG
from data.errors import UsageError
from data.store import CatalogueEntry, Failure, Recipe, Store
from data.store.recipes import is_import
from data.video.types import VideoFacts
from pipeline.adopt import adopt
from pipeline.config import PipelineConfig
from pipeline.cost import Budget, gpu_here, limit_of
from pipeline.engine.exposure import warning
from pipeline.engine.limits import Limits
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.spent import TimeOfWorkers
from pipeline.engine.stop import StopFlag
from pipeline.engine.tally import Tally, Watcher
from pipeline.engine.types import Executor, Job, StageSetupError, Unit, unit_of
from pipeline.handout import HandOut
from pipeline.heal import Healer
from pipeline.here import lacks, notices_of
from pipeline.measure import samples_of
from pipeline.paces import Pace, remember_pace
from pipeline.packing import Packer
from pipeline.plan import Plan, make_plan
from pipeline.program import PROBE, Program
from pipeline.progress import LimitOf
from pipeline.stage import Item, StageSet
from pipeline.survey import Inventory, Ledger, count_tasks, facts_from_row, survey, tasks_of
from pipeline.throughput import usable_cpus
from pipeline.view import View, look

__all__ = ["Result", "Run", "StageWatcher", "View", "look"]

_ROUNDS = 3
"""How often a run goes round its stages when rows or files turn out not to be what they were."""


class StageWatcher(Watcher, Protocol):
    """Who is told how the stages of a run go."""

    def begin(self, stage: str, total: int, before: int) -> None:
        """A stage begins."""
        ...

    def end(self, stage: str) -> None:
        """A stage ended."""
        ...

    def limit(self, stage: str, limit: LimitOf) -> None:
        """How much a stage that began can do at most."""
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
        healed: what was set aside of the store on the way, in sentences.
        unread: why rows that a stage reads could not be read in the end; "" if they could.
        interrupted: whether the run was asked to stop before its end.
        worked: whether there was anything to do.
        times: where the time of the workers went, for each set of stages that had work.
    """

    plan: Plan
    failures: list[Failure] = field(default_factory=list)
    partial: dict[str, int] = field(default_factory=dict)
    short: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    healed: list[str] = field(default_factory=list)
    unread: str = ""
    interrupted: bool = False
    worked: bool = False
    times: list[tuple[tuple[str, ...], TimeOfWorkers]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 complete; 1 a stage could not be set up; 75 interrupted; 4 everything is there, but
        a shard cannot be read, so readers refuse its stage; 3 with quarantine.
        """
        if self.broken:
            return EXIT_FAILED
        if self.plan.missing:
            return EXIT_INTERRUPTED
        if self.plan.damage:
            return EXIT_WRONG
        held_up = any(line.quarantined or line.blocked for line in self.plan.lines)
        return EXIT_QUARANTINE if held_up else 0


class Run:
    """One `pipeline run`.

    Args:
        config: what to do and how.
        view: what the config names.
        make_executor: makes the executor when the first stage has something to do.
        watcher: who is told.
        stop: the wish to stop.
        most_gpu_hours: captions that will cost more are not begun.
    """

    def __init__(
        self,
        config: PipelineConfig,
        view: View,
        make_executor: Callable[[Program], Executor],
        watcher: StageWatcher,
        stop: StopFlag,
        most_gpu_hours: float | None = None,
    ) -> None:
        self.config = config
        self.view = view
        self.watcher = watcher
        self.stop = stop
        self.budget = None if most_gpu_hours is None else Budget(config, most_gpu_hours)
        self.store = Store.open_or_create(
            view.store, dataset=config.dataset, clip_len_s=config.clip_len_s
        )
        self.ledger = Ledger(self.store)
        self.broken: dict[str, str] = {}
        self.times: list[tuple[tuple[str, ...], TimeOfWorkers]] = []
        self._make_executor = make_executor
        self._executor: Executor | None = None
        self._healer = Healer(self.store, watcher)
        self._go_round = False
        self._retry: frozenset[str] = frozenset()
        self._unread = ""

    def run(self, *, retry_failed: bool = False) -> Result:
        """Work on everything that is missing; with `retry_failed` on what is in quarantine, too.

        Raises:
            UsageError: this machine lacks what a stage with something to do needs.
        """
        for split, rows in self.view.annotations.items():
            self.store.save_annotations(split, rows)
        names = frozenset(self.view.program.recipes) if retry_failed else frozenset()
        inventory = self._survey(retry=names)
        for note in self.view.notes:
            self.watcher.note(note)
        if self._healer.heal(self.ledger.unread):
            inventory = self._survey(retry=names)
        if self._adopt(inventory):
            inventory = self._survey(retry=names)
        worked = make_plan(inventory, self.ledger).missing > 0
        if worked:
            self._check_machine(inventory)
            for notice in notices_of(inventory.busy):
                self.watcher.note(notice)
            self._check_budget(inventory)
            try:
                self._run_rounds(names)
            finally:
                if self._executor is not None:
                    self._executor.close()
            inventory = self._survey()
        elif PROBE in self.view.program.recipes:
            self._update_catalogue(inventory)
        self._announce_complete(inventory)
        self._announce_shared()
        return self._result(inventory, worked)

    def _check_machine(self, inventory: Inventory) -> None:
        """UsageError now, not after the stages before have decoded everything."""
        if missing := lacks(self.config, inventory.busy):
            raise UsageError("; ".join(missing))

    def _check_budget(self, inventory: Inventory) -> None:
        """UsageError before the first caption; how many there are is known after the probe."""
        if self.budget is not None:
            self.budget.check(inventory, self.ledger, self.watcher.note)

    def _survey(
        self, *, retry: frozenset[str] = frozenset(), only: Sequence[str] | None = None
    ) -> Inventory:
        view = self.view
        return survey(view.program, view.corpus, self.ledger, retry=retry, only=only)

    def _run_rounds(self, retry: frozenset[str]) -> None:
        """Go round all sets; again, a few times, if the store or the files changed meanwhile."""
        for _ in range(_ROUNDS):
            self._go_round, self._unread = False, ""
            self._run_sets(retry)
            if self.stop or not self._go_round:
                return
            retry = frozenset()
            self._survey()
            self._healer.heal(self.ledger.unread)

    def _run_sets(self, retry: frozenset[str]) -> None:
        self._retry = retry
        for stages in self.view.program.sets:
            waiting = [stages]
            while waiting and not self.stop:
                some = waiting.pop(0)
                waiting += self._run_set(some, retry & frozenset(some.names))

    def _run_set(self, stages: StageSet, retry: frozenset[str]) -> list[StageSet]:
        """Run one set; what is left to run of it if one of its stages cannot be set up."""
        inventory = self._survey(retry=retry, only=stages.names)
        busy = tuple(
            each
            for each in stages.stages
            if inventory.surveys[each.name].todo and each.name not in self.broken
        )
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
            self._adopt(self._survey())
            self._check_budget(self._survey(retry=self._retry))
        self._announce_complete(self._survey(only=stages.names))
        return []

    def _adopt(self, inventory: Inventory) -> bool:
        """Copy rows that are there under another name; whether there were some."""
        target_bytes = int(self.config.engine.shard_mb * 2**20)
        note, stop = self.watcher.note, lambda: bool(self.stop)
        found = adopt(self.store, inventory, self.ledger, target_bytes, note, stop)
        return self._healer.heal(found.damaged) or found.rows > 0

    def _work(self, stages: StageSet, inventory: Inventory, retry: frozenset[str]) -> None:
        recipes = inventory.program.recipes
        executor = self._started()
        if executor is None:
            return
        failures = {name: self.store.failures(name, recipes[name].id) for name in stages.names}
        surveys = [inventory.surveys[name] for name in stages.names]
        for one in surveys:
            if one.stage.name in retry:
                log = failures[one.stage.name]
                known = log.read()
                again = (key for keys in one.todo.values() for key in keys)
                log.forget(key for key in again if (key.id, key.content, key.part) in known)
            total = sum(map(len, one.todo.values()))
            self.watcher.begin(one.stage.name, total, one.count("present"))
        todo = {id_ for one in surveys for id_ in one.todo}
        samples = samples_of([each for each in inventory.videos if each.key.id in todo])
        job, told = executor.fit(self._job(stages, inventory), samples)
        if told:
            self.watcher.note(told)
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
        room = executor.capacity(job)
        if isinstance(self.config.engine.workers, int) and room < self.config.engine.workers:
            self.watcher.note(f"{room} of {self.config.engine.workers} workers fit")
        most = count_tasks(stages, inventory, self.ledger)
        due = HandOut(job.recipes, self.ledger.reader, self.ledger.hash_of, self.watcher)
        target_bytes = job.shard_bytes
        packer = Packer(self.store, stages, job.recipes, target_bytes, self.watcher)
        tasks = packer.beside(due.only(tasks_of(stages, inventory, self.ledger)))
        self._tell_limits(stages, min(room, most))
        try:
            tally = scheduler.run(tasks, min(room, most), most)
        except BaseException:
            packer.end(hurried=True)
            raise
        packer.end(hurried=bool(self.stop))
        self._remember_paces(stages, recipes, tally)
        self.times.append((stages.names, tally.time))
        self._take_note(tally, due.changed)
        for one in surveys:
            self.watcher.end(one.stage.name)

    def _tell_limits(self, stages: StageSet, workers: int) -> None:
        for stage in stages.stages:
            limit = limit_of(stage, gpu_here(stage.context.device), workers)
            if limit is not None:
                self.watcher.limit(stage.name, limit)

    def _remember_paces(
        self, stages: StageSet, recipes: Mapping[str, Recipe], tally: Tally
    ) -> None:
        """How fast captions came, for the next plan."""
        gpu = gpu_here(self.config.context.device)
        for stage in stages.stages:
            counts = tally.counts.get(stage.name, Counter())
            made, reused = counts["captions"] - counts["reused"], counts["reused"]
            if stage.counts and made > 0:
                id_ = recipes[stage.name].id
                tokens, work_s = counts["new_tokens"], tally.time.work_s
                remember_pace(self.store, Pace(id_, gpu, made, reused, tokens, work_s))

    def _take_note(self, tally: Tally, changed: set[str]) -> None:
        """What a set met that is nobody's fault: mend what can be mended, and go round again."""
        if tally.unread:
            self._healer.heal(tally.damaged)
            self._unread = next(iter(tally.damaged.values()), tally.unread_because)
        self._go_round |= bool(tally.unread or tally.changed or changed)

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
            attempts=engine.attempts.by_cause,
            timeout_s=engine.timeout_s,
            setup_timeout_s=engine.setup_timeout_s,
            grace_s=engine.grace_s,
        )

    def _started(self) -> Executor | None:
        """The executor; None if SIGTERM came while Ray was starting, whose handler then exits."""
        if self._executor is None:
            engine = self.config.engine
            exposed = warning(engine.address, os.environ) if engine.executor == "ray" else ""
            if exposed:
                self.watcher.note(exposed)
            try:
                self._executor = self._make_executor(self.view.program)
            except SystemExit:
                self.stop.request()
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
            self._announce(_complete(inventory))

    def _announce_shared(self) -> None:
        """The job of the last share to end sees that all others are there, too."""
        if self.view.everything is not None and not self.stop:
            inventory = survey(self.view.program, self.view.everything, self.ledger)
            self._announce(_complete(inventory))

    def _announce(self, names: Iterable[str]) -> None:
        current = self.store.current
        recipes = {name: self.view.program.recipes[name] for name in names}
        news = {name: one for name, one in recipes.items() if current.get(name) != one.id}
        for recipe in news.values():
            # A recipe that readers are sent to must be there before its first row.
            self.store.writer(recipe)
        if news:
            for name in news.keys() & current.keys():
                self._note_import(name, current[name])
            self.store.set_current({name: recipe.id for name, recipe in news.items()})

    def _note_import(self, stage: str, before: str) -> None:
        """Say so where readers are sent away from rows that somebody imported."""
        if before in self.store.recipes(stage) and is_import(self.store.recipe(stage, before)):
            self.watcher.note(
                f"readers of '{stage}' were sent to imported rows ({before}); now to those of this "
                "run (the others stay until `pipeline gc`)"
            )

    def _update_catalogue(self, inventory: Inventory) -> None:
        """Enter the probed videos that the catalogue lacks."""
        known = self.ledger.catalogue()
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
            healed=self._healer.told,
            unread=self._unread,
            interrupted=bool(self.stop),
            worked=worked,
            times=self.times,
        )

    def _facts_of_videos(self, inventory: Inventory) -> dict[str, VideoFacts]:
        """What probing found, of the videos of this run that were probed."""
        if PROBE not in inventory.surveys:
            return {}
        known: Mapping[str, CatalogueEntry] = self.ledger.catalogue()
        found = {item.key.id: _facts(known.get(item.key.id)) for item in inventory.videos}
        return {id: facts for id, facts in found.items() if facts is not None}


def _complete(inventory: Inventory) -> list[str]:
    """Stages with rows, of which nothing is left to do."""
    return [
        name
        for name, one in inventory.surveys.items()
        if one.count("present") and not one.count("todo", "waiting")
    ]


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
    return max(usable_cpus(), math.ceil(widest * workers))


def _facts(entry: CatalogueEntry | None) -> VideoFacts | None:
    return None if entry is None else entry.facts
