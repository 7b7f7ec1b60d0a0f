"""`trainer models`: the retrieval family with its presets, plug-ins and sizes (docs/models.md)."""

from __future__ import annotations

from typing import Annotated

import typer

from data.terminal import new_table
from training.options import (
    STDOUT,
    JsonOption,
    answered,
    check_writable,
    console_beside,
    tell,
    tell_written,
    write_json,
)

__all__ = ["models_commands"]

models_commands = typer.Typer()


@models_commands.command("models")
@answered
def models_command(
    video_dim: Annotated[
        int,
        typer.Option("--video-dim", min=3, help="Features of a clip, with the two of its place."),
    ] = 2818,
    text_dim: Annotated[int, typer.Option("--text-dim", min=1, help="Features of a word.")] = 512,
    json_path: JsonOption = None,
) -> None:
    """List models, presets and plug-ins, with parameters for features of these widths.

    The default widths are those of QVHighlights. --json also has the papers, all options with
    their defaults, and what each preset changes.
    """
    from training.family import describe  # torch takes seconds to import

    console = console_beside(json_path)
    check_writable("--json", json_path)
    found = describe(video_dim, text_dim)
    models = new_table("", "model", "parameters>", "trained>", "reads")
    for name, each in found["models"].items():
        sizes = each["parameters"]["fixed"]
        counts = [f"{sizes[key]:,}" if key in sizes else "?" for key in ("all", "trained")]
        models.add_row(
            name,
            *counts,
            ", ".join(each["requires"]) or "-",
        )
    plugins = new_table("", "plug-in", "acts on", "needs", "does not go with")
    for name, each in found["plugins"].items():
        conflicts, needs = ", ".join(each["conflicts"]) or "-", ", ".join(each["requires"])
        plugins.add_row(name, each["stage"], needs, conflicts)
    if json_path is not None:
        write_json(json_path, found)
    if json_path != STDOUT:
        console.print(models)
        console.print(plugins)
        presets = ", ".join(next(iter(found["models"].values()))["presets"])
        tell(
            console,
            f"every model has the presets {presets}; parameters are those of the first, with "
            f"{video_dim:,} features a clip and {text_dim:,} a word",
        )
        for name, each in found["models"].items():
            if "unknown" in each["parameters"]["fixed"]:
                tell(console, f"{name}: {each['parameters']['fixed']['unknown']}")
    tell_written(console, "all options are in", json_path)
