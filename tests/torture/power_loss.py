"""Section `power`: disks on which what was not fsynced is lost or torn, in any combination.

The changes of a run are recorded, then replayed up to a random one onto a model disk that is worse
than real ones: bytes of a file are sure after its fsync, a name is sure after the fsync of its
folder, and of all that is not sure any part may be there or not, in any order. What readers could
see as stored at that moment must be readable on every such disk.
"""

from __future__ import annotations

import json
import random
import shutil
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import faulty, oracle
from .faulty import Change
from .figures import BrokenError
from .world import Job, World

__all__ = ["run"]

_CONTINUED_EVERY = 10


def run(world: World) -> None:
    """Disks of a run over toy stages with a quarantine, in small shards."""
    ids = [f"v{number}" for number in range(6)]
    job = world.toys("toys", [*ids, "refuse-1", "raise-1"])
    changes = _recorded(job)
    reference = oracle.contents(job.store)
    wrong = lost = continued = unsure = 0
    committed_rows = 0
    for number in range(world.size.power_states):
        disk = _Disk(job.store, world.random)
        upto = world.random.randrange(1, len(changes) + 1)
        for change in changes[:upto]:
            disk.apply(change)
        target = world.folder / f"disk-{number}"
        unsure += disk.write(target / "store")
        committed = disk.told_shards()
        try:
            found = _rows(target / "store", committed)
        except BrokenError as error:
            lost += 1
            world.findings.breaks(f"{target}, after change {upto}: {error}")
            continue
        committed_rows += len(found)
        wrong += sum(reference[place] != digest for place, digest in found.items())
        if number % _CONTINUED_EVERY == 0:
            _continue(job, target, reference)
            continued += 1
        shutil.rmtree(target)
    say = world.findings.count
    say(
        "disks after a power loss", world.size.power_states, ">=", min(500, world.size.power_states)
    )
    say("changes of the recorded run", len(changes))
    say("changes that a disk had lost or torn", unsure / world.size.power_states, note="mean")
    say("committed rows looked at on them", committed_rows, ">=", 1)
    say("disks with a committed row lost or unreadable", lost, "=", 0)
    say("wrong rows", wrong, "=", 0)
    say("runs continued on such a disk, to the undisturbed rows", continued, ">=", 1)


def _recorded(job: Job) -> list[Change]:
    log = job.folder / "changes"

    def note(change: Change) -> None:
        row = [change.kind, str(change.path), str(change.target or "")]
        with log.open("a") as out:
            out.write(json.dumps([*row, b64encode(change.data).decode()]) + "\n")

    hook = faulty.recorded(note)
    job.run(before=lambda: faulty.install(job.store.parent / job.store.name, hook)).demand(3)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        Change(kind, Path(path), Path(target) if target else None, b64decode(data))
        for kind, path, target, data in rows
    ]


@dataclass
class _File:
    """A file or folder of the model disk: bytes that are sure, bytes written later."""

    folder: bool = False
    sure: bytes = b""
    later: list[bytes] = field(default_factory=list)


class _Disk:
    """Names and files, each as it is sure to be and as it was said to be."""

    def __init__(self, root: Path, random: random.Random) -> None:
        self.root, self.random = root, random
        self._now: dict[Path, _File] = {root: _File(folder=True)}
        self._sure: dict[Path, _File] = dict(self._now)
        self._unsure: list[Change] = []
        self._renamed: set[Path] = set()
        self._told: set[Path] = set()

    def apply(self, change: Change) -> None:
        """One change, as the process saw it."""
        path = change.path
        if change.kind in ("create", "append", "mkdir"):
            # The writer has gone on to something else: what it renamed before counts as stored.
            self._told |= self._renamed
        if change.kind in ("create", "mkdir"):
            self._now[path] = _File(folder=change.kind == "mkdir")
            self._unsure.append(change)
        elif change.kind in ("write", "append"):
            self._now[path].later.append(change.data)
        elif change.kind == "sync":
            file = self._now[path]
            file.sure, file.later = file.sure + b"".join(file.later), []
        elif change.kind == "sync-folder":
            self._settle(path)
        elif change.kind == "rename":
            assert change.target is not None
            self._now[change.target] = self._now.pop(path)
            self._renamed.add(change.target)
            self._unsure.append(change)
        elif change.kind == "remove":
            self._now.pop(path, None)
            self._unsure.append(change)

    def told_shards(self) -> set[Path]:
        """Shards that the job was told are stored: they must survive whatever the disk does."""
        return {
            path.relative_to(self.root) for path in self._told if path.name.startswith("shard-")
        }

    def write(self, target: Path) -> int:
        """Put one of the disks that may be left into a folder; how much is not as it was said."""
        names = dict(self._sure)
        dropped = 0
        for change in self._unsure:
            kept = self.random.random() < 0.5
            dropped += not kept
            if kept:
                _rename(names, change, self._found(change))
        target.mkdir(parents=True)
        for path in sorted(names):
            file, place = names[path], target / path.relative_to(self.root)
            # What lies in a folder whose own name was lost is lost with it.
            if path == self.root or not place.parent.is_dir():
                continue
            if file.folder:
                place.mkdir(exist_ok=True)
            else:
                place.write_bytes(file.sure + self._torn(file.later))
                dropped += bool(file.later)
        return dropped

    def _settle(self, folder: Path) -> None:
        """The names in a folder are sure from now on."""
        for path in [each for each in self._sure if each.parent == folder and each != self.root]:
            if path not in self._now:
                del self._sure[path]
        self._sure |= {path: file for path, file in self._now.items() if path.parent == folder}
        self._unsure = [
            each
            for each in self._unsure
            if each.path.parent != folder or (each.target and each.target.parent != folder)
        ]

    def _found(self, change: Change) -> _File | None:
        path = change.target or change.path
        return self._now.get(path) or _File(folder=change.kind == "mkdir")

    def _torn(self, later: Sequence[bytes]) -> bytes:
        """Some beginning of what was written and not fsynced, perhaps with a page of zeros."""
        data = b"".join(later)
        cut = self.random.randrange(len(data) + 1)
        hole = self.random.random() < 0.3
        return b"\0" * cut if hole else data[:cut]


def _rename(names: dict[Path, _File], change: Change, file: _File | None) -> None:
    """One change of names on the disk."""
    if change.kind in ("create", "mkdir") and file is not None:
        names.setdefault(change.path, file)
    elif change.kind == "remove":
        names.pop(change.path, None)
    elif change.kind == "rename" and change.target is not None and file is not None:
        names.pop(change.path, None)
        names[change.target] = file


def _rows(store: Path, committed: set[Path]) -> dict[oracle.Place, str]:
    """All rows of the committed shards, read from the disk."""
    from data.store.reader import FilePool
    from data.store.shard_reader import Shard

    files, found = FilePool(), dict[oracle.Place, str]()
    for name in sorted(committed):
        try:
            shard = Shard(store / name, files)
            for index, key in enumerate(shard.keys):
                found[name.parts[0], key.id, key.content] = oracle.row_digest(shard.row(index))
        except Exception as error:
            raise BrokenError(f"committed shard {name}: {error}") from error
    return found


def _continue(job: Job, target: Path, reference: oracle.Contents) -> None:
    """The next run on such a disk; unless the store itself was not sure yet, then it is new."""
    shutil.copytree(job.folder / "videos", target / "videos")
    file = target / "pipeline.yaml"
    shutil.copy(job.file, file)
    there = replace(job, folder=target, file=file, store=target / "store")
    there.run().demand(3)
    if oracle.contents(there.store) != reference:
        raise BrokenError(f"{there.store} was continued to other rows than those undisturbed")
    for sentence in oracle.problems(there.store):
        raise BrokenError(f"{there.store}, continued: {sentence}")
