"""`trainer convert`: a file of predictions from one format into another (docs/predictions.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from data.annotations import Annotation, load_annotations
from data.errors import UsageError
from data.store.files import atomic_write
from data.terminal import plain_console
from training.options import AnnotationsOption, DatasetOption, answered, check_writable, tell
from training.predictions import (
    FORMATS,
    WRITERS,
    Prediction,
    PredictionFormat,
    PredictionWriter,
    format_of,
    in_order,
    kept_by,
    order_note,
    retyped,
)

__all__ = ["convert_commands", "converted"]

convert_commands = typer.Typer()


@convert_commands.command("convert")
@answered
def convert_command(
    predictions: Annotated[Path, typer.Argument(help="The file to convert.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    target: Annotated[
        str, typer.Option("--to", help=f"Format to write: {', '.join(WRITERS)}.")
    ] = "submission",
    source: Annotated[
        str | None,
        typer.Option(
            "--from", help=f"Format of the file: {', '.join(FORMATS)}. Default: as it looks."
        ),
    ] = None,
    annotations: AnnotationsOption = None,
    dataset: DatasetOption = None,
) -> None:
    """Write predictions in another format: all of them, or nothing.

    With --annotations and --dataset they must answer these queries, each once, and get their ids
    and order; formats without ids need them.
    """
    console = plain_console()
    check_writable("--out", out)
    if out.exists() and predictions.exists() and out.samefile(predictions):
        raise UsageError(f"--out: '{out}' is the file to convert; name another")
    if (annotations is None) != (dataset is None):
        raise UsageError("convert needs --annotations FILE and --dataset NAME together")
    queries = None if annotations is None else load_annotations(dataset or "", annotations)
    into, of = WRITERS.get(target), format_of(predictions, source)
    found, notes = converted(predictions, of, into, queries)
    lines = into.lines(found, queries)
    atomic_write(out, "".join(f"{line}\n" for line in lines).encode())
    for note in notes:
        tell(console, note)
    tell(
        console,
        f"{len(found)} predictions of format '{of.name}' are in {out}, format '{into.name}'",
    )


def converted(
    path: Path,
    source: PredictionFormat,
    target: PredictionWriter,
    annotations: Sequence[Annotation] | None,
) -> tuple[list[Prediction], list[str]]:
    """The predictions of a file as another format can hold them, and what the user must know.

    Args:
        path: the file.
        source, target: its format and the one to write.
        annotations: the queries that it answers, if they are known.

    Raises:
        UsageError: the file cannot be read, does not answer the annotations, or has nothing that
            the other format holds.
    """
    found = source.read(path, annotations)
    notes: list[str] = []
    if annotations is not None:
        found, changed = retyped(annotations, found)
        if changed:
            notes.append(f"{changed} ids have the type of the annotations now: {found[0].qid!r}")
        found = in_order(annotations, found, str(path))
    if disorder := order_note(found):
        notes.append(f"the order of windows stays as it is: {disorder}")
    kept, lost = kept_by(target, found)
    return kept, notes + [f"format '{target.name}' has no room for {what}" for what in lost]
