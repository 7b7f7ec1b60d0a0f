"""What the engine costs beside a plain loop, on Ray with two workers, and when nothing is to do.

    python benchmarks/engine.py [--check] [--items 400] [--done 20000]

Targets are of this project: an item of the cheapest real stage takes tens of milliseconds, so an
engine that adds less than 5 ms to an item is not what anybody waits for; a run with nothing to do
over 20,000 videos should feel immediate (issue 3 asks for 100,000 in under 10 s).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from harness import Benchmark
from rich.console import Console

from data.config import Group
from data.store import ItemKey, Row, Schema, Store, StreamSpec
from pipeline.config import Engine, PipelineConfig, Videos, load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Run, look, ray_or_inline
from pipeline.stage import STAGES, Inputs, Item, Resources, RowStage

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--done", type=int, default=20_000)
    bench = Benchmark("What does the engine cost?", parser)
    importlib.import_module("pipeline.stages")
    STAGES.register(Waiting.name)(Waiting)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inline_overhead(bench, root, bench.args.items)
        ray_two_workers(bench, root, bench.args.items)
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
    """A run over inputs that are all there."""
    write_files(root / "done", done)
    config = config_of(root, "done", options=Waiting.Options(seconds=0))
    run_seconds(config)
    seconds = run_seconds(config)
    bench.figure(f"nothing to do, {done:,} videos", seconds, "s", at_most=10 * done / 100_000)
    reader = Store.open(root / "done-store").reader("waiting")
    assert len(reader) == done


def run_seconds(config: PipelineConfig) -> float:
    """Wall seconds of one run, reading of the folder included."""
    began = time.perf_counter()
    view = look(config, [Waiting.name], None)
    progress = Progress(Console(quiet=True))
    Run(config, view, ray_or_inline(config), progress, StopFlag()).run()
    return time.perf_counter() - began


def config_of(
    root: Path, name: str, engine: Engine | None = None, options: Group | None = None
) -> PipelineConfig:
    """A config over the files of `write_files(root / name, ...)`."""
    file = root / f"{name}.yaml"
    file.write_text(f"stages: {{{Waiting.name}: {{}}}}\n")
    update = {
        "videos": Videos(root=root / name),
        "store": root / f"{name}-store",
        "engine": engine or Engine(executor="inline"),
    }
    loaded = load_pipeline_config(file)
    if options is not None:
        stages = loaded.stages.model_copy(update={Waiting.name: options})
        update["stages"] = stages
    return loaded.model_copy(update=update)


def write_files(folder: Path, count: int) -> list[Path]:
    """Small files of different content; nothing decodes them."""
    folder.mkdir()
    paths = [folder / f"v{number:06}.mp4" for number in range(count)]
    for path in paths:
        path.write_text(path.name)
    return paths


if __name__ == "__main__":
    main()
