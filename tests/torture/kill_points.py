"""Section `points`: exit at every change that the store makes to the disk, and go on from there."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import faulty, oracle
from .faulty import Change
from .figures import BrokenError
from .world import Job, World

__all__ = ["run"]

_LONG_AGO_S = 40 * 24 * 3600


@dataclass
class Scene:
    """One command that is killed at each of its changes.

    Args:
        name: for the table.
        prepare: the store before the command.
        words: the command.
        after: what must hold right after the kill, before anything else is run.
        finish: goes on, and checks the end.
    """

    name: str
    prepare: Callable[[Path], Job]
    words: Callable[[Job], list[str]]
    after: Callable[[Job], None]
    finish: Callable[[Job], None]


def run(world: World) -> None:
    """A run over all real stages, and runs and repairs over many small toy shards."""
    scenes = [_real_run(world), *_toy_scenes(world)]
    points = [(scene, point) for scene in scenes for point in _points(world, scene)]
    chosen = _some(world, scenes, points)
    done: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for number, (scene, point) in enumerate(chosen):
        try:
            _try(world, scene, point, world.folder / f"point-{number}")
        except BrokenError as error:
            world.findings.breaks(f"{scene.name}, killed {point.how} {point.kind}: {error}")
            continue
        done[scene.name] += 1
        kinds[f"{point.how} {point.kind}"] += 1
    say = world.findings.count
    say("kill points tried", len(chosen), ">=", 30, f"of {len(points)}")
    say("… after which the store was right and was completed", sum(done.values()), "=", len(chosen))
    for name, count in done.items():
        say(f"… of {name}", count)
    say("kinds of points", len(kinds), note=", ".join(f"{k} {n}" for k, n in kinds.most_common()))


def _some(
    world: World, scenes: list[Scene], points: list[tuple[Scene, Point]]
) -> list[tuple[Scene, Point]]:
    """So many of the slow scene, the first one, and as many of each of the others."""
    real, *toys = scenes
    each = world.size.points // len(toys) if world.size.points else len(points)
    chosen = []
    for scene, count in [(real, world.size.real_points), *((toy, each) for toy in toys)]:
        mine = [one for one in points if one[0] is scene]
        chosen += world.random.sample(mine, min(count, len(mine)))
    return chosen


@dataclass(frozen=True)
class Point:
    """The change of a number, and how far it gets."""

    number: int
    kind: str
    how: str


def _points(world: World, scene: Scene) -> list[Point]:
    """Every change that the undisturbed command makes."""
    folder = world.temporary()
    job = scene.prepare(folder / "job")
    log = folder / "changes"

    def note(change: Change) -> None:
        with log.open("a") as out:
            out.write(json.dumps([change.kind, len(change.data)]) + "\n")

    hook = faulty.recorded(note)
    ended = job.fork(scene.words(job), before=lambda: faulty.install(job.store, hook)).wait()
    if not log.exists():
        world.findings.breaks(f"{scene.name}: it changed nothing; it said: {ended.said[-800:]}")
        return []
    changes = [json.loads(line) for line in log.read_text().splitlines()]
    shutil.rmtree(folder)
    points = [
        Point(number, kind, how)
        for number, (kind, size) in enumerate(changes)
        for how in (("before", "half") if size > 1 else ("before",))
    ]
    last = len(changes) - 1
    return [*points, Point(last, changes[last][0], "after")]


def _try(world: World, scene: Scene, point: Point, folder: Path) -> None:
    job = scene.prepare(folder)
    hook = faulty.end_at(point.number, point.how)
    ended = job.fork(scene.words(job), before=lambda: faulty.install(job.store, hook)).wait()
    if ended.code != 137:
        raise BrokenError(f"it was not killed but ended with {ended.code}: {ended.said[-500:]}")
    scene.after(job)
    scene.finish(job)
    shutil.rmtree(folder)


# --- scenes


def _real_run(world: World) -> Scene:
    """All real stages over two films, a shard of each stage."""
    films = world.films
    few = world.folder / "few.jsonl"
    videos = sorted((films / "videos").iterdir())[:2]
    few.write_text(
        "".join(json.dumps({"video_id": each.stem, "path": str(each)}) + "\n" for each in videos)
    )

    def prepare(folder: Path) -> Job:
        return world.job(str(folder), videos={"root": str(few)}, engine={"commit_every_s": 600.0})

    reference = prepare(world.folder / "real").reference()

    def words(job: Job) -> list[str]:
        return job.words()

    def finish(job: Job) -> None:
        job.run().demand(0)
        job.settle(reference)

    return Scene("all real stages", prepare, words, _is_sound, finish)


def _toy_scenes(world: World) -> list[Scene]:
    ids = [f"v{number}" for number in range(4)]
    full = world.toys("toys", ids)
    reference = full.reference()
    with_refused = [*ids, "refuse-1"]
    refusing = world.toys("refusing", with_refused)
    refusing.run().demand(3)
    quarantined = oracle.contents(refusing.store)

    def fresh(folder: Path) -> Job:
        return world.toys(str(folder), with_refused)

    def complete(job: Job) -> None:
        job.run().demand(3)
        if oracle.contents(job.store) != quarantined:
            raise BrokenError(f"{job.store} holds other rows than the undisturbed store")
        if oracle.problems(job.store):
            raise BrokenError(str(oracle.problems(job.store)))
        if "nothing to do" not in job.run().demand(3).said:
            raise BrokenError("a further run worked")

    def copied(folder: Path) -> Job:
        return full.moved(folder)

    def damaged(folder: Path) -> Job:
        job = copied(folder)
        names = sorted(oracle.shard_names(job.store))
        for name in names[:: max(1, len(names) // 4)]:
            data = bytearray((job.store / name).read_bytes())
            data[len(data) // 2] ^= 0x10
            (job.store / name).write_bytes(data)
        return job

    def superseded(folder: Path) -> Job:
        job = copied(folder)
        job.run("--set", "stages.rows.scale=2.0").demand(0)
        job.run().demand(0)
        old = time.time() - _LONG_AGO_S
        (job.store / "rows" / ".tmp-1-abandoned").write_bytes(b"x")
        for each in job.store.rglob("*"):
            os.utime(each, (old, old))
        return job

    def same_rows(job: Job) -> None:
        if oracle.contents(job.store) != reference:
            raise BrokenError(f"{job.store}: readers see other rows than before")
        _is_sound(job)

    def healed(job: Job) -> None:
        job.tend("repair").demand(0)
        job.run().demand(0)
        job.settle(reference)

    def again(command: str, *more: str) -> Callable[[Job], None]:
        def finish(job: Job) -> None:
            job.tend(command, *more).demand(0)
            same_rows(job)
            job.settle(reference)

        return finish

    def tend(command: str, *more: str) -> Callable[[Job], list[str]]:
        return lambda job: [command, "--store", str(job.store), *more]

    def nothing(job: Job) -> None:
        del job

    return [
        Scene(
            "many small shards and a quarantine",
            fresh,
            lambda job: job.words(),
            _is_sound,
            complete,
        ),
        _dear_rows(world),
        Scene("repair", damaged, tend("repair"), nothing, healed),
        Scene("compact", copied, tend("compact"), same_rows, again("compact")),
        Scene("gc", superseded, tend("gc"), same_rows, again("gc")),
    ]


def _dear_rows(world: World) -> Scene:
    """Rows that are written one by one and packed in the end, and one that was unfinished."""
    ids = ["v0", "halfway-1"]
    config = {"stages": {"probe": {}, "talks": {"part": 2, "batch": 4}}}

    def prepare(folder: Path) -> Job:
        job = world.toys(str(folder), ids, **config)
        job.run().demand(3)
        (folder / "videos" / "v1.mp4").write_text("toy video v1")
        return job

    def words(job: Job) -> list[str]:
        return job.words("--retry-failed")

    undisturbed = prepare(world.folder / "dear")
    undisturbed.run("--retry-failed").demand(0)
    reference = oracle.contents(undisturbed.store)

    def finish(job: Job) -> None:
        job.run("--retry-failed").demand(0)
        job.settle(reference)

    return Scene("dear rows and their packing", prepare, words, _is_sound, finish)


def _is_sound(job: Job) -> None:
    """Whatever is visible is whole; a store whose first file is not there yet is none."""
    if not (job.store / "store.json").exists():
        return
    for sentence in oracle.problems(job.store):
        # A killed run has not come to the catalogue yet; the next one writes it.
        if not sentence.startswith("catalogue"):
            raise BrokenError(f"right after the kill: {sentence}")
