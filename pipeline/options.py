"""Options and small parts that the commands of `pipeline` share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data.commands import reported
from data.errors import StoreError, UsageError
from data.store import Store
from data.store.files import size_of
from data.store.place import Place, place_of
from data.terminal import plain_console
from pipeline.config import PipelineConfig, load_pipeline_config
from pipeline.cost import costs_of
from pipeline.here import lacks, notices_of
from pipeline.plan import Plan, make_plan
from pipeline.run import View
from pipeline.speeds import machine_of, speeds_of
from pipeline.survey import Ledger, survey

__all__ = [
    "DEFAULT_CONFIG",
    "ConfigOption",
    "JsonOption",
    "LimitOption",
    "RetryOption",
    "SetOption",
    "StageOption",
    "StoreOption",
    "answered",
    "is_there",
    "named_store",
    "new_console",
    "open_store",
    "opening",
    "overrides",
    "plan_of",
    "store_of",
]

answered = reported("pipeline")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The YAML file, or a shipped config by name.")
]
StageOption = Annotated[
    list[str] | None,
    typer.Option("--stage", "-s", help="A stage, or `features`; may be repeated. Default: all."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="a.b=value; replaces a value of the config.")
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Folder or URL of the store, instead of the config's."),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first N videos and N queries.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Work on what is in quarantine again, too.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_CONFIG = Path("pipeline.yaml")


def new_console() -> Console:
    """Files and pipes have no width; tables are not cut for them."""
    return plain_console() if sys.stdout.isatty() else plain_console(width=160)


def overrides(store: str | None) -> list[str]:
    """`--store` as a `--set`; quoted, for a folder may be called `2026` or `null`."""
    return [] if store is None else [f"store={json.dumps(store)}"]


def store_of(config: PipelineConfig) -> Place:
    """The store that a config names; UsageError if it names none."""
    if config.store is None:
        raise UsageError("no store is given; add `store: FOLDER` to the config, or use --store")
    return config.store


def named_store(config: Path, set_: list[str] | None, store: str | None) -> Store:
    """The store of `--store`, else of the config, open; a config need not exist for the first."""
    return open_store(store or store_of(load_pipeline_config(config, set_ or [])))


def open_store(where: str | Place) -> Store:
    """The store at a place; UsageError where there is none that can be opened."""
    with opening():
        return Store.open(place_of(where))


def is_there(store: Place) -> bool:
    """Whether there is a store at a place."""
    return size_of(store / "store.json") is not None


@contextmanager
def opening() -> Iterator[None]:
    """A store that cannot even be opened is the wrong one to name: nothing was started."""
    try:
        yield
    except StoreError as error:
        raise UsageError(str(error)) from error


def plan_of(
    view: View,
    retry_failed: bool,
    config: PipelineConfig | None = None,
    timed: bool = False,
    gpu: str | None = None,
) -> Plan:
    """What `run` would do.

    Args:
        view: what the config names.
        retry_failed: whether what is in quarantine counts as something to do.
        config: with it the plan says what this machine lacks.
        timed: whether to measure how fast it is, where nothing is lacking.
        gpu: name of a GPU to reckon with; None: that of this machine.
    """
    ledger = Ledger(open_store(view.store) if is_there(view.store) else None)
    names = frozenset(view.program.recipes) if retry_failed else frozenset()
    inventory = survey(view.program, view.corpus, ledger, retry=names)
    made = make_plan(inventory, ledger)
    if config is None:
        return made
    made = replace(made, lacks=lacks(config, inventory.busy), notices=notices_of(inventory.busy))
    machine = cache(lambda: machine_of(config))
    wanted = config.engine.workers
    workers = None if wanted == "auto" else wanted
    if timed and not made.lacks:
        made = replace(made, speeds=speeds_of(inventory, ledger, machine, workers))
    return replace(made, costs=costs_of(inventory, ledger, machine, made.speeds, gpu, workers))
