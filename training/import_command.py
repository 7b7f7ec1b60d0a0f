"""`trainer import-checkpoint`: a checkpoint of public code becomes a run (docs/models.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.terminal import plain_console
from training.options import DatasetOption, answered, tell

__all__ = ["import_commands"]

import_commands = typer.Typer()


@import_commands.command("import-checkpoint")
@answered
def import_command(
    model: Annotated[str, typer.Argument(help="Which model it is of; see `trainer models`.")],
    checkpoint: Annotated[Path, typer.Argument(help="The file of the public code.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; it must not exist.")],
    store: Annotated[
        str | None,
        typer.Option("--store", help="Store that it is evaluated on; or --set data.store later."),
    ] = None,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            help="Per-clip features that it reads, in order. Repeatable. Default: as its options "
            "say.",
        ),
    ] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option("--trained-on", help="Annotations that it was trained on. Repeatable."),
    ] = None,
    dataset: DatasetOption = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE, an option of the model (docs/models.md); it wins over the file's.",
        ),
    ] = None,
) -> None:
    """Make a run of a public checkpoint, for `predict --run` and `evaluate --run`.

    Only tensors and options are read, nothing in the file is run. Every tensor must have its place.
    """
    from training.imported import import_checkpoint  # torch takes seconds to import

    told = import_checkpoint(
        model,
        checkpoint,
        out,
        store=store,
        streams=tuple(streams or ()),
        trained_on=tuple(trained_on or ()),
        dataset=dataset,
        overrides=tuple(overrides or ()),
    )
    console = plain_console()
    for sentence in told:
        tell(console, sentence)
