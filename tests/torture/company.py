"""Section `company`: two jobs on one store at once."""

from __future__ import annotations

import signal
import time

from . import oracle, processes
from .world import World

__all__ = ["run"]


def run(world: World) -> None:
    """Pairs of drivers with the same config on one store; one of every third pair is killed."""
    job = world.job("undisturbed")
    began = time.monotonic()
    reference = job.reference()
    whole_s = time.monotonic() - began
    twice = killed = 0
    for number in range(world.size.pairs):
        one = job.again(f"shared-{number}")
        logs = [job.folder / f"shared-{number}-{side}.log" for side in "ab"]
        first = processes.fork(one.words(), logs[0])
        time.sleep(world.random.uniform(0, whole_s / 3))
        second = processes.fork(one.words(), logs[1])
        if number % 3 == 2:
            time.sleep(world.random.uniform(0, whole_s / 2))
            first.send(signal.SIGKILL)
            killed += first.wait().code == -signal.SIGKILL
        else:
            first.wait().demand(0)
        second.wait().demand(0)
        finding = one.settle(reference)
        twice += finding.twice
        one.remove()
    say = world.findings.count
    say("pairs of jobs on one store at once", world.size.pairs, ">=", world.size.pairs)
    say("… one of which was killed meanwhile", killed)
    say("both ended with 0, rows equal to the undisturbed ones", world.size.pairs, "=",
        world.size.pairs)  # fmt: skip
    say("rows computed by both (equal; seen once), per pair", twice / world.size.pairs)
    if world.size.raylet_kills:
        _pair_on_ray(world, reference)


def _pair_on_ray(world: World, reference: oracle.Contents) -> None:
    job = world.job("ray", engine={"executor": "ray", "workers": 1, "cpus": 1})
    pair = [
        processes.real(job.words(), job.folder / f"ray-{side}.log", token=f"pair-{side}")
        for side in "ab"
    ]
    for driver in pair:
        driver.wait(400).demand(0)
    finding = job.settle(reference)
    world.findings.count(
        "rows computed by both of a pair with Ray", finding.twice, "<=", len(reference)
    )
