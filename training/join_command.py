"""`trainer join`: caption files put together without the videos of others (docs/datasets.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.annotations.join import joined
from data.errors import UsageError, some
from data.identity import canonical_json
from data.store.files import atomic_write
from data.terminal import plain_console
from training.options import answered, check_writable, tell

__all__ = ["join_commands"]

join_commands = typer.Typer()


@join_commands.command("join")
@answered
def join_command(
    files: Annotated[
        list[Path],
        typer.Argument(help="Caption files (JSON), {video: {duration, timestamps, sentences}}."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write; it must not exist.")],
    without: Annotated[
        list[Path] | None,
        typer.Option("--without", help="A caption file whose videos are left out. Repeatable."),
    ] = None,
) -> None:
    """Put caption files together video by video, without the videos of others.

    So splits are made that their publication left out (docs/datasets.md).
    """
    check_writable("--out", out)
    if out.exists():
        raise UsageError(f"--out: '{out}' exists; name a new file")
    found = joined(files, without or ())
    atomic_write(out, canonical_json(found.videos).encode() + b"\n")
    console = plain_console()
    if found.unknown:
        tell(
            console,
            f"{len(found.unknown):,} videos to leave out are in none of the files: "
            f"{some(found.unknown, 5)}",
        )
    tell(
        console,
        f"{out}: {len(found.videos):,} videos with {found.queries:,} queries; "
        f"{len(found.left_out):,} videos were left out",
    )
