"""Section `change`: a file that changes under its name, and a store that moves."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from data.store import Store

from . import oracle
from .figures import BrokenError
from .world import NOTHING, Job, World

__all__ = ["run"]


def run(world: World) -> None:
    """Another film under the same name, openly and hidden; then the store elsewhere."""
    films = world.folder / "own"
    shutil.copytree(world.films, films)
    job = world.job("job", films=films)
    before = job.reference()
    videos = sorted((films / "videos").iterdir())
    changed = [_other_film(videos[0], videos[1], hidden=False)]
    changed.append(_other_film(videos[2], videos[1], hidden=True))
    fresh = job.again("undisturbed").reference()
    job.run().demand(0)
    after = _seen(job.store)
    say = world.findings.count
    say("films replaced under their names (one keeps size and time)", len(changed), "=", 2)
    say("rows of the old films that readers still see", _stale(after, before, changed), "=", 0)
    wrong = sum(after.get(place) != digest for place, digest in fresh.items())
    say("rows that differ from a fresh store", wrong, "=", 0)
    kept = oracle.contents(job.store).keys() >= before.keys()
    say("rows of the old films kept in the store beside (1: yes)", int(kept), "=", 1)
    _moved(world, job)


def _other_film(video: Path, source: Path, *, hidden: bool) -> str:
    """Other bytes under a name; `hidden` with the old size and time of modification."""
    stat = video.stat()
    data = source.read_bytes()
    if hidden:
        # A few bytes behind the last frame: still a whole film of the same size as before.
        data = _of_size(video.read_bytes(), data, stat.st_size)
    fresh = video.with_suffix(".new")
    fresh.write_bytes(data)
    if hidden:
        os.utime(fresh, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fresh.replace(video)
    return video.stem


def _of_size(old: bytes, other: bytes, size: int) -> bytes:
    """The other film with a `free` box behind it, if it is small enough; else the old film with
    a changed one."""
    room = size - len(other)
    if room >= 8:
        return other + room.to_bytes(4, "big") + b"free" + bytes(room - 8)
    made = bytearray(old)
    middle = made.index(b"mdat") + 4 + (len(made) - made.index(b"mdat")) // 2
    made[middle] ^= 0x01
    return bytes(made)


def _seen(path: Path) -> dict[oracle.Place, str]:
    """What a reader sees who asks by id alone."""
    store = Store.open(path)
    found: dict[oracle.Place, str] = {}
    for stage in store.current:
        reader = store.reader(stage)
        for id_ in reader.ids():
            row = reader.row(id_)
            found[stage, id_, row.key.content] = oracle.row_digest(row)
    return found


def _stale(after: dict[oracle.Place, str], before: oracle.Contents, changed: list[str]) -> int:
    return sum(place in before for place in after if place[1] in changed)


def _moved(world: World, job: Job) -> None:
    """The store in another folder, then the films, too: nothing is computed again."""
    rows = oracle.contents(job.store)
    there = replace(job, folder=world.folder / "elsewhere", store=world.folder / "elsewhere/store")
    shutil.copytree(job.store, there.store)
    shutil.rmtree(job.store)
    shards = oracle.shard_names(there.store)
    idle = NOTHING in there.run().demand(0).said
    films = world.folder / "own-moved"
    (world.folder / "own").rename(films)
    moved = replace(world.job("elsewhere", films=films), store=there.store)
    # Hashes are remembered by path: files in a new place are read again.
    moved.run().demand(0)
    fresh = len(oracle.shard_names(there.store) - shards)
    say = world.findings.count
    say("a moved store says that there is nothing to do (1: yes)", int(idle), "=", 1)
    say("shards written after the films moved, too", fresh, "=", 0)
    if oracle.contents(there.store) != rows:
        raise BrokenError(f"{there.store}: a moved store shows other rows")
