"""`pipeline demo`: the whole road on a synthetic corpus, by the commands that a user would type.

    demo/corpus/        rendered videos, annotations, true boundaries
    demo/pipeline.yaml  the job:        pipeline run --config demo/pipeline.yaml
    demo/store/         shards
    demo/runs/          trained models: trainer fit --config ... --out demo/runs/qd_detr
    demo/report.html    what came out

Every step may be killed; the same command continues where it stopped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml
from rich.console import Console

from data.errors import StorylineError, UsageError, how_to_install
from data.store import Store
from data.synthetic import render_corpus
from data.terminal import new_table
from data.video.listing import list_videos
from pipeline.report import ReportInputs, write_report
from pipeline.report.collect import BRIEF, MetricRow, read_metrics

__all__ = ["DemoError", "DemoSize", "run_demo"]

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "trainer" / "qd_detr"


class DemoError(StorylineError):
    """A step of the demo ended with an unexpected exit code; its own output says why."""


@dataclass(frozen=True)
class DemoSize:
    """How much is rendered and trained."""

    train: int = 160
    val: int = 40
    test: int = 20
    seed: int = 0
    epochs: int | None = None


@dataclass(frozen=True)
class Run:
    """One trained model of the demo."""

    name: str
    about: str
    config: Path
    folder: Path


def run_demo(out: Path, size: DemoSize, console: Console) -> Path:
    """Run every step that is not done yet; returns the path of the report.

    Raises:
        UsageError: `out` holds something that is not a demo.
        DemoError: a step failed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "the demo trains at its end, and tensorboard, which the trainer needs, is not "
            f"installed; run `make install`, or {how_to_install('trainer')}"
        )
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    corpus, store = out / "corpus", out / "store"
    _render(corpus, size, console)
    job = _write_job(out)
    _call(["pipeline", "run", "--config", str(job)], console)
    runs = [
        Run("QD-DETR", "trained on the corpus", CONFIGS / "demo.yaml", out / "runs/qd_detr"),
        Run(
            "QD-DETR + narratives",
            "the same with the TEA merge of captions",
            CONFIGS / "demo_tea.yaml",
            out / "runs/qd_detr_tea",
        ),
    ]
    settings = ["--set", f"data.store={store}"]
    settings += ["--set", f"loop.epochs={size.epochs}"] if size.epochs else []
    _train(runs, settings, console)
    baselines = _baselines(runs[0].config, out / "runs", settings, console)
    metrics = [_trained_row(run) for run in runs] + baselines
    report = out / "report.html"
    write_report(_report(out, runs, metrics), report)
    _print_result(metrics, report, time.monotonic() - started, console)
    return report


def _render(corpus: Path, size: DemoSize, console: Console) -> None:
    if (corpus / "corpus.json").exists():
        _check_same_corpus(corpus, size)
        console.print(f"{corpus} is rendered already", style="dim")
        return
    videos = size.train + size.val + size.test
    console.rule(f"render {videos} videos into {corpus}", align="left")
    began = time.monotonic()
    render_corpus(
        corpus,
        train=size.train,
        val=size.val,
        test=size.test,
        seed=size.seed,
        workers=os.cpu_count() or 1,
    )
    console.print(f"rendered in {time.monotonic() - began:.0f} s")


def _check_same_corpus(corpus: Path, size: DemoSize) -> None:
    there = json.loads((corpus / "corpus.json").read_text())["parameters"]
    wanted = {"train": size.train, "val": size.val, "test": size.test, "seed": size.seed}
    if any(there[key] != value for key, value in wanted.items()):
        raise UsageError(
            f"{corpus} holds a corpus of another size or seed; "
            "choose another folder with --out, or remove it"
        )


def _write_job(out: Path) -> Path:
    job = {
        "extends": "tiny",
        "dataset": "synthetic",
        "clip_len_s": 1.0,
        "videos": {"root": "corpus/videos"},
        "store": "store",
        "annotations": {
            split: f"corpus/annotations/{split}.jsonl" for split in ("train", "val", "test")
        },
        # Scenes of the corpus last two clips or more, the defaults are for films of minutes; the
        # threshold is the best one of seven on its training split.
        "stages": {"events": {"half_width_s": 2.0, "min_len_s": 2.0, "delta_rel": 0.2}},
    }
    file = out / "pipeline.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def _train(runs: Sequence[Run], settings: Sequence[str], console: Console) -> None:
    """All runs that are not finished, side by side: one per core on a small machine."""
    open_runs = [run for run in runs if not (run.folder / "metrics.json").exists()]
    for run in runs:
        if run not in open_runs:
            console.print(f"{run.folder} is trained already", style="dim")
    commands = {
        run.name: [
            *("trainer", "fit", "--config", str(run.config), "--out", str(run.folder)),
            *settings,
            *(["--resume"] if run.folder.exists() else []),
        ]
        for run in open_runs
    }
    if commands:
        _call_side_by_side(commands, console)


def _baselines(
    config: Path, folder: Path, settings: Sequence[str], console: Console
) -> list[MetricRow]:
    rows = []
    for flag, name, about in (
        ("--untrained", "QD-DETR, untrained", "the same network at initialisation"),
        ("--blind", "blind baseline", "moment prior of the training split, without video"),
    ):
        file = folder / f"{flag.strip('-')}.json"
        if not file.exists():
            command = ["trainer", "evaluate", "--config", str(config), *settings]
            _call([*command, flag, "--json", str(file)], console)
        rows.append(read_metrics(file, name, about, flag.strip("-")))
    return rows


def _trained_row(run: Run) -> MetricRow:
    return read_metrics(run.folder / "metrics.json", run.name, run.about, "trained")


def _report(out: Path, runs: Sequence[Run], metrics: Sequence[MetricRow]) -> ReportInputs:
    store = Store.open(out / "store")
    listed = list_videos(out / "corpus" / "videos")
    return ReportInputs(
        title="Storyline demo",
        lead="From a folder of mp4 files to a trained model, on a synthetic corpus.",
        notes=[
            "All feature networks have random weights (seeded, calibrated once; nothing was "
            "downloaded): the numbers show that the system learns, not how good a model is."
        ],
        store=store,
        runs={run.name: run.folder for run in runs},
        metrics=metrics,
        metric_remarks=[_narrative_remark(metrics)],
        videos={video.id: video for video in listed.videos},
        boundaries=out / "corpus" / "boundaries.jsonl",
    )


def _narrative_remark(metrics: Sequence[MetricRow]) -> str:
    plain, told = (row.scores.get(BRIEF["R1@0.5"]) for row in metrics[:2])
    if plain is None or told is None:
        return "R1@0.5 is missing in one of the runs."
    return (
        f"With the narrative merge R1@0.5 is {told - plain:+.2f} against the same model without it "
        "(one seed, a small corpus: a difference of a few points means nothing)."
    )


def _print_result(
    metrics: Sequence[MetricRow], report: Path, seconds: float, console: Console
) -> None:
    table = new_table("Validation split", "model", *(f"{name}>" for name in BRIEF))
    for row in metrics:
        values = [row.scores.get(key) for key in BRIEF.values()]
        table.add_row(row.name, *("–" if v is None else f"{v:.2f}" for v in values))
    console.print(table)
    console.print(f"done in {seconds / 60:.1f} min; report: {report.resolve()}")


def _program(name: str) -> str:
    """The console command of this environment, else the first on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UsageError(
            f"the command '{name}' is not installed beside {sys.executable}; run `make install`, "
            f"or {how_to_install('pipeline,trainer')}"
        )
    return found


def _call(command: Sequence[str], console: Console) -> None:
    console.rule(f"$ {' '.join(command)}", align="left")
    done = subprocess.run([_program(command[0]), *command[1:]], check=False)
    _check(command, done.returncode)


def _call_side_by_side(commands: dict[str, list[str]], console: Console) -> None:
    """Start all, prefix each line with the name; one compute thread each."""
    processes: dict[str, subprocess.Popen[str]] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, command in commands.items():
        console.rule(f"$ {' '.join(command)}", align="left")
        processes[name] = subprocess.Popen(
            [_program(command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
    readers = [
        threading.Thread(target=_relay, args=(process.stdout, name, console), daemon=True)
        for name, process in processes.items()
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for name, process in processes.items():
        _check(commands[name], process.wait())


def _relay(stream: IO[str] | None, name: str, console: Console) -> None:
    for line in stream or ():
        console.print(f"[{name}] {line.rstrip()}")


def _check(command: Sequence[str], code: int) -> None:
    if code != 0:
        raise DemoError(
            f"`{' '.join(command)}` ended with exit code {code}; its output is above. "
            "Run the demo again to continue from here."
        )
