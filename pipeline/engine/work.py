"""What a worker does: items to rows, rows to shards. Plain Python, whoever runs it.

An error of one stage of the set fails that stage for that item and nothing else; an error of the
decoder fails the item for all stages; an error of the store, or of what the user asked for (a
decoder that cannot be imported), is nobody's input and is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from data.errors import EngineDiedError, InputError, StoreError
from data.store import Row, Store
from data.video.types import FrameRequest, SoundRequest
from pipeline.engine.batches import AnyWindow, Batches, Share
from pipeline.engine.content import Watch, read_content, stamp_of
from pipeline.engine.inputs import StoreInputs
from pipeline.engine.outcomes import (
    attempt,
    changed,
    outcome_of,
    raise_if_nobodys,
    setup_sentence,
)
from pipeline.engine.shelf import Shelf
from pipeline.engine.spent import Stopwatch
from pipeline.engine.types import (
    UNKNOWN_CONTENT,
    FileHash,
    Job,
    Outcome,
    Report,
    StageSetupError,
    Task,
)
from pipeline.stage import FrameStage, Item, RowStage, SoundStage, Stage, UnfinishedError

if TYPE_CHECKING:
    from data.video import IsolatedDecoder

__all__ = ["Worker"]

_AHEAD = 3
"""Items that are decoded ahead for a stage that shares batches: what its next batch is made of."""


class Worker:
    """Runs the stages of one set on the tasks it is given and writes their shards.

    Args:
        job: what to run and where to write.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stages = {stage.name: stage for stage in job.stages.stages}
        self._shares = any(_shares_batches(stage) for stage in job.stages.stages)
        self._decoder: IsolatedDecoder | None = None
        self._clock = Stopwatch()
        self._findings = _Findings()

    def setup(self) -> None:
        """Open the store and build the networks.

        Raises:
            StageSetupError: a stage cannot be set up.
        """
        store = Store.open(self.job.store)
        self._inputs = StoreInputs(store, self.job.upstream)
        self._shelf = Shelf(store, self.job, self._clock)
        if any(isinstance(each, FrameStage | SoundStage) for each in self._stages.values()):
            self._open_decoder().warm()  # it starts while the networks are built
        for name, stage in self._stages.items():
            try:
                stage.setup()
            except Exception as error:
                raise StageSetupError(name, setup_sentence(name, error)) from error
            self._shelf.open(stage)

    def run(self, task: Task, upcoming: Task | None = None) -> Report:
        """Work on one task; decode what comes next meanwhile.

        Raises:
            StageSetupError: what the user asked of a stage cannot be had; rows that were made are
                written.
            EngineDiedError: what a stage computes with is lost; the same.
            OSError, StoreError: the store cannot be written.
        """
        self._clock.begin()
        try:
            if self._shares:
                self._run_together(task, upcoming)
            else:
                self._run_one_by_one(task, upcoming)
        except (EngineDiedError, StageSetupError):
            with suppress(OSError, StoreError):  # then they are made again
                self._shelf.write()
            raise
        self._shelf.write_due()
        return self._report()

    def flush(self) -> Report:
        """Write everything that is held.

        Raises:
            OSError, StoreError: the store cannot be written.
        """
        self._clock.begin()
        self._shelf.write()
        return self._report()

    def close(self) -> None:
        """Release the decoder and what the stages hold."""
        if self._decoder is not None:
            self._decoder.close()
        for stage in self._stages.values():
            stage.close()

    def _report(self) -> Report:
        found, self._findings = self._findings, _Findings()
        return Report(
            tuple(found.outcomes),
            self._shelf.take(),
            tuple(found.hashes),
            self._clock.take(),
            {stage: dict(sums) for stage, sums in found.counts.items()},
        )

    # --- items

    def _begin(self, item: Item, stages: Sequence[str]) -> _Due | None:
        """What is to do for an item; None if that is nothing."""
        watch = Watch(item)
        try:
            with self._clock.on("files"):
                known, read = _with_content(item)
        except InputError as error:
            self._findings.outcomes += [outcome_of(stage, item.key, error) for stage in stages]
            return None
        if watch.changed:
            self._findings.outcomes += [changed(stage, item) for stage in stages]
            return None
        self._findings.hashes += read
        there = [name for name in stages if read and known.key in self._shelf.stored(name)]
        self._findings.outcomes += [Outcome(name, known.key, "present") for name in there]
        return _Due(known, [name for name in stages if name not in there], watch)

    def _run_one_by_one(self, task: Task, upcoming: Task | None) -> None:
        for number, item in enumerate(task.items):
            if (due := self._begin(item, task.stages)) is not None:
                self._run_item(due, self._following(task, number, upcoming))
                self._commit(task.stages)

    def _run_item(self, due: _Due, following: Sequence[_Next]) -> None:
        stages = [self._stages[name] for name in due.stages]
        framed = [each for each in stages if isinstance(each, FrameStage)]
        results = self._results(due.item, framed, following) if framed else {}
        self._inputs.turn_to(due.item.key)
        for stage in stages:
            if isinstance(stage, SoundStage):
                results |= self._results(due.item, [stage], following)
            if isinstance(stage, RowStage):
                item = self._own(stage, due.item)
                with self._clock.on("stage"):
                    results[stage.name] = attempt(stage.process, item, self._inputs)
        self._keep_all(due, results)

    def _results(
        self, item: Item, stages: Sequence[FrameStage | SoundStage], following: Sequence[_Next]
    ) -> dict[str, Row | Exception]:
        """One decode of the item's video for all `stages`."""
        shares = [self._share(stage, item) for stage in stages]
        self._decode(item, shares, following)
        return {each.stage.name: each.result() for each in shares}

    def _run_together(self, task: Task, upcoming: Task | None) -> None:
        """Items whose windows share batches; a row is kept as soon as its last batch is done."""
        (stage,) = (each for each in self._stages.values() if isinstance(each, FrameStage))
        batches = Batches(stage, self._clock)
        open_: list[tuple[_Due, Share]] = []

        def settle() -> None:
            ended = [each for each in open_ if each[1].ended]
            open_[:] = [each for each in open_ if not each[1].ended]
            for due, share in ended:
                self._keep_all(due, {stage.name: share.result()})
            if ended:
                self._commit([stage.name])

        for number, item in enumerate(task.items):
            if (due := self._begin(item, task.stages)) is not None and due.stages:
                share = self._share(stage, due.item, batches)
                open_.append((due, share))
                self._decode(due.item, [share], self._following(task, number, upcoming), settle)
        batches.drain()
        settle()

    def _keep_all(self, due: _Due, results: dict[str, Row | Exception]) -> None:
        if due.watch.changed:
            self._findings.outcomes += [changed(name, due.item) for name in due.stages]
            return
        for name in due.stages:
            self._findings.outcomes.append(self._keep(name, due.item, results[name]))

    def _keep(self, name: str, item: Item, result: Row | Exception) -> Outcome:
        if isinstance(result, Row):
            error = attempt(self._shelf.add, name, item.key, result)
            if error is None:
                self._findings.count(self._stages[name], result)
                return Outcome(name, item.key, "done")
            result = error
        assert isinstance(result, Exception)
        raise_if_nobodys(name, result)
        if isinstance(result, UnfinishedError):
            self._shelf.keep(name, item.key, result.kept)
        return outcome_of(name, item.key, result)

    def _commit(self, stages: Sequence[str]) -> None:
        """Dear rows are written before anything else is begun."""
        self._shelf.write(name for name in stages if self._stages[name].commit_each)

    # --- frames and sound

    def _share(
        self, stage: FrameStage | SoundStage, item: Item, batches: Batches | None = None
    ) -> Share:
        together = Batches(stage, self._clock) if batches is None else batches
        return Share(stage, self._own(stage, item), together, self._clock)

    def _own(self, stage: Stage, item: Item) -> Item:
        """The item as one stage sees it: with what an earlier attempt left of its row."""
        if not stage.commit_each:
            return item
        return replace(item, kept=self._shelf.kept(stage.name, item.key))

    def _decode(
        self,
        item: Item,
        shares: Sequence[Share],
        following: Sequence[_Next],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Give the shares all their windows; `before` is called before each."""
        asked = {each.stage.name: each for each in shares if each.request is not None}
        with closing(self._windows(item, list(asked.values()))) as windows:
            count = 0
            while not all(each.error for each in shares):
                window = attempt(next, windows, None)
                if window is None:
                    break
                if isinstance(window, Exception):
                    for each in shares:
                        each.fail(window)
                    break
                if count == 0:
                    # Not before the first window: it would take the place of an own one.
                    self._prefetch(following)
                count += 1
                before()
                asked[window.request].take(window)
        for each in shares:
            each.decoded = True

    def _windows(self, item: Item, shares: Sequence[Share]) -> Generator[AnyWindow, None, None]:
        """What the shares ask for, from one pass over the video."""
        requests = [each.request for each in shares]
        if not requests:
            return
        if item.video is None:
            raise ValueError(f"item {item.key.id} goes to stages over frames and has no video")
        decoder = self._open_decoder()
        sounds = [each for each in requests if isinstance(each, SoundRequest)]
        frames = [each for each in requests if isinstance(each, FrameRequest)]
        came: Iterator[AnyWindow] = (
            decoder.sounds(item.video, sounds[0]) if sounds else decoder.windows(item.video, frames)
        )
        yield from self._clock.over("decoder", came)

    def _open_decoder(self) -> IsolatedDecoder:
        if self._decoder is None:
            from data.video import IsolatedDecoder

            context = self.job.stages.stages[0].context
            self._decoder = IsolatedDecoder(
                context.decoder,
                fallbacks=context.fallbacks,
                damaged=context.damaged,
                timeout_s=context.decode_timeout_s,
                limits=context.limits,
                ahead=self._ahead,
            )
        return self._decoder

    @property
    def _ahead(self) -> int:
        return _AHEAD if self._shares else 1

    def _following(self, task: Task, number: int, upcoming: Task | None) -> list[_Next]:
        """The items that come after one of a task, as many as are decoded ahead."""
        tasks = [Task(task.items[number + 1 :], task.stages), *([upcoming] if upcoming else [])]
        coming = (_Next(item, each.stages) for each in tasks for item in each.items)
        return list(islice(coming, self._ahead))

    def _prefetch(self, following: Sequence[_Next]) -> None:
        decoder = self._open_decoder()
        for item, names in following:
            if item.video is None:
                continue
            stages = [each for each in self._stages.values() if each.name in names]
            requests = [
                share.request
                for each in stages
                if isinstance(each, FrameStage | SoundStage)
                and (share := self._share(each, item)).request is not None
            ]
            sounds = [each for each in requests if isinstance(each, SoundRequest)]
            frames = [each for each in requests if isinstance(each, FrameRequest)]
            if sounds:
                decoder.prefetch_sound(item.video, sounds[0])  # no decode is shared with it
            elif frames:
                decoder.prefetch(item.video, frames)


class _Next(NamedTuple):
    """An item that comes soon, for some stages."""

    item: Item
    stages: tuple[str, ...]


@dataclass(frozen=True)
class _Due:
    """An item, the stages that lack its row, and who watches its file."""

    item: Item
    stages: list[str]
    watch: Watch


@dataclass
class _Findings:
    """What one call will report."""

    outcomes: list[Outcome] = field(default_factory=list)
    hashes: list[FileHash] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def count(self, stage: Stage, row: Row) -> None:
        """Add up what a stage wants to have summed of its rows."""
        for name in stage.summed:
            self.counts.setdefault(stage.name, Counter())[name] += int(row.facts.get(name, 0))


def _shares_batches(stage: Stage) -> bool:
    return isinstance(stage, FrameStage) and stage.shares_batches


def _with_content(item: Item) -> tuple[Item, list[FileHash]]:
    """The item with its content known; reads the file if nobody has before."""
    if item.key.content != UNKNOWN_CONTENT or item.video is None:
        return item, []
    content, read = read_content(item.video)
    key = replace(item.key, content=content)
    return replace(item, key=key, stamp=stamp_of(read.stat)), [read]
