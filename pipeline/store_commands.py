"""The commands that look after a store (docs/maintenance.md).

Exit codes: 0 all is right; 4 something is wrong (`verify`), or is left that a person must decide
(`repair`, `compact`); 1 the two sides differ (`diff`); 2 wrong usage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from data.commands import EXIT_WRONG
from data.errors import UsageError, nearest
from data.store import Problem, Store
from data.store.files import atomic_write, read_bytes
from data.store.place import Place, place_of
from data.terminal import new_table, say, size_text
from pipeline.config import load_pipeline_config
from pipeline.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    SetOption,
    StageOption,
    StoreOption,
    answered,
    named_store,
    new_console,
    open_store,
    plan_of,
    store_of,
)
from pipeline.plan import Plan
from pipeline.run import look
from pipeline.status import StoreRemarks, read_status, status_table

__all__ = ["store_commands"]

EXIT_DIFFERENT = 1

store_commands = typer.Typer()

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing; show what would be done.")
]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


@store_commands.command()
@answered
def status(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in the store, stage by stage."""
    made: Plan | None = None
    if store is None:
        loaded = load_pipeline_config(config, set_ or [])
        opened = open_store(store_of(loaded))
        made = plan_of(look(loaded, [], None), False) if loaded.videos.root else None
    else:
        # Names of stages tell which inputs a stage works on.
        import pipeline.stages  # noqa: F401

        opened = open_store(store)
    lines, remarks = read_status(opened, made), StoreRemarks.of(opened)
    if as_json:
        _print_json(
            opened,
            dataset=opened.dataset,
            clip_len_s=opened.clip_len_s,
            stages=[line.to_json() for line in lines],
            set_aside=remarks.set_aside,
            set_aside_bytes=remarks.set_aside_bytes,
            unhashed=len(made.unhashed) if made else 0,
        )
        return
    new_console().print(status_table(lines, f"{opened.path} ({opened.dataset})"))
    if made and made.unhashed:
        say(
            f"{len(made.unhashed):,} videos were not hashed on this machine yet: taken for those "
            "that the store knows; `pipeline run` looks whether they are"
        )
    if remarks.told:
        say(remarks.told)


@store_commands.command()
@answered
def verify(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep/--shallow", help="Read and check every byte, or names, sizes, tables only."
        ),
    ] = True,
    untrusted: Annotated[
        bool,
        typer.Option(
            "--untrusted", help="A stranger's store: open shards in a process with limits."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every shard, record and file of the store; exit code 4 if something is wrong."""
    from data.store.rebuild import is_damaged
    from data.store.untrusted import ChildInspector
    from data.store.verify import verify as look_at

    place = _place(config, set_, store)
    if is_damaged(place):
        problem = Problem("store", str(place / "store.json"), "is damaged; `pipeline repair`")
        _tell_problems(place, [problem], as_json)
        raise typer.Exit(EXIT_WRONG)
    opened = open_store(place)
    if untrusted:
        with ChildInspector() as inspector:
            problems = look_at(opened, deep=deep, inspector=inspector)
    else:
        problems = look_at(opened, deep=deep)
    _tell_problems(opened.path, problems, as_json)
    wrong = any(problem.level == "error" for problem in problems)
    raise typer.Exit(EXIT_WRONG if wrong else 0)


@store_commands.command()
@answered
def repair(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    dry_run: DryRunOption = False,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the dataset, where store.json is damaged.")
    ] = None,
    current: Annotated[
        list[str] | None,
        typer.Option(help="STAGE=RECIPE_ID: the current one, where store.json is damaged."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set damaged files aside and keep what is whole in them; deletes nothing.

    `pipeline run` makes what was lost again. Exit code 4 if something is left to decide.
    """
    from data.store.repair import Repair
    from data.store.repair import repair as mend

    done: list[Repair] = []
    loaded = load_pipeline_config(config, set_ or []) if store is None else None
    place = store_of(loaded) if loaded else place_of(store or "")
    named = dataset or (loaded.dataset if loaded else None)
    clip_len_s = loaded.clip_len_s if loaded else None
    rebuilt = _rebuild(place, named, clip_len_s, current or [], dry_run)
    if rebuilt is not None:
        done.append(Repair("store", "store.json", rebuilt))
    if rebuilt is None or not dry_run:
        done += mend(open_store(place), dry_run=dry_run)
    left = [each for each in done if not each.done]
    if as_json:
        repairs = [each.to_json() for each in done]
        _print_json(place, dry_run=dry_run, left=len(left), repairs=repairs)
    else:
        for each in done:
            say(f"{each.what}: {each.where}: {each.told}")
        what = "would be repaired" if dry_run else "repaired"
        rest = f", {len(left)} left to decide" if left else ""
        say(f"{place}: {len(done) - len(left)} {what}{rest}")
        if len(done) > len(left) and not dry_run:
            say("`pipeline run` makes again what was lost")
    raise typer.Exit(EXIT_WRONG if left else 0)


@store_commands.command()
@answered
def gc(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    dry_run: DryRunOption = False,
    older_than: Annotated[
        str, typer.Option(help="Age that must be reached: 7d, 12h, 30m, 0s.")
    ] = "7d",
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Remove what `repair` has set aside, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what nothing points at: unfinished files, recipes that are not used any more."""
    from data.store.gc import gc as collect

    age_s = _seconds(older_than)
    opened = named_store(config, set_, store)
    found = collect(opened, older_than_s=age_s, set_aside=set_aside, dry_run=dry_run)
    freed = sum(each.bytes for each in found if each.removed)
    if as_json:
        rows = [each.to_json() for each in found]
        _print_json(opened, dry_run=dry_run, bytes=freed, found=rows)
        return
    if found:
        table = new_table(
            "Would be removed" if dry_run else "Removed", "what", "why", "files>", "size>"
        )
        for each in found:
            table.add_row(each.what, each.why, str(each.files), size_text(each.bytes))
        new_console().print(table)
    say(f"{opened.path}: {size_text(freed)} {'would be ' if dry_run else ''}freed")


@store_commands.command()
@answered
def compact(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    stage: StageOption = None,
    target_mb: Annotated[float, typer.Option(min=0.001, help="Size of a shard in MiB.")] = 128.0,
    drop_superseded: Annotated[
        bool,
        typer.Option(
            "--drop-superseded", help="Leave out rows of video files that were replaced since."
        ),
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make few shards of even size from many small ones; no visible row changes."""
    from data.store.compact import compact as pack

    opened = named_store(config, set_, store)
    done = list(
        pack(
            opened,
            _stages(stage, opened.current),
            target_bytes=int(target_mb * 2**20),
            drop_superseded=drop_superseded,
            dry_run=dry_run,
        )
    )
    if as_json:
        _print_json(opened, dry_run=dry_run, stages=[each.to_json() for each in done])
    else:
        title = "Would be compacted" if dry_run else "Compacted"
        columns = ("shards>", "now>", "size>", "now>", "rows>", "left out>")
        table = new_table(title, "stage", *columns, "")
        for each in done:
            counts = (f"{each.before:,}", f"{each.after:,}", size_text(each.bytes_before))
            rows = (size_text(each.bytes_after), f"{each.rows:,}", f"{each.dropped:,}")
            table.add_row(each.stage, *counts, *rows, each.note)
        new_console().print(table)
        for each in done:
            for told in each.left_alone:
                say(f"left alone, damaged: {told}; `pipeline repair`")
    raise typer.Exit(EXIT_WRONG if any(each.left_alone for each in done) else 0)


@store_commands.command()
@answered
def diff(
    a: Annotated[str, typer.Argument(help="A store, or STORE:stage/recipe_id.")],
    b: Annotated[str, typer.Argument(help="A store, or STORE:stage/recipe_id.")],
    stage: StageOption = None,
    videos: Annotated[int, typer.Option(min=0, help="How many of the worst are named.")] = 5,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Differences of numbers up to this count as equal.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Say which rows of two stores or recipes differ, and by how much; exit code 1 if any do."""
    from data.store.diff import Side
    from data.store.diff import diff as compare
    from pipeline.differences import differences_text

    one, other = Side.of(a), Side.of(b)
    same = True
    rows: list[dict[str, Any]] = []
    names = _stages(stage, {*one.recipes, *other.recipes})
    for found in compare(one, other, names, most=videos, tolerance=tolerance):
        same &= found.same
        if as_json:
            rows.append(found.to_json())
        else:
            say(differences_text(found, videos))
    if as_json:
        say(json.dumps({"a": a, "b": b, "same": same, "stages": rows}, indent=2))
    raise typer.Exit(0 if same else EXIT_DIFFERENT)


@store_commands.command()
@answered
def failures(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    stage: StageOption = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Show what the worker said.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Of recipes that are not the current one, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the inputs in quarantine: why, after how many attempts, and how to try again."""
    import pipeline.stages  # noqa: F401 - a stage of which the store has nothing may be named
    from pipeline.quarantine import quarantine_table, read_quarantine
    from pipeline.stage import STAGES

    opened = named_store(config, set_, store)
    names = _stages(stage, {*opened.stages(), *STAGES})
    listed = [
        each
        for each in read_quarantine(opened)
        if (not names or each.failure.stage in names) and reason in (None, each.failure.reason)
    ]
    shown = [each for each in listed if each.current or every]
    if as_json:
        _print_json(opened, failures=[each.to_json() for each in shown])
        return
    if shown:
        new_console().print(quarantine_table(shown))
        for each in shown if log else ():
            say(f"\n--- {each.failure.stage} {each.failure.key.id}\n{each.failure.log}")
        again = " ".join(f"--stage {name}" for name in sorted({e.failure.stage for e in shown}))
        say(f"to try them again:\n  pipeline run {again} --retry-failed")
    else:
        say(f"{opened.path}: nothing is in quarantine")
    if len(listed) > len(shown):
        say(f"{len(listed) - len(shown)} more under other recipes: --all")


# --- parts of commands


def _print_json(store: Store | Place, **values: Any) -> None:
    place = store.path if isinstance(store, Store) else store
    say(json.dumps({"store": str(place), **values}, indent=2))


def _place(config: Path, set_: list[str] | None, store: str | None) -> Place:
    """Where the store of `--store` is, else that of the config; it need not be whole."""
    return place_of(store) if store else store_of(load_pipeline_config(config, set_ or []))


def _tell_problems(place: Place, problems: Sequence[Problem], as_json: bool) -> None:
    errors = sum(problem.level == "error" for problem in problems)
    if as_json:
        _print_json(place, errors=errors, problems=[asdict(problem) for problem in problems])
        return
    for each in problems:
        mark = "note: " if each.level == "note" else ""
        say(f"{mark}{each.kind}: {each.where}: {each.message}")
    say(f"{place}: {f'{errors} problems' if errors else 'everything is right'}")


def _stages(names: Sequence[str] | None, known: Collection[str]) -> list[str]:
    """Names as `run --stage` takes them; of `features` those that are there. [] means all.

    Raises:
        UsageError: a stage that is not there: it must not turn into "all".
    """
    from pipeline.program import FEATURES

    chosen: dict[str, None] = {}
    for name in names or ():
        there = [each for each in (FEATURES if name == "features" else (name,)) if each in known]
        if not there:
            raise UsageError(f"there are no rows of the stage '{name}'; {nearest(name, known)}")
        chosen |= dict.fromkeys(there)
    return list(chosen)


def _seconds(age: str) -> float:
    found = _AGE.fullmatch(age.strip())
    if found is None:
        raise UsageError(f"'{age}' is no age; allowed are numbers with s, m, h or d, e.g. 7d, 12h")
    return float(found[1]) * _SECONDS[found[2]]


def _rebuild(
    place: Place,
    dataset: str | None,
    clip_len_s: float | None,
    current: Sequence[str],
    dry_run: bool,
) -> str | None:
    """Write a damaged `store.json` anew, the old one set aside; what was done, None if nothing."""
    from data.store.rebuild import is_damaged, rebuild
    from data.store.salvage import copy_aside

    if not is_damaged(place):
        return None
    chosen = dict(_assignment(each) for each in current)
    content = rebuild(place, dataset=dataset, chosen=chosen, clip_len_s=clip_len_s)
    text = json.dumps(content, indent=2, sort_keys=True)
    if not dry_run:
        store = Store(place, content["dataset"], content["clip_len_s"])
        with suppress(FileNotFoundError):
            copy_aside(store, place / "store.json", read_bytes(place / "store.json"), "is damaged")
        atomic_write(place / "store.json", text.encode() + b"\n")
    return f"was damaged or missing; {'would be' if dry_run else 'is'} written anew:\n{text}"


def _assignment(text: str) -> tuple[str, str]:
    stage, equals, recipe_id = text.partition("=")
    if not equals:
        raise UsageError(f"--current '{text}' is not STAGE=RECIPE_ID")
    return stage, recipe_id
