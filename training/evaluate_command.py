"""`trainer evaluate`: scores of a file of predictions, of a run, or of a baseline."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data.annotations import DATASETS, load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from data.identity import file_sha256
from data.terminal import new_table
from training.checks import clip_len_of, faults_of_file, refuse_trained_on
from training.evaluate import Found, measure
from training.metrics import Measured, Mode, Scores
from training.metrics.uncertainty import Resampling, Unit, intervals_json
from training.options import (
    AnnotationsOption,
    ConfigOption,
    DatasetOption,
    FormatOption,
    JsonOption,
    MetricsOption,
    ModeOption,
    OverlapOption,
    PerQueryOption,
    RequireOption,
    RunOption,
    SetOption,
    WhichOption,
    answered,
    check_writable,
    console_beside,
    settings,
    tell,
    tell_written,
    write_json,
    write_rows,
)
from training.predictions import order_note, read_predictions

__all__ = ["GroundTruth", "evaluate_commands", "named", "tell_mending"]

evaluate_commands = typer.Typer()

CiOption = Annotated[bool, typer.Option("--ci", help="Also bootstrap confidence intervals.")]
CiSamplesOption = Annotated[
    int, typer.Option("--ci-samples", help="How often the split is drawn again.")
]
CiLevelOption = Annotated[float, typer.Option("--ci-level", help="Level of the intervals.")]
CiUnitOption = Annotated[
    Unit,
    typer.Option("--ci-unit", help="What is drawn: videos with all their queries, or queries."),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]


@dataclass(frozen=True)
class GroundTruth:
    """A file of annotations and how predictions for it are measured.

    Args:
        rows: the queries.
        dataset: whose format the file has.
        metrics: name of the evaluator.
        clip_len_s: of the clips that carry saliency.
        about: what an output says about the file.
    """

    rows: Sequence[Annotation]
    dataset: str
    metrics: str
    clip_len_s: float
    about: Mapping[str, Any]

    @classmethod
    def read(cls, dataset: str, path: Path, metrics: str | None) -> GroundTruth:
        """Read an annotation file.

        Args:
            dataset: its format.
            path: the file.
            metrics: another evaluator than the usual one of the dataset.

        Raises:
            UsageError: unknown dataset, or a file that is not of its format.
        """
        known = DATASETS.get(dataset)
        rows = load_annotations(dataset, path)
        about = {"dataset": dataset, "annotations": named(path)}
        clips = clip_len_of(path, dataset)
        return cls(rows, dataset, metrics or known.metrics[0], clips, about)

    def measure(self, predictions: Path, mode: Mode, format: str | None = None) -> Measured:
        """Measure a file of predictions, of the format of that name or as it looks."""
        answers = read_predictions(predictions, self.rows, format)
        measured = measure(
            self.rows, answers, metrics=self.metrics, clip_len_s=self.clip_len_s, mode=mode
        )
        disorder = order_note(answers) if mode == "official" else None
        return replace(measured, notes=(*measured.notes, disorder)) if disorder else measured


@evaluate_commands.command("evaluate")
@answered
def evaluate_command(
    dataset: DatasetOption = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Predictions to score.")
    ] = None,
    format: FormatOption = None,
    annotations: AnnotationsOption = None,
    run: RunOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="The model of --config at initialisation.")
    ] = False,
    blind: Annotated[
        bool, typer.Option("--blind", help="The moment prior of --config's training split.")
    ] = False,
    split: Annotated[str | None, typer.Option("--split", help="Default: eval.split.")] = None,
    which: WhichOption = "best",
    metrics: MetricsOption = None,
    mode: ModeOption = None,
    ci: CiOption = False,
    ci_samples: CiSamplesOption = 2000,
    ci_level: CiLevelOption = 0.95,
    ci_unit: CiUnitOption = "video",
    seed: SeedOption = 0,
    trained_on: Annotated[
        list[str] | None,
        typer.Option("--trained-on", help="Annotations that their model has seen. Repeatable."),
    ] = None,
    allow_overlap: OverlapOption = False,
    require: RequireOption = None,
    per_query: PerQueryOption = None,
    json_path: JsonOption = None,
) -> None:
    """Score predictions (--predictions), a run (--run), or a baseline (--config).

    The JSON has the official names in the official nesting, and says how they came about.
    """
    console = console_beside(json_path)
    check_writable("--json", json_path)
    check_writable("--per-query", per_query)
    resampling = Resampling(ci_samples, ci_level, ci_unit, seed) if ci else None
    _check_choice(
        {"--predictions": predictions, "--run": run, "--config": config},
        {
            "--dataset": (dataset, ["--predictions"]),
            "--annotations": (annotations, ["--predictions"]),
            "--format": (format, ["--predictions"]),
            "--trained-on": (trained_on, ["--predictions"]),
            "--set": (overrides, ["--run", "--config"]),
            "--split": (split, ["--run", "--config"]),
            "--require": (require, ["--run", "--config"]),
            "--untrained": (untrained, ["--config"]),
            "--blind": (blind, ["--config"]),
        },
    )
    if predictions is not None:
        truth = _truth(annotations, dataset, metrics)
        found = _of_file(truth, predictions, mode or "official", format)
        leak = refuse_trained_on(truth.rows, trained_on or (), dataset, allow=allow_overlap)
        for note in (leak, faults_of_file(truth.rows, str(annotations), truth.dataset)):
            if note:
                tell(console, note)
        if leak:
            found.about["overlap"] = leak
    else:
        from training.jobs import evaluate_model  # torch takes seconds to import

        found = evaluate_model(
            run,
            config,
            _chosen(metrics, mode) + settings(overrides, require),
            functools.partial(tell, console),
            split=split,
            which=which,
            untrained=untrained,
            blind=blind,
            allow_overlap=allow_overlap,
        )
    _report(console, found, resampling, json_path, per_query)


def named(path: Path) -> dict[str, str]:
    """Name and sha256 of a file, so that a reader of a score can tell which one was used."""
    return {"file": path.name, "sha256": file_sha256(path)}


def _chosen(metrics: str | None, mode: Mode | None) -> list[str]:
    """What --metrics and --mode change of the configuration."""
    options = {"eval.metrics": metrics, "eval.mode": mode}
    return [f"{name}={value}" for name, value in options.items() if value]


def _check_choice(
    ways: Mapping[str, object], options: Mapping[str, tuple[object, Sequence[str]]]
) -> None:
    """Exactly one way to evaluate, and no option that this way would not look at."""
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) != 1:
        raise UsageError(
            "evaluate needs one of --predictions FILE, --run RUN and --config FILE, got "
            + (" and ".join(chosen) or "none")
        )
    for name, (value, users) in options.items():
        if value and chosen[0] not in users:
            raise UsageError(f"{name} goes with {' or '.join(users)}, not with {chosen[0]}")


def tell_mending(console: Console, measured: Measured) -> dict[str, Any]:
    """Say what mode "strict" did to the true moments, and give the same for a JSON."""
    if measured.mending is None:
        return {}
    for sentence in measured.mending.sentences():
        tell(console, f"mode strict: {sentence}")
    return {"mended": measured.mending.counts}


def _truth(annotations: Path | None, dataset: str | None, metrics: str | None) -> GroundTruth:
    if annotations is None or dataset is None:
        raise UsageError("evaluate --predictions needs --annotations FILE and --dataset NAME")
    return GroundTruth.read(dataset, annotations, metrics)


def _of_file(truth: GroundTruth, predictions: Path, mode: Mode, format: str | None) -> Found:
    measured = truth.measure(predictions, mode, format)
    about = {"mode": mode, "metrics": truth.metrics, **truth.about}
    about |= {"predictions": named(predictions)}
    return Found(str(predictions), measured, about, measured.aliases)


def _report(
    console: Console,
    found: Found,
    resampling: Resampling | None,
    json_path: Path | None,
    per_query: Path | None,
) -> None:
    about, measured = found.about, found.measured
    scores = measured.scores()
    about["queries"] = len(measured.annotations)
    for note in measured.notes:
        tell(console, note)
    about |= {"notes": list(measured.notes)} if measured.notes else {}
    about |= tell_mending(console, measured)
    if resampling is not None:
        about["ci"] = intervals_json(measured, resampling)
    tell(
        console,
        f"{found.title}: {about['queries']:,} queries, {about['metrics']}, {about['mode']} metrics",
    )
    table = _table(scores["brief"], about.get("ci"), measured.number.decimals)
    if per_query is not None:
        write_rows(per_query, measured.per_query())
    if json_path is not None:
        for brief in (scores["brief"], *([about["ci"]["brief"]] if "ci" in about else ())):
            brief |= {also: brief[name] for also, name in found.aliases.items()}
        write_json(json_path, {**scores, **about})
    console.print(table)  # after the files, which are whole even if nobody reads this to its end
    tell_written(console, "the shares of each query are in", per_query)
    tell_written(console, "all scores are in", json_path)


def _table(brief: Scores, ci: Scores | None, decimals: int) -> Table:
    heading = f"{100 * ci['level']:g} % interval over {ci['units']:,} {_plural(ci)}" if ci else ""
    table = new_table("", "metric", "score>", *([f"{heading}>"] if ci else ()))
    for name, value in brief.items():
        pair = ci["brief"][name] if ci else None
        ends = " to ".join(f"{end:.{decimals}f}" for end in pair or ()) or "-"
        interval = [ends] if ci else []
        table.add_row(name, "-" if value is None else f"{value:.{decimals}f}", *interval)
    return table


def _plural(ci: Scores) -> str:
    return {"video": "videos", "query": "queries"}[str(ci["unit"])]
