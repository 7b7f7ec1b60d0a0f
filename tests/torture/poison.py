"""Section `poison`: inputs that crash, kill, hang, flood or lie; then a storm of SIGTERM."""

from __future__ import annotations

import signal
import time
from collections import Counter

import numpy as np

from data.store import Store

from . import oracle, processes
from .figures import BrokenError
from .poison_stage import POISON, PROGRAM
from .processes import ROOT
from .toy_world import toy_module
from .world import World

__all__ = ["run"]


def run(world: World) -> None:
    """Exactly the poison goes into quarantine, each for its own reason; then the storm."""
    _matrix(world)
    _storm(world)


def _matrix(world: World) -> None:
    toys = toy_module()
    good = [f"v{number:02}" for number in range(world.size.innocents)]
    job = world.toys(
        "matrix",
        [*good, *POISON],
        stages={"poison": {}},
        engine={"executor": "ray", "workers": 2, "timeout_s": 4.0, "commit_every_s": 1.0},
    )
    words = job.words("--stage", "poison")
    driver = processes.real(words, job.log, token="matrix", program=[str(ROOT / PROGRAM)])
    driver.wait(400).demand(3)
    store = Store.open(job.store)
    reader = store.reader("poison")
    failures = {each.key.id: each for each in store.failures("poison").read().values()}
    wrong = [
        id_
        for id_ in good
        if id_ not in reader or not np.array_equal(reader.array(id_, "vector"), toys.expected(id_))
    ]
    astray = {
        id_: failures[id_].reason if id_ in failures else "none"
        for id_, reasons in POISON.items()
        if id_ not in failures or failures[id_].reason not in reasons
    }
    say = world.findings.count
    told = ", ".join(f"{id_}: {failures[id_].reason}" for id_ in POISON if id_ in failures)
    say("poisonous inputs among good ones", len(POISON), ">=", len(POISON), told)
    say("good inputs around them", len(good), ">=", world.size.innocents)
    say("poisonous inputs in quarantine", len(failures.keys() & POISON.keys()), "=", len(POISON))
    say("… with another reason than theirs", len(astray), "=", 0, str(astray or ""))
    say("good inputs in quarantine", len(failures.keys() - POISON.keys()), "=", 0)
    say("good inputs without their row", len(wrong), "=", 0)
    size = (store.path / "poison" / store.current["poison"] / "failures.jsonl").stat().st_size
    say("bytes of failures.jsonl (one message had 10 MB)", size, "<=", 400_000)
    say("most attempts of one input", max(each.attempts for each in failures.values()), "<=", 5)
    for sentence in oracle.problems(job.store):
        raise BrokenError(f"{job.store}: {sentence}")


def _storm(world: World) -> None:
    """SIGTERM at random moments: the run writes what it has and says how to go on."""
    job = world.job("undisturbed")
    began = time.monotonic()
    reference = job.reference()
    whole_s = time.monotonic() - began
    codes: Counter[int] = Counter()
    sent = stores = unsaid = lost = 0
    slowest = 0.0
    while sent < world.size.storms:
        stores += 1
        one = job.again(f"stopped-{stores}")
        while True:
            driver = one.start("--set", "engine.commit_every_s=600", "--set", "engine.shard_mb=64")
            deadline = world.random.uniform(0.3, whole_s)
            while driver.running and driver.age_s < deadline:
                time.sleep(0.005)
            acknowledged = oracle.rows(one.store)
            asked = driver.running and sent < world.size.storms
            if asked:
                sent += 1
                driver.send(signal.SIGTERM)
                told_s = driver.age_s
            ended = driver.wait()
            if ended.code != -signal.SIGTERM or ended.said:
                ended.demand(0, 75)  # else: it had only read its config, nothing was begun
            codes[ended.code] += asked
            slowest = max(slowest, ended.seconds - told_s) if asked else slowest
            lost += len(acknowledged - oracle.rows(one.store))
            unsaid += ended.code == 75 and "to continue:" not in ended.said
            if ended.code == 0:
                break
        one.settle(reference)
        one.remove()
    say = world.findings.count
    told = f"75 {codes[75]}, 0 (done first) {codes[0]}, before the run began {codes[-15]}"
    say("SIGTERMs at random moments", sent, ">=", world.size.storms, f"exit codes: {told}")
    say("ends without the sentence that says how to continue", unsaid, "=", 0)
    say("rows lost by it", lost, "=", 0)
    say("longest time from SIGTERM to the end", slowest, note="seconds")
