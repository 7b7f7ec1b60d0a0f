"""Options and small helpers that several commands of `trainer` share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from data.commands import EXIT_INTERRUPTED, reported
from data.errors import UsageError
from data.store.files import atomic_write
from data.terminal import plain_console, say
from training.metrics import Mode
from training.predictions import FORMATS
from training.stopping import StoppedError

__all__ = [
    "STDOUT",
    "AnnotationsOption",
    "ConfigOption",
    "DatasetOption",
    "FormatOption",
    "JsonOption",
    "MetricsOption",
    "ModeOption",
    "OverlapOption",
    "PerQueryOption",
    "RequireOption",
    "RunOption",
    "SetOption",
    "WhichOption",
    "answered",
    "check_writable",
    "console_beside",
    "settings",
    "tell",
    "tell_written",
    "write_json",
    "write_rows",
]

STDOUT = Path("-")
"""As --json: standard output."""

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
WhichOption = Annotated[
    Literal["best", "last"], typer.Option("--which", help="Which checkpoint of the run.")
]
OverlapOption = Annotated[
    bool, typer.Option("--allow-overlap", help="Score on videos that were trained on, too.")
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"Format of the predictions: {', '.join(FORMATS)}. Default: what they look like.",
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Also write the scores here; - is standard output.")
]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Whose annotations and metrics.")
]
AnnotationsOption = Annotated[
    Path | None, typer.Option("--annotations", help="Ground truth of the same queries.")
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode", help="official: as the published evaluator; strict: with its quirks mended."
    ),
]
MetricsOption = Annotated[
    str | None,
    typer.Option("--metrics", help="Another evaluator than the usual one of the dataset."),
]
PerQueryOption = Annotated[
    Path | None, typer.Option("--per-query", help="Also write one JSON line per query here.")
]


def settings(overrides: Sequence[str] | None, require: str | None) -> list[str]:
    """What the command line changes of the configuration; `--require` is short for `--set`."""
    return [*(overrides or ()), *([f"data.require={require}"] if require else ())]


def tell(console: Console, sentence: str) -> None:
    """Print a sentence; the terminal breaks it, not rich."""
    console.print(sentence, soft_wrap=True)


def tell_written(console: Console, what: str, path: Path | None) -> None:
    """Say where something was written, unless that is nowhere or standard output."""
    if path is not None and path != STDOUT:
        tell(console, f"{what} {path}")


def console_beside(json_path: Path | None, **options: Any) -> Console:
    """Where tables and sentences go: to standard error if the JSON goes to standard output."""
    return plain_console(stderr=json_path == STDOUT, **options)


def check_writable(option: str, path: Path | None) -> None:
    """Before any work: whether the result can become a file there.

    Raises:
        UsageError: it cannot.
    """
    if path is None or (option == "--json" and path == STDOUT):
        return
    there = next(each for each in (path.parent, *path.parent.parents) if each.exists())
    if path.is_dir() or not there.is_dir():
        fault = "is a folder" if path.is_dir() else f"cannot be made, because {there} is a file"
        raise UsageError(f"{option}: '{path}' {fault}; name a file to write")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON object to `STDOUT`, or to a file, replacing an old one at once."""
    text = json.dumps(values, indent=4, allow_nan=False)
    if path == STDOUT:
        say(text)
    else:
        atomic_write(path, (text + "\n").encode())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, replacing an old file at once."""
    atomic_write(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
