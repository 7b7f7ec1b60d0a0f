"""Section `workers`: `kill -9` of Ray workers, decoding children and the raylet during runs."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from . import oracle, processes
from .figures import BrokenError
from .processes import Driver
from .world import Job, World

__all__ = ["run"]

_WORKER, _DECODER, _RAYLET = "worker", "decoder", "raylet"

_PAUSES_S = (0.5, 14.0)
"""Between kills: a worker needs some seconds to start, and work must be hit as well as starts."""
_FIRE_S = 180.0
"""So long a run is under fire; then it is left in peace to end."""
_END_S = 480.0


def run(world: World) -> None:
    """Fill store after store under fire, until all kills are done; nothing may be missing."""
    size = world.size
    job = world.job("undisturbed")
    reference = job.reference()
    on_ray = world.job("ray", engine={"executor": "ray", "workers": 2})
    fire = _Fire(
        world,
        on_ray,
        {_WORKER: size.worker_kills, _DECODER: size.decoder_kills, _RAYLET: size.raylet_kills},
    )
    while fire.left:
        fire.one_store(reference)
    say = world.findings.count
    say("workers killed", fire.kills[_WORKER], ">=", size.worker_kills, fire.told_stages())
    if size.decoder_kills:
        say("decoding children killed", fire.kills[_DECODER], ">=", size.decoder_kills)
    if size.raylet_kills:
        say("raylets killed", fire.kills[_RAYLET], ">=", size.raylet_kills)
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(fire.codes.items()))
    say("stores filled under fire", fire.stores, note=f"exit codes of the runs {codes}")
    say("runs that had to be started again", fire.restarts)
    say("innocent inputs in quarantine, rows lost, doubled or different", 0, "=", 0)
    say("acknowledged rows lost", fire.lost, "=", 0)
    say("processes left after a run", fire.left_over, "=", 0)


@dataclass
class _Fire:
    """Who is killed while runs go on.

    Args:
        world: the section's.
        job: all real stages on Ray with two workers.
        wanted: how many of each kind of process.
    """

    world: World
    job: Job
    wanted: dict[str, int]
    kills: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    during: Counter[str] = field(default_factory=Counter)
    stores: int = 0
    restarts: int = 0
    lost: int = 0
    left_over: int = 0

    @property
    def left(self) -> list[str]:
        """Kinds of which more are to be killed."""
        return [kind for kind, count in self.wanted.items() if self.kills[kind] < count]

    def told_stages(self) -> str:
        """What the killed workers were about."""
        return ", ".join(f"{stage} {count}" for stage, count in self.during.most_common())

    def one_store(self, reference: oracle.Contents) -> None:
        """Fill one store, with as many starts as it takes."""
        self.stores += 1
        job = self.job.again(f"store-{self.stores}")
        for attempt in range(20):
            self.restarts += attempt > 0
            token = f"fire-{self.world.seed}-{self.stores}-{attempt}-{time.time_ns()}"
            driver = processes.real(job.words(), job.log, token=token)
            acknowledged = self._shoot(driver, job)
            ended = driver.wait(_END_S)
            self.codes[ended.code] += 1
            self.lost += len(acknowledged - oracle.rows(job.store))
            if processes.gone_within(token, 30.0) is None:
                self.left_over += processes.end_all(token)
            if ended.code == 0:
                break
            if ended.code == 3:
                raise BrokenError(f"an innocent input is in quarantine: {job.store}\n{ended.said}")
        else:
            raise BrokenError(f"{job.store} is not complete after 20 runs; log {job.log}")
        job.settle(reference)
        job.remove()

    def _shoot(self, driver: Driver, job: Job) -> set[object]:
        """Kill processes of a run at random moments until it ends; what was stored before."""
        acknowledged: set[object] = set()
        pause_s = self.world.random.uniform(*_PAUSES_S)
        shot_s = time.monotonic()
        while driver.running and driver.age_s < _FIRE_S:
            time.sleep(0.03)
            if not self.left or time.monotonic() - shot_s < pause_s:
                continue
            kind = self.world.random.choice(self.left)
            # A raylet ends the whole run: not before something was done.
            if kind == _RAYLET and self.kills[_WORKER] < (self.kills[_RAYLET] + 1) * 4:
                kind = _WORKER
            targets = [each for each in self._processes(driver) if _kind(each) == kind]
            if not targets:
                continue
            acknowledged |= oracle.rows(job.store)
            with suppress(psutil.Error):
                self.world.random.choice(targets).kill()
                self.kills[kind] += 1
                self.during[_stage_at(job)] += kind == _WORKER
            pause_s = self.world.random.uniform(*_PAUSES_S)
            shot_s = time.monotonic()
        return acknowledged

    def _processes(self, driver: Driver) -> list[psutil.Process]:
        return processes.belongings(driver.token)


def _kind(process: psutil.Process) -> str:
    """What a process of a run is; "" for those that are left in peace."""
    with suppress(psutil.Error):
        words = process.cmdline()
        # `ray::IDLE` waits for work of anybody, a `ray::Worker` is one of ours.
        if words and words[0].startswith("ray::") and "Worker" in words[0]:
            return _WORKER
        if "data.video.child" in words:
            return _DECODER
        if words and words[0].endswith("/raylet"):
            return _RAYLET
    return ""


def _stage_at(job: Job) -> str:
    """The stage that wrote last."""
    folders = {each.parts[0] for each in oracle.shard_names(job.store)}
    order = ("narratives", "events", "captions", "slowfast", "i3d", "clip", "queries", "probe")
    return next((stage for stage in order if stage in folders), "start")
