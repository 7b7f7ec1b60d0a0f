"""Section `videos`: mutated media files through `probe` and `clip`."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from data.store import Store

from . import oracle, processes
from .figures import BrokenError
from .processes import ROOT
from .world import World

__all__ = ["MUTATIONS", "run"]

_DEADLINE_S = 3600.0
_SILENCE_S = 20.0
_MOST_S = 3.0


def run(world: World) -> None:
    """One run over all mutants and the films that they came from."""
    sources = _sources(world)
    folder = world.folder / "mutants" / "videos"
    folder.mkdir(parents=True)
    how: dict[str, str] = {}
    for number in range(world.size.mutants):
        name, change = world.random.choice(list(MUTATIONS.items()))
        source = sources[number % len(sources)]
        id_ = f"{number:04}-{name}"
        mutant = change(source.read_bytes(), world.random)
        (folder / f"{id_}{source.suffix}").write_bytes(mutant)
        how[id_] = name
    job = world.job(
        "mutants",
        films=world.films,
        videos={"root": str(folder)},
        decode={"timeout_s": _SILENCE_S},
        engine={"executor": "ray", "workers": 2, "commit_every_s": 5.0, "shard_mb": 16.0},
    )
    began = time.monotonic()
    driver = processes.real(
        job.words("--stage", "probe", "--stage", "clip"), job.log, token="mutants"
    )
    said = driver.wait(_DEADLINE_S).demand(0, 3).said
    seconds = time.monotonic() - began
    _tell(world, job.store, how, said, seconds, len(sources))


def _tell(
    world: World, path: Path, how: dict[str, str], said: str, seconds: float, sources: int
) -> None:
    store = Store.open(path)
    stored = {stage: set(store.reader(stage).ids()) for stage in ("probe", "clip")}
    failures = {
        stage: {each.key.id: each for each in store.failures(stage).read().values()}
        for stage in ("probe", "clip")
    }
    partial = [id_ for id_ in stored["probe"] if store.reader("probe").facts(id_).get("damaged")]
    refused = failures["probe"].keys() | failures["clip"].keys()
    done = stored["clip"] - refused
    lost = how.keys() - done - refused
    both = stored["clip"] & failures["clip"].keys()
    reasons = Counter(
        (failures["probe"].get(id_) or failures["clip"][id_]).reason for id_ in refused
    )
    unsaid = [
        each
        for stage in failures
        for each in failures[stage].values()
        if not (each.reason and each.message)
    ]
    say = world.findings.count
    names = ", ".join(f"{name} {count}" for name, count in Counter(how.values()).most_common())
    say("mutated videos", len(how), ">=", world.size.mutants, f"of {sources} files: {names}")
    say("done", len(done), note=f"{len(partial)} of the probed with damaged packets, kept")
    told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    say("in quarantine with a reason", len(refused), note=told)
    say("neither done nor in quarantine", len(lost), "=", 0)
    say("stored and in quarantine at once", len(both), "=", 0)
    say("in quarantine without reason or sentence", len(unsaid), "=", 0)
    say("workers that died", said.count("a worker was lost"))
    say("seconds per video, all in all", seconds / len(how), note=f"no hang: limit {_DEADLINE_S:g}")
    for sentence in oracle.problems(path):
        raise BrokenError(f"{path}: {sentence}")


def _sources(world: World) -> list[Path]:
    """Real media files cut to a few seconds, or rendered films where there are none."""
    shared = Path(os.environ.get("STORYLINE_SHARED", ROOT.parent / "shared")) / "media"
    if not shared.is_dir():
        world.findings.count("real media files (../shared/media is absent: rendered films)", 0)
        return sorted((world.films / "videos").iterdir())
    folder = world.folder / "sources"
    folder.mkdir()
    names = sorted(each for each in shared.iterdir() if each.suffix in (".mp4", ".mov", ".mkv"))
    return [_cut(each, folder / each.name) for each in names]


def _cut(source: Path, target: Path) -> Path:
    """The first seconds, packets copied; the file itself where that cannot be done."""
    import av

    try:
        with av.open(str(source)) as read, av.open(str(target), "w") as write:
            stream = read.streams.best("video")
            assert stream is not None
            copy = write.add_stream_from_template(stream)
            for packet in read.demux(stream):
                if packet.dts is None or (
                    packet.time_base and packet.dts * packet.time_base > _MOST_S
                ):
                    continue
                packet.stream = copy
                write.mux(packet)
    except (av.error.FFmpegError, ValueError):
        target.write_bytes(source.read_bytes())
    return target


# --- mutations


def _header(data: bytes, rng: random.Random) -> bytes:
    """Random bytes among the first and last kilobytes, where containers keep their tables."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 12)):
        near = rng.randrange(min(2048, len(made)))
        made[near if rng.random() < 0.5 else -1 - near] = rng.randrange(256)
    return bytes(made)


def _cut_short(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _bits(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 3, 10, 100, 1000))):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(made)) // 4096 * 4096
        made[start : start + 4096] = bytes(len(made[start : start + 4096]))
    return bytes(made)


def _swapped(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice((64, 512, 4096))
    blocks = [data[start : start + size] for start in range(0, len(data), size)]
    for _ in range(rng.randint(1, 3)):
        a, b = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        blocks[a], blocks[b] = blocks[b], blocks[a]
    return b"".join(blocks)


def _sizes(data: bytes, rng: random.Random) -> bytes:
    """A 4-byte number somewhere in the front or the back becomes huge: sizes, counts, offsets."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(max(1, min(4096, len(made) - 4)))
        start = place if rng.random() < 0.5 else len(made) - 4 - place
        made[start : start + 4] = rng.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0")
        )
    return bytes(made)


def _grown(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.choice((1, 17, 4096))) + data[place:]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "header": _header,
    "truncated": _cut_short,
    "bits": _bits,
    "zeroed": _zeroed,
    "swapped": _swapped,
    "sizes": _sizes,
    "inserted": _grown,
}
