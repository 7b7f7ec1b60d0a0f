"""The `pipeline` command.

Exit codes: 0 everything asked for is in the store; 3 finished, some inputs are in quarantine; 75
interrupted, run again to continue; 2 wrong usage or config; any other: failure.
"""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.commands import EXIT_INTERRUPTED, program, reported
from data.errors import StoreError, UsageError
from data.store import Store
from data.video import list_videos
from pipeline.config import PipelineConfig, load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.plan import Plan, make_plan
from pipeline.progress import Progress
from pipeline.run import Result, Run, View, look, ray_or_inline
from pipeline.survey import Ledger, survey

__all__ = ["app", "main"]

app = program("pipeline", "Turn videos and queries into features, captions, narratives and events.")
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
    Path | None, typer.Option("--store", help="Folder of the store, instead of the config's.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first N videos and N queries.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Work on what is in quarantine again, too.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_DEFAULT_CONFIG = Path("pipeline.yaml")


@app.command()
@answered
def run(
    config: ConfigOption = _DEFAULT_CONFIG,
    stage: StageOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    executor: Annotated[
        Literal["ray", "inline"] | None,
        typer.Option(help="Who works: Ray's workers, or this process (for debugging)."),
    ] = None,
) -> None:
    """Do everything that is asked for and not in the store yet. Run it again to continue."""
    settings = [*(set_ or []), *([f"engine.executor={executor}"] if executor else [])]
    loaded = load_pipeline_config(config, [*settings, *_overrides(store)])
    view = look(loaded, stage or [], limit)
    console = _console()
    again = _command_line(config, stage or [], settings, store, limit)
    with StopFlag() as stop:
        try:
            with Progress(console) as progress:
                with _opening():
                    job = Run(loaded, view, ray_or_inline(loaded), progress, stop)
                result = job.run(retry_failed=retry_failed)
        except KeyboardInterrupt:
            typer.echo(f"pipeline: interrupted; to continue:\n  {again}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
    _summarise(result, console, again, loaded)
    raise typer.Exit(result.exit_code)


@app.command()
@answered
def plan(
    config: ConfigOption = _DEFAULT_CONFIG,
    stage: StageOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what `run` would do and why; changes nothing."""
    loaded = load_pipeline_config(config, [*(set_ or []), *_overrides(store)])
    view = look(loaded, stage or [], limit)
    made = _plan(loaded, view, retry_failed)
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=2))
        return
    console = _console()
    for note in view.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(made.table())
    for damage in made.damage:
        console.print(f"damaged: {damage}", markup=False)


@app.command()
@answered
def status(
    config: ConfigOption = _DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in the store, stage by stage."""
    from pipeline.status import read_status, status_table

    made: Plan | None = None
    if store is None:
        loaded = load_pipeline_config(config, set_ or [])
        opened = _open_store(_store_of(loaded))
        made = _plan(loaded, look(loaded, [], None), False) if loaded.videos.root else None
    else:
        # Names of stages tell which inputs a stage works on.
        import pipeline.stages  # noqa: F401

        opened = _open_store(store)
    lines = read_status(opened, made)
    if as_json:
        stages = [line.to_json() for line in lines]
        head = {"store": str(opened.path), "dataset": opened.dataset}
        typer.echo(
            json.dumps({**head, "clip_len_s": opened.clip_len_s, "stages": stages}, indent=2)
        )
        return
    _console().print(status_table(lines, f"{opened.path} ({opened.dataset})"))


@app.command()
@answered
def verify(
    config: ConfigOption = _DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Do not read all bytes: names, sizes, tables only.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every shard, record and file of the store; exit code 1 if something is wrong."""
    named = store or _store_of(load_pipeline_config(config, set_ or []))
    opened = _open_store(named)
    problems = opened.verify(deep=not shallow)
    if as_json:
        rows = [{"kind": p.kind, "where": str(p.where), "message": p.message} for p in problems]
        typer.echo(json.dumps({"store": str(opened.path), "problems": rows}, indent=2))
    else:
        for problem in problems:
            typer.echo(f"{problem.kind}: {problem.where}: {problem.message}")
        found = f"{len(problems)} problems" if problems else "everything is right"
        typer.echo(f"{opened.path}: {found}")
    raise typer.Exit(1 if problems else 0)


@app.command()
@answered
def report(
    run: Annotated[list[Path], typer.Option(help="A finished run of `trainer fit`; repeatable.")],
    config: ConfigOption = _DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="A file of `trainer evaluate --json` for the table; repeatable."),
    ] = None,
    boundaries: Annotated[
        Path | None, typer.Option(help="JSONL of true boundaries: vid, duration, boundaries.")
    ] = None,
    shown: Annotated[int, typer.Option(min=0, help="Queries that are drawn.")] = 6,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """One HTML file: stages, training curves, scores, and timelines of some queries."""
    from pipeline.report import report_of_runs, write_report

    loaded = load_pipeline_config(config, [*(set_ or []), *_overrides(store)])
    opened = _open_store(_store_of(loaded))
    videos = list_videos(loaded.videos.root).videos if loaded.videos.root else ()
    write_report(report_of_runs(opened, videos, run, scores or [], boundaries, shown), out)
    _console().print(f"report: {out.resolve()}", markup=False, soft_wrap=True)


@app.command()
@answered
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path(
        "demo"
    ),
    train: Annotated[int, typer.Option(min=8, help="Rendered training videos.")] = 160,
    val: Annotated[int, typer.Option(min=2, help="Rendered validation videos.")] = 40,
    test: Annotated[int, typer.Option(min=1, help="Rendered test videos.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the rendered films.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Instead of those of the trainer's config.")
    ] = None,
) -> None:
    """The whole road on a synthetic corpus: videos, shards, a trained model, metrics, a report."""
    from pipeline.demo import DemoSize, run_demo

    run_demo(out, DemoSize(train, val, test, seed, epochs), _console())


@app.command()
@answered
def doctor(as_json: JsonOption = False) -> None:
    """Check this environment; exit code 1 if something needed is missing."""
    from pipeline.doctor import doctor_table, examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        _console().print(doctor_table(checks))
    raise typer.Exit(1 if any(check.state == "fail" for check in checks) else 0)


def main() -> None:
    """Entry point of the console command."""
    app()


# --- parts of commands


def _console() -> Console:
    """Files and pipes have no width; tables are not cut for them."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _overrides(store: Path | None) -> list[str]:
    """`--store` as a `--set`; quoted, for a folder may be called `2026` or `null`."""
    return [] if store is None else [f"store={json.dumps(str(store))}"]


def _store_of(config: PipelineConfig) -> Path:
    if config.store is None:
        raise UsageError("no store is given; add `store: FOLDER` to the config, or use --store")
    return config.store


def _open_store(path: Path) -> Store:
    with _opening():
        return Store.open(path)


@contextmanager
def _opening() -> Iterator[None]:
    """A store that cannot even be opened is the wrong one to name: nothing was started."""
    try:
        yield
    except StoreError as error:
        raise UsageError(str(error)) from error


def _plan(config: PipelineConfig, view: View, retry_failed: bool) -> Plan:
    there = (view.store / "store.json").exists()
    ledger = Ledger(_open_store(view.store) if there else None)
    names = frozenset(view.program.recipes) if retry_failed else frozenset()
    return make_plan(survey(view.program, view.corpus, ledger, retry=names), ledger)


def _command_line(
    config: Path, stages: list[str], settings: list[str], store: Path | None, limit: int | None
) -> str:
    words = ["pipeline", "run"]
    words += ["--config", str(config)] if config != _DEFAULT_CONFIG else []
    for name in stages:
        words += ["--stage", name]
    for setting in settings:
        words += ["--set", setting]
    words += ["--store", str(store)] if store is not None else []
    words += ["--limit", str(limit)] if limit is not None else []
    return shlex.join(words)


def _summarise(result: Result, console: Console, again: str, config: PipelineConfig) -> None:
    """What a person wants to know at the end."""
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if not result.worked:
        say("nothing to do")
    console.print(_result_table(result))
    if result.partial:
        named = [f"{id_} ({count} packets)" for id_, count in result.partial.items()]
        say(
            "damaged videos that were kept with the frames that decode (decode.damaged is "
            f"'{config.decode.damaged}'): {_some(named)}"
        )
    if result.short:
        named = [f"{id_} ({seconds:g} s)" for id_, seconds in result.short.items()]
        say(
            "videos shorter than half a clip, whose one clip is mostly their last frame: "
            f"{_some(named)}"
        )
    for damage in result.plan.damage:
        say(f"readers refuse this stage until the file is removed: {damage}")
    if result.failures:
        console.print(_failure_table(result))
        say(f"to try the inputs in quarantine again:\n  {again} --retry-failed")
    for name, sentence in result.broken.items():
        typer.echo(f"pipeline: stage '{name}' was left out: {sentence}", err=True)
    if result.exit_code == EXIT_INTERRUPTED:
        why = "interrupted" if result.interrupted else "inputs changed meanwhile"
        typer.echo(f"pipeline: {why}; to continue:\n  {again}", err=True)


def _some(named: Sequence[str], most: int = 10) -> str:
    """The first few of a list, and how many there are."""
    more = "" if len(named) <= most else f" and {len(named) - most} more"
    return f"{len(named)}: {', '.join(named[:most])}{more}"


def _result_table(result: Result) -> Table:
    table = Table(title="In the store", title_justify="left")
    table.add_column("stage")
    for name in ("wanted", "stored", "missing", "quarantined", "blocked"):
        table.add_column(name, justify="right")
    table.add_column("recipe")
    for line in result.plan.lines:
        counts = (line.wanted, line.present, line.missing, line.quarantined, line.blocked)
        table.add_row(line.stage, *(f"{each:,}" for each in counts), line.recipe)
    return table


def _failure_table(result: Result) -> Table:
    title = f"In quarantine: {len(result.failures)}"
    table = Table(title=title, title_justify="left")
    for name in ("stage", "reason", "inputs", "attempts", "for example"):
        table.add_column(name, justify="right" if name in ("inputs", "attempts") else "left")
    groups: dict[tuple[str, str], list[Any]] = {}
    for failure in result.failures:
        groups.setdefault((failure.stage, failure.reason), []).append(failure)
    for (stage, reason), failures in groups.items():
        examples = "\n".join(
            f"{each.key.id}: {escape(each.message[:160])}" for each in failures[:3]
        )
        attempts = max(each.attempts for each in failures)
        table.add_row(stage, reason, str(len(failures)), str(attempts), examples)
    return table
