"""What the engine costs beside a plain loop, on Ray with two workers, and at scale.

    python benchmarks/engine.py [--check] [--items 400] [--done 100000] [--many 20000]

An item of the cheapest real stage takes tens of milliseconds, so an engine that adds less than 5 ms
to an item is not what anybody waits for (target of this project). A `pipeline run` with nothing to
do over 100,000 videos takes under 10 s, and the memory of the driver does not grow with the videos
done (issue 3).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from harness import Benchmark
from rich.console import Console

from data.config import Group
from data.grid import Grid
from data.store import CatalogueEntry, ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.video.types import VideoFacts
from pipeline.config import Engine, PipelineConfig, Videos, load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Run, look, ray_or_inline
from pipeline.stage import STAGES, Inputs, Item, Resources, RowStage
from pipeline.survey import Ledger

CLIPS, WIDTH = 75, 512
"""A row like CLIP's for a QVHighlights video."""


class Waiting(RowStage):
    """Takes a known time and gives a row like CLIP's."""

    name: ClassVar[str] = "waiting"

    class Options(Group):
        """The known time."""

        seconds: float = 0.02

    @property
    def schema(self) -> Schema:
        """One array."""
        return Schema({"waiting": StreamSpec((WIDTH,), "float16", "item")})

    def params(self) -> Mapping[str, Any]:
        """The known time."""
        return {"seconds": self.options.seconds}

    @property
    def resources(self) -> Resources:
        """One CPU."""
        return Resources(cpus=1.0)

    def process(self, item: Item, inputs: Inputs) -> Row:
        """Sleep, then draw the rows."""
        time.sleep(self.options.seconds)
        seed = int(item.key.content[:8], 16)
        rows = np.random.default_rng(seed).random((CLIPS, WIDTH), dtype=np.float32)
        return Row(item.key, arrays={"waiting": rows.astype(np.float16)})


class Trivial(RowStage):
    """Gives a row of one number at once."""

    name: ClassVar[str] = "trivial"

    class Options(Group):
        """None."""

    @property
    def schema(self) -> Schema:
        """One number."""
        return Schema({"trivial": StreamSpec((), "float32", "item")})

    def params(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def process(self, item: Item, inputs: Inputs) -> Row:
        """One number."""
        return Row(item.key, arrays={"trivial": np.zeros(1, np.float32)})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--done", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=20_000)
    bench = Benchmark("What does the engine cost?", parser)
    importlib.import_module("pipeline.stages")
    STAGES.register(Waiting.name)(Waiting)
    STAGES.register(Trivial.name)(Trivial)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        memory_of_the_driver(bench, root, bench.args.many)
        inline_overhead(bench, root, bench.args.items)
        ray_two_workers(bench, root, bench.args.items)
        many_shards(bench, root)
        nothing_to_do(bench, root, bench.args.done)
    bench.finish()


def inline_overhead(bench: Benchmark, root: Path, items: int) -> None:
    """The same rows by a plain loop over `process`, and by the engine in one process."""
    videos = write_files(root / "inline", items)
    stage = Waiting(config_of(root, "x").context, Waiting.Options())
    began = time.perf_counter()
    for path in videos:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        stage.process(Item(ItemKey(path.stem, content)), None)  # type: ignore[arg-type]
    plain = time.perf_counter() - began
    engine = run_seconds(config_of(root, "inline"))
    bench.figure("plain loop, per item", 1e3 * plain / items, "ms")
    bench.figure("engine inline, per item", 1e3 * engine / items, "ms")
    bench.figure("engine adds, per item", 1e3 * (engine - plain) / items, "ms", at_most=5)


def ray_two_workers(bench: Benchmark, root: Path, items: int) -> None:
    """Two workers against the ideal: half of the time that one would sleep."""
    write_files(root / "ray", 2 * items)
    config = config_of(root, "ray", Engine(executor="ray", workers=2, cpus=4))
    import ray

    began = time.perf_counter()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    bench.figure("start of a local Ray", time.perf_counter() - began, "s")
    seconds = run_seconds(config)
    ray.shutdown()
    ideal = items * Waiting.Options().seconds
    bench.figure("Ray, 2 workers, start to end", seconds, "s")
    bench.figure("ideal (half of the stage's time)", ideal, "s")
    bench.figure("share of the time in the stage", ideal / seconds, at_least=0.6)


def nothing_to_do(bench: Benchmark, root: Path, done: int) -> None:
    """`pipeline run` as a user calls it, over videos whose rows of three stages are all there."""
    videos = write_files(root / "done", done)
    config = root / "done.yaml"
    stages = "probe: {}, clip: {preset: tiny}, slowfast: {preset: tiny}"
    config.write_text(
        f"stages: {{{stages}}}\nvideos: {{root: {root / 'done'}}}\nstore: {root / 'done-store'}\n"
    )
    fill(load_pipeline_config(config), videos)
    command = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    for name in ("run", "plan", "status"):
        seconds = statistics.median(
            command_seconds([*command, name, "--config", str(config)]) for _ in range(3)
        )
        target = 10 * done / 100_000 if name == "run" else None
        title = f"pipeline {name}, nothing to do, {done:,} videos, 3 stages"
        bench.figure(title, seconds, "s", at_most=target)


def command_seconds(command: list[str]) -> float:
    """Wall seconds of a command that ends with exit code 0."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def fill(config: PipelineConfig, videos: list[Path]) -> None:
    """The rows, hashes and catalogue that a finished run leaves: one clip of ones per video."""
    view = look(config, [], None)
    store = Store.create(view.store, dataset=config.dataset, clip_len_s=config.clip_len_s)
    facts = VideoFacts(2.0, 25.0, 50, 64, 48, 0, "h264", "yuv420p", 10, False, 0)
    keys = [ItemKey(path.stem, hashlib.sha256(path.read_bytes()).hexdigest()) for path in videos]
    for stage in view.program.stages:
        recipe = view.program.recipes[stage.name]
        arrays = {
            name: np.ones((1, *spec.shape), spec.dtype)
            for name, spec in recipe.schema.arrays.items()
        }
        told = facts.to_json() if stage.name == "probe" else {}
        with store.writer(recipe) as writer:
            for key in keys:
                writer.add(Row(key, Grid(2.0, config.clip_len_s), arrays, facts=told))
        store.set_current({stage.name: recipe.id})
    hashes = store.file_hashes()
    for path, key in zip(videos, keys, strict=True):
        hashes.remember(path, key.content, path.stat())
    store.update_catalogue(CatalogueEntry(key.id, key.content, facts) for key in keys)


def many_shards(bench: Benchmark, root: Path, shards: int = 2_000, items: int = 50) -> None:
    """The first look at a store of many small shards, and the next one in the same run."""
    store = Store.create(root / "shards", dataset="benchmark", clip_len_s=2.0)
    recipe = Recipe("probe", 1, {}, {}, Schema())
    writer = store.writer(recipe)
    for number in range(shards * items):
        writer.add(Row(ItemKey(f"v{number:06}", f"{number:064x}"), Grid(2.0, 2.0)))
        if (number + 1) % items == 0:
            writer.flush()
    ledger = Ledger(store)
    for name in ("first", "next"):
        began = time.perf_counter()
        assert len(ledger.present(recipe)) == shards * items
        seconds = time.perf_counter() - began
        bench.figure(f"{name} look at {shards:,} shards of {items}", seconds, "s")


def memory_of_the_driver(bench: Benchmark, root: Path, items: int) -> None:
    """Resident memory of a run over trivial items, after a tenth, a half and all of them."""
    write_files(root / "many", items)
    config = config_of(
        root, "many", Engine(executor="inline", commit_every_s=1), stage=Trivial.name
    )
    view = look(config, [Trivial.name], None)
    watcher = Sampler([items // 10, items // 2, items])
    Run(config, view, ray_or_inline(config), watcher, StopFlag()).run()
    tenth, half, whole = watcher.resident_mb
    bench.figure(f"driver after 10 % of {items:,} items", tenth, "MB")
    bench.figure("driver after 50 %", half, "MB")
    bench.figure("driver after 100 %", whole, "MB")
    bench.figure("growth from 10 % to 100 %", whole - tenth, "MB", at_most=10)


class Sampler(Progress):
    """Looks at the memory of this process when so many items are done."""

    def __init__(self, counts: list[int]) -> None:
        super().__init__(Console(quiet=True))
        self.resident_mb: list[float] = []
        self._counts, self._done = counts, 0

    def advance(self, stage: str, *, done: int = 0, failed: int = 0) -> None:
        """Count."""
        super().advance(stage, done=done, failed=failed)
        self._done += done
        if self._done in self._counts:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident_mb.append(pages * resource.getpagesize() / 1e6)


def run_seconds(config: PipelineConfig) -> float:
    """Wall seconds of one run, reading of the folder included."""
    began = time.perf_counter()
    view = look(config, [Waiting.name], None)
    progress = Progress(Console(quiet=True))
    Run(config, view, ray_or_inline(config), progress, StopFlag()).run()
    return time.perf_counter() - began


def config_of(
    root: Path, name: str, engine: Engine | None = None, stage: str = Waiting.name
) -> PipelineConfig:
    """A config over the files of `write_files(root / name, ...)`."""
    file = root / f"{name}.yaml"
    file.write_text(f"stages: {{{stage}: {{}}}}\n")
    update = {
        "videos": Videos(root=root / name),
        "store": root / f"{name}-store",
        "engine": engine or Engine(executor="inline"),
    }
    return load_pipeline_config(file).model_copy(update=update)


def write_files(folder: Path, count: int) -> list[Path]:
    """Small files of different content; nothing decodes them."""
    folder.mkdir()
    paths = [folder / f"v{number:06}.mp4" for number in range(count)]
    for path in paths:
        path.write_text(path.name)
    return paths


if __name__ == "__main__":
    main()
