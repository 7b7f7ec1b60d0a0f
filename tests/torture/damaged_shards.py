"""Section `shards`: damaged shards are found, never read wrong, repaired and filled again."""

from __future__ import annotations

import json
import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import StorylineError
from data.store import Store

from . import oracle
from .figures import BrokenError
from .world import Job, World

__all__ = ["DAMAGES", "run"]

_BATCH = 25


def run(world: World) -> None:
    """Shards one by one, then whole stores."""
    job = world.job("undisturbed")
    reference = job.reference()
    _one_by_one(world, job, reference)
    _whole_stores(world, job, reference)


def _one_by_one(world: World, job: Job, reference: oracle.Contents) -> None:
    """Each damaged shard alone in a store: `verify`, then every row of it by the usual reader."""
    names = sorted(oracle.shard_names(job.store))
    kinds = list(DAMAGES)
    trials = [
        (kinds[number % len(kinds)], world.random.choice(names), world.random.getrandbits(64))
        for number in range(world.size.damages)
    ]
    results: list[dict[str, Any]] = []
    for start in range(0, len(trials), _BATCH):
        results += _in_child(world, job, reference, trials[start : start + _BATCH])
    stages = Counter(name.parts[0] for _, name, _ in trials)
    say = world.findings.count
    told = ", ".join(f"{kind} {count}" for kind, count in Counter(k for k, _, _ in trials).items())
    say("damaged shards", len(results), ">=", world.size.damages, told)
    say("… of stages", len(stages), "=", 8, ", ".join(f"{k} {n}" for k, n in stages.items()))
    say("found by `verify`", sum(each["found"] for each in results), "=", len(trials))
    say("rows read right all the same", sum(each["right"] for each in results))
    say("rows refused by the reader", sum(each["refused"] for each in results))
    say("wrong rows read without an error", sum(each["wrong"] for each in results), "=", 0)
    died = sum(each["died"] for each in results)
    say("times that the reader ended the process", died, "=", 0)
    for each in results:
        if each["wrong"] or each["died"] or not each["found"]:
            world.findings.breaks(f"look at {each['kept']} ({each['kind']}): {each}")


def _in_child(
    world: World,
    job: Job,
    reference: oracle.Contents,
    trials: list[tuple[str, Path, int]],
) -> list[dict[str, Any]]:
    """Some trials in a child process, which a broken file might end."""
    results: list[dict[str, Any]] = []
    while len(results) < len(trials):
        folder = world.temporary()
        log = folder / "results"
        pid = os.fork()
        if pid == 0:
            try:
                with log.open("a", buffering=1) as out:
                    for kind, name, seed in trials[len(results) :]:
                        out.write(
                            json.dumps(_trial(job, reference, folder, kind, name, seed)) + "\n"
                        )
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        lines = log.read_text().splitlines() if log.exists() else []
        results += [json.loads(line) for line in lines]
        if len(results) < len(trials):
            kept = {"kept": str(folder), "kind": trials[len(results)][0]}
            results.append({"found": 0, "right": 0, "refused": 0, "wrong": 0, "died": 1, **kept})
        elif not any(each["wrong"] or not each["found"] for each in results):
            shutil.rmtree(folder)
    return results


def _trial(
    job: Job, reference: oracle.Contents, folder: Path, kind: str, name: Path, seed: int
) -> dict[str, Any]:
    """One damaged shard in a store of its own."""
    rng = random.Random(seed)
    stage = name.parts[0]
    store = folder / f"{kind}-{seed}"
    (store / name.parent).mkdir(parents=True)
    for file in ("store.json", "videos.jsonl"):
        shutil.copy(job.store / file, store / file)
    _only_current(store / "store.json", stage)
    shutil.copy(job.store / name.parent / "recipe.json", store / name.parent / "recipe.json")
    data = (job.store / name).read_bytes()
    target, damaged = DAMAGES[kind](name, data, rng)
    if damaged == data and target == name:
        damaged = data[:-1]
    (store / target).write_bytes(damaged)
    found = any(target.name in sentence for sentence in oracle.problems(store))
    counts = _read_all(store, stage, reference)
    if found and not counts["wrong"]:
        shutil.rmtree(store)
    return {"found": int(found), "died": 0, "kept": str(store), "kind": kind, **counts}


def _only_current(file: Path, stage: str) -> None:
    values = json.loads(file.read_text())
    values["current"] = {stage: values["current"][stage]}
    file.write_text(json.dumps(values))


def _read_all(path: Path, stage: str, reference: oracle.Contents) -> dict[str, int]:
    """Every row by the reader that a trainer uses: right, refused or (never) wrong."""
    counts = {"right": 0, "refused": 0, "wrong": 0}
    store = Store.open(path)
    try:
        reader = store.reader(stage)
    except StorylineError:
        counts["refused"] += 1
        return counts
    for id_ in reader.ids():
        try:
            row = reader.row(id_)
        except StorylineError:
            counts["refused"] += 1
            continue
        known = reference.get((stage, id_, row.key.content))
        counts["right" if known == oracle.row_digest(row) else "wrong"] += 1
    return counts


def _whole_stores(world: World, job: Job, reference: oracle.Contents) -> None:
    """Stores with several damaged shards: `repair`, then a run, gives back what was there."""
    repaired = set_aside = 0
    for number in range(world.size.repairs):
        one = replace(job, store=job.folder / f"damaged-{number}")
        shutil.copytree(job.store, one.store)
        names = sorted(oracle.shard_names(one.store))
        for name in world.random.sample(names, max(1, len(names) // 6)):
            kind = world.random.choice([each for each in DAMAGES if each != "renamed"])
            damaged = DAMAGES[kind](name, (one.store / name).read_bytes(), world.random)[1]
            (one.store / name).write_bytes(damaged)
        try:
            one.tend("repair").demand(0)
            for sentence in oracle.problems(one.store):
                raise BrokenError(f"after repair: {sentence}")
            aside = list((one.store / "set-aside").rglob("*.h5"))
            set_aside += len(aside)
            one.run().demand(0)
            one.settle(reference)
        except BrokenError as error:
            world.findings.breaks(f"look at {one.store}: {error}")
            continue
        repaired += 1
        one.remove()
    say = world.findings.count
    say("stores with damaged shards", world.size.repairs)
    say("… that repair and a run brought back, bit for bit", repaired, "=", world.size.repairs)
    say("files set aside for it (none deleted)", set_aside, ">=", world.size.repairs)


# --- damages: new name and bytes of a shard


def _truncated(name: Path, data: bytes, rng: random.Random) -> tuple[Path, bytes]:
    return name, data[: rng.randrange(len(data))]


def _bit(name: Path, data: bytes, rng: random.Random) -> tuple[Path, bytes]:
    made = bytearray(data)
    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return name, bytes(made)


def _random_bytes(name: Path, data: bytes, rng: random.Random) -> tuple[Path, bytes]:
    start = rng.randrange(len(data))
    noise = rng.randbytes(rng.choice((1, 16, 512)))
    return name, data[:start] + noise + data[start + len(noise) :]


def _zeroed(name: Path, data: bytes, rng: random.Random) -> tuple[Path, bytes]:
    start = rng.randrange(len(data)) // 4096 * 4096
    return name, data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]


def _tail(name: Path, data: bytes, rng: random.Random) -> tuple[Path, bytes]:
    return name, data + rng.randbytes(rng.choice((1, 100, 5000)))


def _renamed(name: Path, data: bytes, rng: random.Random) -> tuple[Path, bytes]:
    """Whole bytes under the name of other ones, as when two shards change places."""
    return name.with_name(f"shard-{rng.randbytes(8).hex()}.h5"), data


DAMAGES: dict[str, Callable[[Path, bytes, random.Random], tuple[Path, bytes]]] = {
    "truncated": _truncated,
    "one bit": _bit,
    "random bytes": _random_bytes,
    "zeroed page": _zeroed,
    "tail": _tail,
    "renamed": _renamed,
}
