"""The `trainer` command. What `fit` writes is described in `run`.

Exit codes: 0 done; 2 wrong usage or configuration; 75 stopped, continue with --resume; 130 a
second Ctrl-C; any other: failure.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data.commands import program
from data.errors import UsageError
from data.terminal import plain_console
from training.compare_command import compare_commands
from training.convert_command import convert_commands
from training.cqval.commands import cqval_commands
from training.distributed import World, joined
from training.evaluate_command import evaluate_commands
from training.join_command import join_commands
from training.lint_command import lint_commands
from training.loop import Progress, Reporter, Silent, StoppedError, stop_on_signals
from training.options import (
    ConfigOption,
    OverlapOption,
    RequireOption,
    SetOption,
    WhichOption,
    answered,
    check_writable,
    configuration,
    settings,
    tell,
)
from training.predictions import write_predictions
from training.progress import Everyone, LiveReporter, Scalars, scores_table
from training.run import Run
from training.session import Session, fit, predict_run

__all__ = ["app", "main"]

app = program("trainer", "Train, evaluate and use the models of the retrieval family.")
app.add_typer(evaluate_commands)
app.add_typer(compare_commands)
app.add_typer(join_commands)
app.add_typer(lint_commands)
app.add_typer(cqval_commands, name="cqval")
app.add_typer(convert_commands)


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
    loaded = configuration(config, settings(overrides, require), out)
    with joined() as world, stop_on_signals() as stop:
        console = plain_console(quiet=not world.leads)
        try:
            run, progress = fit(
                loaded,
                out,
                resume=resume,
                allow_overlap=allow_overlap,
                tell=functools.partial(tell, console),
                report=functools.partial(_reporting, console, world, loaded.loop.epochs, out),
                stop=stop,
                world=world,
            )
        except StoppedError as error:
            again = f"trainer fit --resume --out {shlex.quote(str(out))}"
            again += " --allow-overlap" * allow_overlap
            raise StoppedError(f"{error}; to continue:\n  {again}") from None
        _summarise(console, run, progress)


@app.command("predict")
@answered
def predict_command(
    run: Annotated[Path, typer.Option("--run", help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", help="Submission JSONL to write.")],
    split: Annotated[str, typer.Option("--split", help="Split of the store.")],
    which: WhichOption = "best",
    overrides: SetOption = None,
    require: RequireOption = None,
    allow_overlap: OverlapOption = False,
) -> None:
    """Write the predictions of a run for a split, with or without ground truth."""
    console = plain_console()
    check_writable("--out", out)
    opened = Run.open(run, settings(overrides, require))
    session = Session(opened.config, functools.partial(tell, console))
    part = session.split(split)
    session.check_disjoint(part, allow=allow_overlap, run=opened)
    found = predict_run(session, opened, part, which)
    write_predictions(out, found)
    tell(console, f"{len(found)} predictions are in {out}")


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


def _summarise(console: Console, run: Run, progress: Progress) -> None:
    best, last = progress.best, progress.last
    columns = {}
    if best:
        columns[f"best (epoch {best['epoch']})"] = best["scores"]["brief"]
    if last:
        columns[f"last (epoch {last['epoch']})"] = last["scores"]["brief"]
    chosen = run.config.eval
    tell(console, f"split '{chosen.split}', {chosen.mode} metrics, best by {run.selected_by}")
    console.print(scores_table(columns))
    tell(console, f"checkpoints, history and predictions are in {run.path}")
