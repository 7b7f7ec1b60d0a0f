"""The `trainer` command: fit, evaluate and predict. What `fit` writes is described in `run`.

Exit codes: 0 done; 2 wrong usage or configuration; 75 stopped, continue with --resume; 130 a
second Ctrl-C; any other: failure.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from data.annotations import DATASETS, load_annotations
from data.commands import EXIT_INTERRUPTED, program, reported
from data.config import load_config
from data.errors import UsageError
from data.store.files import atomic_write
from data.terminal import plain_console
from training.config import TrainerConfig, shipped_or_file
from training.distributed import World, joined
from training.evaluate import score
from training.loop import Progress, Reporter, Silent, StoppedError, stop_on_signals
from training.metrics import Mode, Scores
from training.predictions import read_predictions, write_predictions
from training.progress import Everyone, LiveReporter, Scalars, scores_table
from training.run import Run, Which
from training.session import (
    Session,
    Split,
    fit,
    predict_blind,
    predict_run,
    predict_untrained,
)
from training.task import Prediction

__all__ = ["app", "main"]

app = program("trainer", "Train, evaluate and use the models of the retrieval family.")
answered = reported("trainer", {StoppedError: EXIT_INTERRUPTED})

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The YAML file, or a shipped config by name.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="a.b=value; replaces a value of the config.")
]
RequireOption = Annotated[
    Literal["all", "any"] | None,
    typer.Option(
        "--require",
        help="all: a query without features is an error; any: it is left out, and listed.",
    ),
]
RunOption = Annotated[Path | None, typer.Option("--run", help="Folder of a run.")]
WhichOption = Annotated[Which, typer.Option("--which", help="Which checkpoint of the run.")]
OverlapOption = Annotated[
    bool, typer.Option("--allow-overlap", help="Score on videos that were trained on, too.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the scores here.")]


def main() -> None:
    """Entry point of the console command."""
    app()


@app.callback()
def _commands() -> None:
    """Train, evaluate and use the models of the retrieval family."""


@app.command("fit")
@answered
def fit_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    require: RequireOption = None,
    allow_overlap: OverlapOption = False,
) -> None:
    """Train a model on a store. The default of --out is runs/ and the config's name."""
    if out is None and config is not None:
        out = Path("runs") / config.stem
    if out is None or (config is None and not resume):
        raise UsageError("fit needs --config FILE (or --resume --out RUN to continue a run)")
    loaded = _configuration(config, _settings(overrides, require), out)
    with joined() as world, stop_on_signals() as stop:
        console = plain_console(quiet=not world.leads)
        try:
            run, progress = fit(
                loaded,
                out,
                resume=resume,
                allow_overlap=allow_overlap,
                tell=functools.partial(_tell, console),
                report=functools.partial(_reporting, console, world, loaded.loop.epochs, out),
                stop=stop,
                world=world,
            )
        except StoppedError as error:
            again = f"trainer fit --resume --out {shlex.quote(str(out))}"
            again += " --allow-overlap" * allow_overlap
            raise StoppedError(f"{error}; to continue:\n  {again}") from None
        _summarise(console, run, progress)


@app.command("evaluate")
@answered
def evaluate_command(
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Whose annotations and metrics.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Submission JSONL to score.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="Ground truth of the same queries.")
    ] = None,
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
    mode: Annotated[
        Literal["official", "strict"] | None,
        typer.Option("--mode", help="As the published evaluator, or with its quirks mended."),
    ] = None,
    extended: Annotated[
        bool, typer.Option("--extended", help="Also mIoU and R1@0.3 to 0.45.")
    ] = False,
    allow_overlap: OverlapOption = False,
    require: RequireOption = None,
    json_path: JsonOption = None,
) -> None:
    """Score predictions (--predictions), a run (--run), or a baseline (--config).

    The JSON has the official names in the official nesting, and `mode`.
    """
    console = plain_console()
    _check_writable("--json", json_path)
    _check_choice(
        {"--predictions": predictions, "--run": run, "--config": config},
        {
            "--dataset": (dataset, ["--predictions"]),
            "--annotations": (annotations, ["--predictions"]),
            "--set": (overrides, ["--run", "--config"]),
            "--split": (split, ["--run", "--config"]),
            "--require": (require, ["--run", "--config"]),
            "--untrained": (untrained, ["--config"]),
            "--blind": (blind, ["--config"]),
        },
    )
    if predictions is not None:
        scores = _score_file(predictions, annotations, dataset, mode or "official", extended)
        _show(console, str(predictions), scores, {"mode": mode or "official"}, json_path)
        return
    settings = _settings(overrides, require)
    opened = Run.open(run, settings) if run else None
    loaded = opened.config if opened else _configuration(config, settings, None)
    if mode:
        loaded = _with_mode(loaded, mode)
    session = Session(loaded, functools.partial(_tell, console))
    part = session.split(split or loaded.eval.split)
    session.check_disjoint(part, allow=allow_overlap)
    if opened:
        title, found = f"{run}, {which} checkpoint", predict_run(session, opened, part, which)
    else:
        title, found = _baseline(session, part, untrained=untrained, blind=blind)
    about: dict[str, Any] = {"mode": loaded.eval.mode}
    if part.samples.report.dropped_queries:
        about["queries_left_out"] = part.samples.report.dropped_queries
        about["left_out"] = part.samples.missing
    scores = session.score(part, found, extended=extended)
    _show(console, f"{title}, split '{part.name}'", scores, about, json_path)


@app.command("predict")
@answered
def predict_command(
    run: Annotated[Path, typer.Option("--run", help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", help="Submission JSONL to write.")],
    split: Annotated[str, typer.Option("--split", help="Split of the store.")],
    which: WhichOption = "best",
    overrides: SetOption = None,
    require: RequireOption = None,
) -> None:
    """Write the predictions of a run for a split, with or without ground truth."""
    console = plain_console()
    _check_writable("--out", out)
    opened = Run.open(run, _settings(overrides, require))
    session = Session(opened.config, functools.partial(_tell, console))
    found = predict_run(session, opened, session.split(split), which)
    write_predictions(out, found)
    _tell(console, f"{len(found)} predictions are in {out}")


@contextmanager
def _reporting(
    console: Console, world: World, epochs: int, out: Path, progress: Progress
) -> Iterator[Reporter]:
    """Lines, bars and TensorBoard while a run goes on; nothing where this process does not lead."""
    if not world.leads:
        yield Silent()
        return
    live = LiveReporter(console, epochs, progress.epoch)
    scalars = Scalars(out / "tensorboard", progress.epoch)
    with live.shown(), closing(scalars):
        yield Everyone([live, scalars])


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


def _check_writable(option: str, path: Path | None) -> None:
    """Before any work: whether the result can become a file there."""
    if path is None:
        return
    there = next(each for each in (path.parent, *path.parent.parents) if each.exists())
    if path.is_dir() or not there.is_dir():
        fault = "is a folder" if path.is_dir() else f"cannot be made, because {there} is a file"
        raise UsageError(f"{option}: '{path}' {fault}; name a file to write")


def _baseline(
    session: Session, split: Split, *, untrained: bool, blind: bool
) -> tuple[str, list[Prediction]]:
    if untrained == blind:
        raise UsageError("evaluate --config needs one of --untrained and --blind")
    if blind:
        return "blind baseline (moment prior)", predict_blind(session, split)
    return "untrained model", predict_untrained(session, split)


def _score_file(
    predictions: Path,
    annotations: Path | None,
    dataset: str | None,
    mode: Mode,
    extended: bool,
) -> Scores:
    if annotations is None or dataset is None:
        raise UsageError("evaluate --predictions needs --annotations FILE and --dataset NAME")
    return score(
        load_annotations(dataset, annotations),
        read_predictions(predictions),
        metrics=dataset,
        clip_len_s=DATASETS.get(dataset).clip_len_at(annotations),
        mode=mode,
        extended=extended,
    )


def _settings(overrides: Sequence[str] | None, require: str | None) -> list[str]:
    """What the command line changes of the configuration; `--require` is short for `--set`."""
    return [*(overrides or ()), *([f"data.require={require}"] if require else ())]


def _configuration(
    config: Path | None, overrides: Sequence[str] | None, run: Path | None
) -> TrainerConfig:
    if config is not None:
        return load_config(TrainerConfig, shipped_or_file(config), overrides or ())
    if run is None:
        raise UsageError("a configuration is needed: give --config FILE")
    return Run.open(run, overrides or ()).config


def _with_mode(config: TrainerConfig, mode: Mode) -> TrainerConfig:
    return config.model_copy(update={"eval": config.eval.model_copy(update={"mode": mode})})


def _tell(console: Console, sentence: str) -> None:
    console.print(sentence, soft_wrap=True)


def _show(
    console: Console,
    title: str,
    scores: Scores,
    about: Mapping[str, Any],
    json_path: Path | None,
) -> None:
    _tell(console, f"{title} ({about['mode']} metrics)")
    console.print(scores_table({"percent": scores["brief"]}))
    if json_path is not None:
        text = json.dumps({**scores, **about}, indent=4)
        atomic_write(json_path, (text + "\n").encode())
        _tell(console, f"all scores are in {json_path}")


def _summarise(console: Console, run: Run, progress: Progress) -> None:
    best, last = progress.best, progress.last
    columns = {}
    if best:
        columns[f"best (epoch {best['epoch']})"] = best["scores"]["brief"]
    if last:
        columns[f"last (epoch {last['epoch']})"] = last["scores"]["brief"]
    chosen = run.config.eval
    _tell(console, f"split '{chosen.split}', {chosen.mode} metrics, best by {chosen.select}")
    console.print(scores_table(columns))
    _tell(console, f"checkpoints, history and predictions are in {run.path}")
