"""Section `parts`: `kill -9` in the middle of one long video, counted by the captioner itself.

What a kill may cost is one part of a video for each worker, whatever the length of the video.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data.store import Store

from . import oracle, processes
from .counting import PROGRAM
from .figures import BrokenError
from .processes import ROOT, Driver
from .world import Job, World, merged

__all__ = ["run"]

PART = 32
"""Captions of a part."""
BATCH = 16
"""Captions of a batch: kills hit parts of which one batch is done."""
SECONDS = 1000
"""Length of the film, so its captions."""
PAUSE_S = 0.01


@dataclass(frozen=True)
class _Told:
    kills: int
    stores: int
    twice: int
    most: int | None = None


def run(world: World) -> None:
    """Kill drivers that work inline, then workers of a Ray."""
    films = world.folder / "film"
    films.mkdir()
    film(films / "long.mp4")
    undisturbed = job_of(world, films, "undisturbed")
    undisturbed.run().demand(0)
    reference = oracle.contents(undisturbed.store)
    captions = Counter(lines(undisturbed))
    if len(captions) != SECONDS or set(captions.values()) != {1}:
        raise BrokenError(f"an undisturbed run made {captions.total()} captions of {SECONDS}")
    _drivers(world, films, reference)
    if world.size.part_worker_kills:
        _workers(world, films, reference)


def film(path: Path) -> None:
    """One frame a second, each of another brightness."""
    import av
    import numpy as np

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=1, options={"g": "60"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for second in range(SECONDS):
            picture = np.full((48, 64, 3), second * 7 % 256, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(stream.encode(None))


def job_of(world: World, films: Path, name: str, **config: Any) -> Job:
    """Captions of the film by the counting captioner, into a store of its own."""
    folder = world.folder / name
    options = {"log": str(folder / "captions.log"), "pause_s": PAUSE_S}
    captions = {"captioner": "counting", "part_size": PART, "batch_size": BATCH, "options": options}
    values: dict[str, Any] = {
        "dataset": "film",
        "clip_len_s": 1.0,
        "videos": {"root": str(films)},
        "store": "store",
        "stages": {"probe": {}, "captions": captions},
        "engine": {"commit_every_s": 600.0, "shard_mb": 128},
    }
    job = Job.write(folder, merged(values, config))
    return job.first_doing(_import_captioner)


def _import_captioner() -> None:
    from . import counting

    del counting


def lines(job: Job) -> list[str]:
    """What the captioner has written: one key for each caption that it made."""
    log = job.folder / "captions.log"
    whole = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1] for line in whole]


def on_disk(store: Path) -> int:
    """Captions that no kill can take any more."""
    if not (store / "captions").exists():
        return 0
    keys = {key for stage, key in oracle.visible(store, oracle.shard_names(store))}
    parts = [key.part for key in keys if key.parts > 1]
    return sum(min(PART, SECONDS - part * PART) for part in parts)


def _drivers(world: World, films: Path, reference: oracle.Contents) -> None:
    job = job_of(world, films, "drivers")
    kills = stores = twice = most = 0
    while kills < world.size.part_kills:
        stores += 1
        one, before = job.again(f"store-{stores}"), len(lines(job))
        while kills < world.size.part_kills:
            driver = one.start()
            begun = len(lines(one))
            _wait_for_more(driver, one, begun)
            time.sleep(world.random.uniform(0.0, 1.0))
            if not driver.running:
                break
            driver.send(signal.SIGKILL)
            driver.wait()
            kills += 1
            # In this store: made, less what is on disk, less what earlier kills had cost.
            lost = len(lines(one)) - before - on_disk(one.store)
            most, before = max(most, lost), before + lost
            twice += lost
        one.run().demand(0)
        _settle(one, reference)
        if len(lines(one)) - before != SECONDS:
            raise BrokenError(f"{len(lines(one)) - before - SECONDS} captions more than were lost")
    _tell(world, "inline drivers", world.size.part_kills, _Told(kills, stores, twice, most))


def _workers(world: World, films: Path, reference: oracle.Contents) -> None:
    job = job_of(world, films, "workers", engine={"executor": "ray", "workers": 2})
    kills = stores = 0
    before = len(lines(job))
    while kills < world.size.part_worker_kills:
        stores += 1
        one = job.again(f"ray-{stores}")
        token = f"parts-{world.seed}-{stores}-{time.time_ns()}"
        driver = processes.real(one.words(), one.log, token=token, program=[str(ROOT / PROGRAM)])
        while driver.running and kills < world.size.part_worker_kills:
            _wait_for_more(driver, one, len(lines(one)))
            time.sleep(world.random.uniform(0.0, 2.0))
            kills += _kill_a_worker(driver)
        driver.wait(240).demand(0)
        _settle(one, reference)
    twice = len(lines(job)) - before - stores * SECONDS
    _tell(world, "Ray workers", world.size.part_worker_kills, _Told(kills, stores, twice))


def _kill_a_worker(driver: Driver) -> int:
    """Kill the process that made the last caption; 1 if it was there."""
    for each in processes.belongings(driver.token):
        with suppress(psutil.Error):
            if "Worker" in each.cmdline()[0] and each.cmdline()[0].startswith("ray::"):
                each.kill()
                return 1
    return 0


def _wait_for_more(driver: Driver, job: Job, than: int) -> None:
    deadline = time.monotonic() + 120
    while driver.running and len(lines(job)) <= than:
        if time.monotonic() > deadline:
            raise BrokenError(f"no caption within two minutes; log {job.log}")
        time.sleep(0.005)


def _settle(job: Job, reference: Mapping[oracle.Place, str]) -> None:
    finding = oracle.check(job.store, reference)
    if finding.rows != len(reference):
        raise BrokenError(f"{job.store} has {finding.rows} rows of {len(reference)}")
    reader = Store.open(job.store).reader("captions")
    if len(reader.row("long").texts["caption"]) != SECONDS:
        raise BrokenError(f"{job.store} lacks captions")


def _tell(world: World, what: str, wanted: int, told: _Told) -> None:
    say = world.findings.count
    note = f"{told.stores} stores of one video of {SECONDS} captions"
    say(f"kills of {what} in the middle of a video", told.kills, ">=", wanted, note)
    say(f"captions made twice, {PART} in a part", told.twice, "<=", told.kills * PART)
    if told.most is not None:
        say("… the most of one kill", told.most, "<=", PART)
