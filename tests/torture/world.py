"""The world of a section: its folder, its corpus, its configs and the undisturbed reference."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from . import oracle, processes
from .figures import BrokenError, Findings
from .processes import Driver, Ended
from .sizes import Size
from .toy_world import use_toys

__all__ = ["Job", "World", "marked"]

NOTHING = "nothing to do"

_NETWORKS = {"options": {"calibrated": False}}
"""Calibration costs seconds at each start of a worker and changes nothing that is tested here."""


def _nothing() -> None:
    """Nothing comes first."""


@dataclass
class World:
    """What a section gets.

    Args:
        section: its name.
        size: how much to do.
        seed: of everything that is drawn.
        folder: where it may write; kept if the section fails.
    """

    section: str
    size: Size
    seed: int
    folder: Path
    findings: Findings = field(init=False)

    def __post_init__(self) -> None:
        self.findings = Findings(self.section)
        self.random = random.Random(f"{self.seed}|{self.section}")

    @cached_property
    def films(self) -> Path:
        """A corpus of short rendered films with queries."""
        from data.synthetic import render_corpus

        made = self.folder / "films"
        train = self.size.films - 2
        render_corpus(
            made,
            train=train,
            val=2,
            test=0,
            seed=self.seed,
            clips=self.size.clips,
            fps=8,
            size=(48, 48),
            queries_per_video=2,
        )
        return made

    def job(self, name: str, *, films: Path | None = None, **config: Any) -> Job:
        """All real stages over films, the tiny preset, into a store of its own."""
        films = films or self.films
        splits = ("train", "val")
        values: dict[str, Any] = {
            "extends": "tiny",
            "dataset": "synthetic",
            "clip_len_s": 1.0,
            "videos": {"root": str(films / "videos")},
            "annotations": {each: str(films / "annotations" / f"{each}.jsonl") for each in splits},
            "store": "store",
            "decode": {"timeout_s": 60},
            "stages": {"clip": _NETWORKS, "slowfast": _NETWORKS, "i3d": _NETWORKS},
        }
        return Job.write(self.folder / name, merged(values, config))

    def toys(self, name: str, ids: Sequence[str], **config: Any) -> Job:
        """The toy stages of tests/pipeline/toys.py over toy videos."""
        folder = self.folder / name
        (folder / "videos").mkdir(parents=True)
        for id_ in ids:
            (folder / "videos" / f"{id_}.mp4").write_text(f"toy video {id_}")
        values: dict[str, Any] = {
            "videos": {"root": str(folder / "videos")},
            "store": "store",
            "decode": {"backend": "toys:ToyDecoder", "fallbacks": []},
            "stages": {"probe": {}, "rows": {}, "sums": {}},
            "engine": {"commit_every_s": 0.0},
        }
        return replace(Job.write(folder, merged(values, config)), first=use_toys)

    def temporary(self) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))


@dataclass
class Job:
    """One config with its folder and store."""

    folder: Path
    file: Path
    store: Path
    first: Callable[[], None] = _nothing
    """Called in a forked driver before anything else."""

    @staticmethod
    def write(folder: Path, values: dict[str, Any]) -> Job:
        """Write the config. Rows are written at once: much happens in a short time."""
        folder.mkdir(parents=True, exist_ok=True)
        engine: dict[str, Any] = {"executor": "inline", "commit_every_s": 0.05, "shard_mb": 0.01}
        file = folder / "pipeline.yaml"
        values = values | {"engine": engine | values.get("engine", {})}
        file.write_text(yaml.safe_dump(values))
        return Job(folder, file, folder / values["store"])

    def again(self, name: str) -> Job:
        """The same config with another, empty store."""
        return replace(self, store=self.folder / name)

    def first_doing(self, first: Callable[[], None]) -> Job:
        """The same job whose forked drivers call `first` before anything else."""
        return replace(self, first=first)

    def moved(self, folder: Path) -> Job:
        """A copy of config and store in another folder; the inputs stay where they are."""
        shutil.copytree(self.folder, folder)
        return replace(
            self, folder=folder, file=folder / self.file.name, store=folder / self.store.name
        )

    def words(self, *more: str, command: str = "run") -> list[str]:
        """The command line."""
        return [command, "--config", str(self.file), "--store", str(self.store), *more]

    def start(self, *more: str, before: Callable[[], None] | None = None) -> Driver:
        """A forked driver of `pipeline run`."""
        return self.fork(self.words(*more), before=before)

    def fork(self, words: Sequence[str], *, before: Callable[[], None] | None = None) -> Driver:
        """A forked driver of any command."""

        def first() -> None:
            self.first()
            if before is not None:
                before()

        return processes.fork(words, self.log, before=first)

    def run(self, *more: str, before: Callable[[], None] | None = None) -> Ended:
        """`pipeline run` in a forked driver, to its end."""
        return self.start(*more, before=before).wait()

    def tend(self, command: str, *more: str) -> Ended:
        """Another command about the store, to its end."""
        return self.fork([command, "--store", str(self.store), *more]).wait()

    @property
    def log(self) -> Path:
        """What the latest driver said."""
        return self.folder / f"{self.store.name}.log"

    def reference(self) -> oracle.Contents:
        """The rows of an undisturbed run into this job's store."""
        self.run().demand(0)
        found = oracle.contents(self.store)
        if not found:
            raise BrokenError(
                f"the undisturbed run into {self.store} wrote nothing; log {self.log}"
            )
        return found

    def settle(self, reference: oracle.Contents, *more: str) -> oracle.Finding:
        """Check the store against the reference, and that a further run does nothing.

        Raises:
            BrokenError: one of it does not hold.
        """
        finding = oracle.check(self.store, reference)
        before = oracle.shard_names(self.store)
        said = self.run(*more).demand(0).said
        if NOTHING not in said or oracle.shard_names(self.store) != before:
            raise BrokenError(f"a further run of {self.file} into {self.store} worked:\n{said}")
        return finding

    def remove(self) -> None:
        """Remove the store."""
        shutil.rmtree(self.store)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, one level deep."""
    both = dict(base)
    for key, value in over.items():
        inner = both.get(key)
        both[key] = inner | value if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def marked(file: Path) -> Callable[[], None]:
    """For `before`: one line in `file` per computed row, with its stage."""

    def install() -> None:
        from data.store import Row
        from data.store.store import ShardRef, ShardWriter

        kept = ShardWriter.add

        def add(self: ShardWriter, row: Row) -> ShardRef | None:
            with file.open("a") as out:
                out.write(f"{self.recipe.stage}\n")
            return kept(self, row)

        ShardWriter.add = add  # type: ignore[method-assign]

    return install
