"""The `trainer` command. What `fit` writes is described in `run`.

Exit codes: 0 done; 2 wrong usage or configuration; 75 stopped, continue with --resume; 130 a
second Ctrl-C; any other: failure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.commands import program
from data.errors import UsageError
from training.compare_command import compare_commands
from training.convert_command import convert_commands
from training.cqval.commands import cqval_commands
from training.evaluate_command import evaluate_commands
from training.feasibility.commands import feasibility_commands
from training.import_command import import_commands
from training.join_command import join_commands
from training.lint_command import lint_commands
from training.llm_layers_command import llm_layers_commands
from training.models_command import models_commands
from training.options import (
    ConfigOption,
    OverlapOption,
    RequireOption,
    SetOption,
    WhichOption,
    answered,
    check_writable,
    settings,
)

__all__ = ["app", "main"]

app = program("trainer", "Train, evaluate and use the models of the retrieval family.")
app.add_typer(evaluate_commands)
app.add_typer(compare_commands)
app.add_typer(join_commands)
app.add_typer(lint_commands)
app.add_typer(cqval_commands, name="cqval")
app.add_typer(convert_commands)
app.add_typer(import_commands)
app.add_typer(models_commands)
app.add_typer(llm_layers_commands)
app.add_typer(feasibility_commands)


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
    from training.jobs import fit_model  # torch takes seconds to import

    fit_model(config, settings(overrides, require), out, resume=resume, allow_overlap=allow_overlap)


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
    check_writable("--out", out)
    from training.jobs import predict_split  # torch takes seconds to import

    predict_split(
        run, settings(overrides, require), split, out, which=which, allow_overlap=allow_overlap
    )
