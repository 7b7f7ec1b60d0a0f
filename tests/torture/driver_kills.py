"""Section `driver`: `kill -9` of drivers at random moments of all stages, until all is stored."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

from data.store.types import ItemKey

from . import oracle, processes
from .figures import BrokenError
from .world import Job, World, marked

__all__ = ["run"]


def run(world: World) -> None:
    """Kill drivers that work inline, then drivers with a Ray of their own."""
    job = world.job("undisturbed")
    began = time.monotonic()
    reference = job.reference()
    storm = _Storm(world, job, reference, time.monotonic() - began)
    while storm.kills < world.size.driver_kills:
        storm.one_store()
    storm.tell()
    if world.size.ray_driver_kills:
        _ray(world, reference)


class _Storm:
    """Kills of forked drivers, store after store."""

    def __init__(self, world: World, job: Job, reference: oracle.Contents, whole_s: float) -> None:
        self.world, self.job, self.reference, self.whole_s = world, job, reference, whole_s
        self.kills = self.stores = self.lost = self.wasted = self.torn = self.twice = 0
        self.during: Counter[str] = Counter()
        self.left_behind = 0

    def one_store(self) -> None:
        """Fill one store under fire."""
        self.stores += 1
        job = self.job.again(f"killed-{self.stores}")
        marks = job.folder / f"{job.store.name}.marks"
        while True:
            share_left = 1 - self._stored(job.store) / len(self.reference)
            driver = job.start(before=marked(marks))
            # At least the start-up, of which a third of a second is opening the store.
            deadline = self.world.random.uniform(0.05, 0.4 + self.whole_s * share_left)
            while driver.running and driver.age_s < deadline:
                time.sleep(0.002)
            acknowledged = oracle.rows(job.store)
            if not driver.running:
                driver.wait().demand(0)
                break
            driver.send(signal.SIGKILL)
            driver.wait()
            self.kills += 1
            self._after_kill(job.store, acknowledged, marks)
            if self.kills >= self.world.size.driver_kills:
                job.run(before=marked(marks)).demand(0)
                break
        finding = job.settle(self.reference)
        computed = len(marks.read_text().splitlines())
        self.wasted += computed - finding.rows
        self.twice += finding.twice
        self.left_behind += finding.temporaries
        job.remove()

    def tell(self) -> None:
        """The figures."""
        say = self.world.findings.count
        say("kills of inline drivers", self.kills, ">=", self.world.size.driver_kills)
        per_stage = ", ".join(f"{stage} {count}" for stage, count in self.during.most_common())
        say("stores filled under fire", self.stores, note=f"last row before a kill: {per_stage}")
        say("rows of each store, all equal to the undisturbed run", len(self.reference))
        say("acknowledged rows lost", self.lost, "=", 0)
        say("damaged shards visible after a kill", self.torn, "=", 0)
        say("rows computed again per kill", self.wasted / self.kills, note="mean")
        say("rows stored twice (equal; seen once)", self.twice)
        say("temporary files left behind (no reader looks at them)", self.left_behind)

    def _stored(self, store: Path) -> int:
        return len(oracle.visible(store, oracle.shard_names(store))) if store.exists() else 0

    def _after_kill(self, store: Path, acknowledged: set[tuple[str, ItemKey]], marks: Path) -> None:
        lines = marks.read_text().split() if marks.exists() else []
        self.during[lines[-1] if lines else "start"] += 1
        self.lost += len(acknowledged - oracle.rows(store))
        try:
            oracle.visible(store, oracle.shard_names(store))
        except Exception as error:
            self.torn += 1
            self.world.findings.breaks(f"after a kill: {error}")


def _ray(world: World, reference: oracle.Contents) -> None:
    """Kill drivers that a user starts; their Ray must go with them."""
    job = world.job("ray", engine={"executor": "ray", "workers": 2})
    kills = stores = left = lost = 0
    slowest = 0.0
    whole_s = 30.0
    while kills < world.size.ray_driver_kills:
        stores += 1
        one = job.again(f"ray-{stores}")
        while True:
            token = f"driver-{world.seed}-{stores}-{kills}-{time.time_ns()}"
            driver = processes.real(one.words(), one.log, token=token)
            deadline = world.random.uniform(1.0, whole_s)
            while driver.running and driver.age_s < deadline:
                time.sleep(0.01)
            acknowledged = oracle.rows(one.store)
            if not driver.running or kills >= world.size.ray_driver_kills:
                whole_s = max(5.0, driver.wait().demand(0).seconds)
                break
            driver.send(signal.SIGKILL)
            driver.wait()
            kills += 1
            seconds = processes.gone_within(token, 30.0)
            slowest = max(slowest, 30.0 if seconds is None else seconds)
            left += processes.end_all(token)
            lost += len(acknowledged - oracle.rows(one.store))
        one.settle(reference)
        one.remove()
    say = world.findings.count
    say("kills of drivers with their own Ray", kills, ">=", world.size.ray_driver_kills)
    say("acknowledged rows lost (Ray)", lost, "=", 0)
    say("processes left 30 s after such a kill", left, "=", 0)
    say("longest time until all of Ray was gone", slowest, note="seconds")
    if left:
        raise BrokenError("workers, raylets or decoders outlive a killed driver")
