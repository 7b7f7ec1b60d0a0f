"""`pipeline weights`: which official checkpoints there are, where they lie, and how to get them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from data.errors import UsageError
from data.terminal import new_table
from data.terminal import say as tell
from models.zoo import (
    FOLDER_FILES,
    HF,
    INDEX_FILES,
    ZOO,
    ZOO_PREFIX,
    ZooEntry,
    find,
    known,
    own_folder,
    places,
    snapshot,
)
from pipeline.downloads import Published, download, verify
from pipeline.options import JsonOption, answered, new_console

__all__ = ["weights_commands"]

weights_commands = typer.Typer(help="Official checkpoints: list them, download them.")


@weights_commands.command("list")
@answered
def list_(as_json: JsonOption = False) -> None:
    """All checkpoints that are known by name, and where they were found on this machine."""
    if as_json:
        tell(json.dumps([_json(each) for each in ZOO.values()], indent=2))
        return
    console = new_console()
    table = new_table("Official weights", "checkpoint:", "for", "found", "size", "licence", "check")
    table.columns[0].no_wrap = True  # a name is there to be copied
    for each in ZOO.values():
        where = find(each)
        table.add_row(
            f"{ZOO_PREFIX}{each.name}",
            _for(each),
            str(where or "not here"),
            _size(where),
            each.licence,
            each.checked_by,
        )
    console.print(table)
    console.print("looked in: " + ", ".join(str(each) for each in places()), soft_wrap=True)
    console.print("to download one: pipeline weights fetch NAME", soft_wrap=True)


@weights_commands.command()
@answered
def fetch(
    name: Annotated[str, typer.Argument(help="Name from `pipeline weights list`, or hf:ORG/NAME.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder for the file; default: Storyline's own cache.")
    ] = None,
) -> None:
    """Download one checkpoint, verify it, and say what its licence is."""
    console = new_console()
    if name.startswith(HF):
        _fetch_from_hub(name.removeprefix(HF), to, console)
        return
    entry = known(name.removeprefix(ZOO_PREFIX))
    published = Published(entry.url, entry.sha256, entry.git)
    target = (to or own_folder()) / entry.file
    console.print(f"licence: {entry.licence} ({entry.licence_url})", soft_wrap=True)
    if not _is_there(target, published):
        console.print(f"from {entry.url}", soft_wrap=True)
        _download(published, target, console)
    by = entry.checked_by
    note = f"verified ({by})" if entry.sha256 or entry.git else f"NOT verified ({by})"
    console.print(f"{target}: {_size(target)}, {note}", soft_wrap=True)
    console.print(f"in pipeline.yaml: {_yaml(entry, to)}", soft_wrap=True)


def _is_there(target: Path, published: Published) -> bool:
    if not target.is_file():
        return False
    problem = verify(target, published)
    if problem is not None:
        raise UsageError(
            f"'{target}' is there and is not the published file: {problem}; remove it first"
        )
    return True


def _download(published: Published, target: Path, console: Console) -> None:
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(target.name, total=None)
        download(published, target, lambda done, all_: bar.update(task, completed=done, total=all_))


def _fetch_from_hub(repository: str, to: Path | None, console: Console) -> None:
    """A model of Hugging Face, by its own client, into its own cache, where `hf:` finds it."""
    if to is not None:
        raise UsageError("--to is for files of the zoo; Hugging Face's cache is moved by HF_HOME")
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repository)
        files = [each.rfilename for each in info.siblings or []]
        wanted = files_of_model(repository, files)
        card: Any = info.card_data
        licence = getattr(card, "license", None) or "not stated"
        console.print(f"licence: {licence} (https://huggingface.co/{repository})", soft_wrap=True)
        snapshot_download(repository, allow_patterns=wanted)
    except UsageError:
        raise
    except Exception as error:  # the hub's client and its network library have their own errors
        reason = (str(error).splitlines() or [""])[0][:300]
        raise UsageError(
            f"'{repository}' cannot be downloaded ({type(error).__name__}: {reason}); check the "
            "name and the network, or copy the model's folder here and give its path"
        ) from None
    console.print(f"{snapshot(repository)}; in pipeline.yaml: checkpoint: {HF}{repository}")


_BESIDE = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What a model needs beside its weights: configurations, templates, tokenizers."""


def files_of_model(repository: str, files: Sequence[str]) -> list[str]:
    """Which files of a repository of Hugging Face are fetched: its weights once, whole or in
    shards, as `models.shards` reads them, and what stands beside them.

    Raises:
        UsageError: it publishes no weights that are read.
    """
    own = [each for each in files if "/" not in each]
    weights = next((each for each in FOLDER_FILES if each in own), None)
    if weights is None:
        raise UsageError(f"'{repository}' publishes none of: {', '.join(FOLDER_FILES)}")
    shards = []
    if weights in INDEX_FILES:
        stem, suffix = weights.removesuffix(".index.json").rsplit(".", 1)
        shards = [each for each in own if fnmatchcase(each, f"{stem}-*-of-*.{suffix}")]
    indices = INDEX_FILES - {weights}  # of shards that are not fetched
    beside = [
        each
        for each in own
        if each not in indices and any(fnmatchcase(each, pattern) for pattern in _BESIDE)
    ]
    return [*dict.fromkeys([weights, *shards, *beside])]


def _for(entry: ZooEntry) -> str:
    options = ", ".join(f"{key}: {value}" for key, value in entry.options.items())
    return f"{entry.network} ({options})" if options else entry.network


def _yaml(entry: ZooEntry, to: Path | None) -> str:
    """The section of pipeline.yaml that uses the file."""
    checkpoint = f"{ZOO_PREFIX}{entry.name}" if to is None else str((to / entry.file).resolve())
    options = ", ".join(f"{key}: {value}" for key, value in entry.options.items())
    # Options of a stage stand in its section, those of its network under `options`.
    own = options if entry.key != "checkpoint" else f"options: {{{options}}}"
    more = f", {own}" if options else ""
    return f"{entry.network}: {{preset: full, {entry.key}: {checkpoint}{more}}}"


def _size(file: Path | None) -> str:
    return "" if file is None else f"{file.stat().st_size / 1e6:,.1f} MB"


def _json(entry: ZooEntry) -> dict[str, Any]:
    where = find(entry)
    return {
        "checkpoint": f"{ZOO_PREFIX}{entry.name}",
        "network": entry.network,
        "options": dict(entry.options),
        "found": str(where) if where else None,
        "bytes": where.stat().st_size if where else None,
        "url": entry.url,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "sha256": entry.sha256,
        "git": entry.git,
    }
