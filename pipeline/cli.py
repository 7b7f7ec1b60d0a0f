"""The `pipeline` command.

Exit codes: 0 everything asked for is in the store; 3 finished, some inputs are in quarantine; 75
interrupted, run again to continue; 2 wrong usage or config; 4 something in the store is wrong
(`pipeline.store_commands`); any other: failure.
"""

from __future__ import annotations

import functools
import gc
import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from data.commands import EXIT_FAILED, EXIT_INTERRUPTED, program
from data.errors import StoreError, some
from data.terminal import new_table
from data.terminal import say as tell
from data.video import list_videos
from pipeline.config import PipelineConfig, load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.engine.types import EngineLostError
from pipeline.events_commands import events_commands
from pipeline.interop_commands import interop_commands
from pipeline.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    LimitOption,
    RetryOption,
    SetOption,
    StageOption,
    StoreOption,
    answered,
    is_there,
    new_console,
    open_store,
    opening,
    overrides,
    plan_of,
    store_of,
)
from pipeline.progress import Progress
from pipeline.run import Result, Run, look, ray_or_inline
from pipeline.store_commands import store_commands
from pipeline.table_commands import table_commands
from pipeline.weights_command import weights_commands

__all__ = ["app", "main"]

app = program("pipeline", "Turn videos and queries into features, captions, narratives and events.")
app.add_typer(store_commands)
app.add_typer(interop_commands)
weights_commands.add_typer(table_commands)
app.add_typer(weights_commands, name="weights")
app.add_typer(events_commands, name="events")


@app.command()
@answered
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    stage: StageOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    executor: Annotated[
        Literal["ray", "inline"] | None,
        typer.Option(help="Who works: Ray's workers, or this process (for debugging)."),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(help="I/N: only the I-th of N shares of the inputs, I from 1 to N (SLURM)."),
    ] = None,
    max_gpu_hours: Annotated[
        float | None,
        typer.Option(min=0, help="Refuse to begin if captions will cost more GPU-hours than this."),
    ] = None,
) -> None:
    """Do everything that is asked for and not in the store yet. Run it again to continue."""
    settings = [*(set_ or []), *([f"engine.executor={executor}"] if executor else [])]
    console = new_console()
    again = _command_line(config, stage or [], settings, store, limit, share)
    again += f" --max-gpu-hours {max_gpu_hours:g}" if max_gpu_hours is not None else ""
    retry = f"{again} --retry-failed"
    if retry_failed:
        again = retry  # stages that were not reached have theirs in quarantine still
    with StopFlag() as stop:
        try:
            loaded = load_pipeline_config(config, [*settings, *overrides(store)])
            view = look(loaded, stage or [], limit, share)
            with Progress(console) as progress:
                # One that is there and cannot be opened is the wrong one to name.
                with opening() if is_there(view.store) else nullcontext():
                    job = Run(loaded, view, ray_or_inline(loaded), progress, stop, max_gpu_hours)
                result = job.run(retry_failed=retry_failed)
        except KeyboardInterrupt:
            tell(f"pipeline: interrupted; to continue:\n  {again}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except (StoreError, EngineLostError) as error:
            tell(f"pipeline: {error}\nwhen that is mended, to continue:\n  {again}", err=True)
            raise typer.Exit(EXIT_FAILED) from None
    _summarise(result, console, again, retry, loaded)
    raise typer.Exit(result.exit_code)


@app.command()
@answered
def plan(
    config: ConfigOption = DEFAULT_CONFIG,
    stage: StageOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    timed: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Decode and encode seconds of three videos, to say how fast and how many workers.",
        ),
    ] = True,
    gpu: Annotated[
        str | None,
        typer.Option(help="Reckon the cost of captions for this GPU (H200, A100, …)."),
    ] = None,
) -> None:
    """Show what `run` would do and why, and how fast; changes nothing."""
    loaded = load_pipeline_config(config, [*(set_ or []), *overrides(store)])
    view = look(loaded, stage or [], limit)
    made = plan_of(view, retry_failed, loaded, timed, gpu)
    if as_json:
        tell(json.dumps(made.to_json(), indent=2))
        return
    console = new_console()
    for note in view.notes:
        console.print(note, soft_wrap=True)
    console.print(made.table())
    for notice in made.notices:
        console.print(notice, soft_wrap=True)
    for lack in made.lacks:
        console.print(f"cannot run on this machine: {lack}", soft_wrap=True)
    for speed in made.speeds:
        for sentence in speed.sentences:
            console.print(sentence, soft_wrap=True)
    for cost in made.costs:
        console.print(cost.sentence, soft_wrap=True)
    if made.unhashed:
        console.print(
            f"{len(made.unhashed):,} videos to do are known to the store, but their files were not "
            "hashed on this machine yet; `run` does that first, and then leaves out what is there",
            soft_wrap=True,
        )
    for damage in made.damage:
        console.print(f"damaged: {damage}", soft_wrap=True)


@app.command()
@answered
def report(
    run: Annotated[list[Path], typer.Option(help="A finished run of `trainer fit`; repeatable.")],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="A file of `trainer evaluate --json` for the table; repeatable."),
    ] = None,
    boundaries: Annotated[
        Path | None, typer.Option(help="True boundaries: JSONL, or a file of Kinetics-GEBD.")
    ] = None,
    shown: Annotated[int, typer.Option(min=0, help="Queries that are drawn.")] = 6,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """One HTML file: stages, training curves, scores, and timelines of some queries."""
    from pipeline.report import report_of_runs, write_report

    loaded = load_pipeline_config(config, [*(set_ or []), *overrides(store)])
    opened = open_store(store_of(loaded))
    videos = list_videos(loaded.videos.root).videos if loaded.videos.root else ()
    write_report(report_of_runs(opened, videos, run, scores or [], boundaries, shown), out)
    new_console().print(f"report: {out.resolve()}", soft_wrap=True)


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

    run_demo(out, DemoSize(train, val, test, seed, epochs), new_console())


@app.command()
@answered
def doctor(
    config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Check this environment and a config's weights; exit code 1 if something needed is missing."""
    from pipeline.doctor import doctor_table, examine

    # Before there is a config, the environment can be looked at all the same.
    nothing = config == DEFAULT_CONFIG and not config.is_file() and not set_
    checks = examine(None if nothing else load_pipeline_config(config, set_ or []))
    if as_json:
        tell(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        new_console().print(doctor_table(checks))
    raise typer.Exit(1 if any(check.state == "fail" for check in checks) else 0)


def main() -> None:
    """Entry point of the console command."""
    # Listing 100,000 videos makes millions of objects that stay, among which Python's search for
    # cycles would find nothing again and again: a third of the time of a run with nothing to do.
    gc.set_threshold(100_000, 50, 100)
    app()


# --- parts of commands


def _command_line(
    config: Path,
    stages: list[str],
    settings: list[str],
    store: str | None,
    limit: int | None,
    share: str | None,
) -> str:
    words = ["pipeline", "run"]
    words += ["--config", str(config)] if config != DEFAULT_CONFIG else []
    for name in stages:
        words += ["--stage", name]
    for setting in settings:
        words += ["--set", setting]
    words += ["--store", str(store)] if store is not None else []
    words += ["--limit", str(limit)] if limit is not None else []
    words += ["--share", share] if share is not None else []
    return shlex.join(words)


def _summarise(
    result: Result, console: Console, again: str, retry: str, config: PipelineConfig
) -> None:
    """What a person wants to know at the end; the commands that continue, and that retry."""
    say = functools.partial(console.print, soft_wrap=True)
    if not result.worked:
        say("nothing to do")
    console.print(_result_table(result))
    for names, time in result.times:
        say(f"time of the workers of {', '.join(names)}: {time.sentence}")
    if result.partial:
        named = [f"{id_} ({count} packets)" for id_, count in result.partial.items()]
        say(
            "damaged videos that were kept with the frames that decode (decode.damaged is "
            f"'{config.decode.damaged}'): {len(named)}: {some(named)}"
        )
    if result.short:
        named = [f"{id_} ({seconds:g} s)" for id_, seconds in result.short.items()]
        say(
            "videos shorter than half a clip, whose one clip is mostly their last frame: "
            f"{len(named)}: {some(named)}"
        )
    for sentence in result.healed:
        say(sentence)
    for damage in result.plan.damage:
        say(f"readers refuse this stage until the file can be read: {damage}")
    if result.failures:
        console.print(_failure_table(result))
        say(f"their logs: pipeline failures; to try them again:\n  {retry}")
    for sentence in result.broken.values():
        tell(f"pipeline: {sentence}", err=True)
    if result.exit_code == EXIT_INTERRUPTED:
        why = "interrupted" if result.interrupted else result.unread or "inputs changed meanwhile"
        tell(f"pipeline: {why}; to continue:\n  {again}", err=True)


def _result_table(result: Result) -> Table:
    columns = ("stage", "wanted>", "stored>", "missing>", "quarantined>", "blocked>", "recipe")
    table = new_table("In the store", *columns)
    for line in result.plan.lines:
        counts = (line.wanted, line.present, line.missing, line.quarantined, line.blocked)
        table.add_row(line.stage, *(f"{each:,}" for each in counts), line.recipe)
    return table


def _failure_table(result: Result) -> Table:
    title = f"In quarantine: {len(result.failures)}"
    table = new_table(title, "stage", "reason", "inputs>", "attempts>", "for example")
    groups: dict[tuple[str, str], list[Any]] = {}
    for failure in result.failures:
        groups.setdefault((failure.stage, failure.reason), []).append(failure)
    for (stage, reason), failures in groups.items():
        examples = "\n".join(f"{each.key.id}: {each.message[:160]}" for each in failures[:3])
        attempts = max(each.attempts for each in failures)
        table.add_row(stage, reason, str(len(failures)), str(attempts), examples)
    return table
