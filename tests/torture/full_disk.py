"""Section `disk`: a disk that is full, over quota, failing or read-only."""

from __future__ import annotations

import errno
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import faulty, oracle, processes
from .figures import BrokenError
from .processes import Ended
from .world import Job, World

__all__ = ["run"]

_WORDS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota",
    errno.EIO: "see that the disk is well",
    errno.EROFS: "read-only",
}
"""What the sentence must tell the user to do."""

_ROOMY = "64m"


def run(world: World) -> None:
    """A small real file system where this machine lets us mount one, then injected errors."""
    job = world.job("undisturbed")
    reference = job.reference()
    _small_disks(world, reference)
    _refusals(world)


def _small_disks(world: World, reference: oracle.Contents) -> None:
    job = world.job("small")
    mount = job.folder / "disk"
    mount.mkdir()
    if not _mounts(mount):
        world.findings.count("small file systems mounted (not allowed on this machine)", 0)
        return
    needed_kb = _used_kb(world)
    sentences = on_ray = 0
    for number in range(world.size.full_disks):
        size_kb = int(needed_kb * world.random.uniform(0.1, 0.8))
        with _disk(mount, f"{size_kb}k"):
            one = job.again(f"disk/store-{number}")
            with_ray = world.size.raylet_kills > 0 and number % 7 == 6
            one_log = world.folder / f"disk-{number}.log"
            if with_ray:
                on_ray += 1
                words = one.words("--executor", "ray", "--set", "engine.workers=2")
                ended = processes.real(words, one_log, token=f"disk-{number}").wait(240)
            else:
                ended = processes.fork(one.words(), one_log).wait()
            _must_say(ended, errno.ENOSPC, one, one_log)
            sentences += 1
            _remount(mount, f"size={_ROOMY}")
            processes.fork(one.words(), one_log).wait().demand(0)
            oracle.check(one.store, reference)
            if number == 0:
                _read_only(world, mount, one, one_log)
    say = world.findings.count
    say("times that a small disk was full", sentences, ">=", world.size.full_disks)
    say("… of these with Ray", on_ray)
    say("… with exit code 1, a sentence that says what to do, and a sound store", sentences, "=",
        world.size.full_disks)  # fmt: skip
    say("… after which a run with room gave the undisturbed rows", sentences, "=",
        world.size.full_disks)  # fmt: skip


def _read_only(world: World, mount: Path, job: Job, log: Path) -> None:
    """A complete store on a read-only disk has nothing to do; one that lacks rows says so."""
    _remount(mount, "ro")
    ended = processes.fork(job.words(), log).wait()
    world.findings.count("exit code of a run with nothing to do, read-only", ended.code, "=", 0)
    more = ("--set", "stages.events.min_len_s=1.0")
    ended = processes.fork(job.words(*more), log).wait()
    _must_say(ended, errno.EROFS, job, log)
    world.findings.count("exit code of a run with work to do, read-only", ended.code, "=", 1)
    _remount(mount, "rw")


def _refusals(world: World) -> None:
    """The k-th change of a run, and all later ones, are refused with each of four errors."""
    ids = [f"v{number}" for number in range(4)]
    reference = world.toys("reference", ids).reference()
    tried: Counter[str] = Counter()
    number = 0
    points = 2 if world.size.full_disks < 20 else 12
    for code, name in ((each, errno.errorcode[each]) for each in _WORDS):
        for point in sorted(world.random.sample(range(3, 40), points)):
            job = world.toys(f"refused-{number}", ids)
            number += 1
            hook = faulty.refuse_at(point, code)
            ended = job.run(before=_installer(job, hook))
            if ended.code == 0:
                tried[f"{name} came too late"] += 1
                continue
            _must_say(ended, code, job, job.log)
            job.run().demand(0)
            job.settle(reference)
            tried[name] += 1
    told = ", ".join(f"{name} {count}" for name, count in tried.items())
    world.findings.count("injected errors, each with a sentence, then completed", number, note=told)


def _installer(job: Job, hook: faulty.Hook) -> Callable[[], None]:
    return lambda: faulty.install(job.store, hook)


def _must_say(ended: Ended, code: int, job: Job, log: Path) -> None:
    """Exit code 1, one sentence with advice, no traceback, and what is visible is whole."""
    if ended.code != 1 or _WORDS[code] not in ended.said or "Traceback" in ended.said:
        raise BrokenError(
            f"{errno.errorcode[code]}: exit code {ended.code}, expected 1 with the words "
            f"'{_WORDS[code]}'; log {log}:\n{ended.said[-2500:]}"
        )
    if (job.store / "store.json").exists():
        for sentence in oracle.problems(job.store):
            if not sentence.startswith("catalogue"):
                raise BrokenError(f"{errno.errorcode[code]}: {job.store}: {sentence}")


# --- a small file system


def _used_kb(world: World) -> int:
    """What a whole store takes, in whole pages."""
    store = world.folder / "undisturbed" / "store"
    pages = sum(-(-each.stat().st_size // 4096) for each in store.rglob("*") if each.is_file())
    return pages * 4


def _mounts(folder: Path) -> bool:
    done = _mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    if done:
        subprocess.run(["umount", str(folder)], check=True)
    return done


@contextmanager
def _disk(folder: Path, size: str) -> Iterator[None]:
    if not _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        raise BrokenError(f"a disk of {size} cannot be mounted at {folder}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _remount(folder: Path, option: str) -> None:
    if not _mount("-o", f"remount,{option}", str(folder)):
        raise BrokenError(f"{folder} cannot be mounted again with {option}")


def _mount(*words: str) -> bool:
    try:
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
