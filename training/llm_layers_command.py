"""`trainer llm-layers`: a few layers of a LLaMA as the small file that a refiner reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from data.errors import UsageError
from data.store.files import atomic_write
from data.terminal import plain_console
from training.options import answered, check_writable, tell

__all__ = ["llm_layers_commands", "numbers_of"]

llm_layers_commands = typer.Typer()


@llm_layers_commands.command("llm-layers")
@answered
def llm_layers_command(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Folder of a LLaMA in the layout of Hugging Face or Meta, or hf:ORG/NAME."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write, or a folder for it.")],
    layers: Annotated[
        str, typer.Option("--layers", help="Zero-based numbers: 13-16, or 8,31.")
    ] = "13-16",
    dtype: Annotated[
        str, typer.Option("--dtype", help="bfloat16, float16 or float32.")
    ] = "bfloat16",
) -> None:
    """Write some layers of a LLaMA; nothing else of the checkpoint is read.

    The file says its sizes and a checksum of every layer. Training, prediction and every machine
    that runs the model need this file and not the LLaMA.
    """
    from models.llama_files import extract_layers, layers_bytes, name_of_layers_file

    console = plain_console()
    wanted = numbers_of(layers)
    if not out.is_dir():
        check_writable("--out", out)
    found = extract_layers(checkpoint, wanted, dtype=dtype)
    target = out / name_of_layers_file(found) if out.is_dir() else out
    content = layers_bytes(found)
    atomic_write(target, content)
    for number, each in found.sums.items():
        tell(console, f"layer {number}: sha256 {each}")
    spec = found.spec
    tell(
        console,
        f"{len(wanted)} layers of {found.source} ({spec.width} wide, {spec.heads} heads, "
        f"{spec.kv_heads} of keys and values) are in {target}: {len(content) / 1e6:,.1f} MB, "
        f"sha256 {found.sha256}",
    )


def numbers_of(text: str) -> list[int]:
    """Numbers of layers from `13-16` or `8,31`.

    Raises:
        UsageError: another text.
    """
    numbers: list[int] = []
    for piece in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", piece)
        if found is None:
            raise UsageError(
                f"--layers '{text}' is no list of layers; write zero-based numbers as 13-16 or 8,31"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        numbers += range(first, last + 1)
    if not numbers:
        raise UsageError(f"--layers '{text}' names no layer; the first of a range comes first")
    return numbers
