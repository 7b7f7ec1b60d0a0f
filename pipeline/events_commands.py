"""`pipeline events …`: look at the events of a store, score them, and choose their parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data.errors import StoreError, UsageError, some
from data.store.files import atomic_write
from data.store.place import place_of
from data.terminal import new_table, plain_console, say
from pipeline.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    SetOption,
    StoreOption,
    answered,
    named_store,
    new_console,
)

if TYPE_CHECKING:
    from data.store import Store
    from pipeline.events.compare import Figures, Tolerance
    from pipeline.events.evaluate import Boundaries, Truth

__all__ = ["events_commands", "figures_table"]

TruthArgument = Annotated[
    Path,
    typer.Argument(
        help="True boundaries: JSONL of vid, duration, boundaries and, if there are several "
        "annotators, raters; or a file of Kinetics-GEBD (.pkl, .json)."
    ),
]
CpdOption = Annotated[
    bool, typer.Option("--cpd/--no-cpd", help="Compare with KernelCPD of ruptures.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the random baseline.")]
SecondsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tolerance",
        help="In seconds (2s), beside 0.05 to 0.5 of the length; may be repeated. "
        "Default: 0.5s and 1s.",
    ),
]

_UNLIKE = 1.5
"""Ratio of lengths from which videos are not expected to have the same number of boundaries."""

events_commands = typer.Typer(
    name="events", help="Look at pseudo-events, score them, and choose their parameters."
)


@events_commands.callback()
def _group() -> None:
    """Look at pseudo-events, score them, and choose their parameters."""


@events_commands.command()
@answered
def figure(
    video: Annotated[list[str], typer.Argument(help="Ids of videos, as the store has them.")],
    out: Annotated[Path, typer.Option(help="Folder for one SVG file per video.")] = Path("figures"),
    boundaries: Annotated[
        Path | None, typer.Option(help="True boundaries: JSONL, or a file of Kinetics-GEBD.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Draw each video's self-similarity, score curve, boundaries and tree as an SVG file."""
    from pipeline.report.event_figure import draw_videos

    if out.exists() and not out.is_dir():
        raise UsageError(f"--out names a folder, and {out} is a file; name another")
    opened = named_store(config, set_, store)
    console = new_console()
    for file in draw_videos(opened, video, out, boundaries):
        console.print(str(file), soft_wrap=True)


@events_commands.command()
@answered
def evaluate(
    truth: TruthArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    present: Annotated[
        bool,
        typer.Option("--present", help="Leave out videos without events; else they are missed."),
    ] = False,
    tolerance: SecondsOption = None,
    cpd: CpdOption = True,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Score the store's events as the GEBD challenge does, beside baselines and KernelCPD."""
    from pipeline.events.compare import compare
    from pipeline.events.evaluate import stored_boundaries, truth_and_notes, typical_count

    seconds, (true, notes) = _seconds(tolerance), truth_and_notes(truth)
    opened = named_store(config, set_, store)
    found, method = stored_boundaries(opened), opened.recipe("events").params.get("method", "")
    missing = len(set(true) - set(found))
    if missing == len(true):
        ids = f"{some(sorted(true), 3)}; in the store: {some(sorted(found), 3) or 'none'}"
        raise UsageError(
            f"none of the {len(true):,} videos of {truth} has events in {opened.path} (ids in the "
            f"file: {ids}): is it the file of another dataset, or was `pipeline run --stage "
            "events` not run?"
        )
    true = {vid: each for vid, each in true.items() if not present or vid in found}
    if missing:
        how = "were left out" if present else "count as missed (--present leaves them out)"
        notes.append(f"{missing:,} videos have no events in the store and {how}")
    notes += _other_lengths(opened, true)
    named: dict[str, Boundaries] = {f"events ({method})": found}
    if cpd:
        try:
            named["KernelCPD"] = _by_count(opened, true, _console(as_json))
        except (UsageError, StoreError) as error:  # the events are there without their features
            notes.append(f"no row of KernelCPD: {error}")
    rows = compare(named, true, seconds=seconds, seed=seed)
    notes += _notes(rows, typical_count(true))
    notes += _one_number_for_all(true) if "KernelCPD" in rows else []
    told = {"truth": str(truth), "videos": len(true), "missing": missing}
    table = figures_table(f"Boundaries of {len(true):,} videos", rows, seconds)
    _answer(as_json, told, table, rows, notes)


@events_commands.command()
@answered
def tune(
    truth: TruthArgument,
    test: Annotated[
        Path | None,
        typer.Option(help="Truth of other videos to report on. Default: a part of TRUTH."),
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Part of TRUTH to report on, where --test is absent."),
    ] = 0.5,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            help="STAGE or STAGE=WEIGHT whose features are compared; may be repeated. "
            "Default: those of the store's events, else clip."
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="F1 to raise: within 0.05 of the length, or 1s.")
    ] = "0.05",
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; may be repeated.")
    ] = None,
    half_width: Annotated[
        list[float] | None, typer.Option(help="half_width_s to try; may be repeated.")
    ] = None,
    scales: Annotated[
        list[str] | None, typer.Option(help="scales to try, as 2,4,8; may be repeated.")
    ] = None,
    delta: Annotated[
        list[float] | None, typer.Option(help="delta_rel to try; may be repeated.")
    ] = None,
    min_len: Annotated[
        list[float] | None, typer.Option(help="min_len_s to try; may be repeated.")
    ] = None,
    settle: Annotated[
        list[float] | None, typer.Option(help="settle to try; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="YAML file to write, for `extends` of a pipeline.yaml.")
    ] = None,
    tolerance: SecondsOption = None,
    cpd: CpdOption = True,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Choose the parameters of events on one split of videos and report them on another."""
    from pipeline.events.changepoints import check_runs
    from pipeline.events.compare import CHALLENGE, Tolerance
    from pipeline.events.evaluate import truth_and_notes, typical_count
    from pipeline.events.stored import StoredClips
    from pipeline.events.tune import Space, split_truth
    from pipeline.events.tune import tune as tuned

    if out is not None and out.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"--out names a YAML file (.yaml), got {out}")
    aim = Tolerance.parse(objective)
    seconds = list(dict.fromkeys([*_seconds(tolerance), *([] if aim == CHALLENGE[0] else [aim])]))
    space = Space.of(
        methods=method,
        half_widths_s=half_width,
        scales=[_scales(each) for each in scales or []],
        deltas=delta,
        min_lens_s=min_len,
        settles=settle,
    )
    opened = named_store(config, set_, store)
    clips = StoredClips(opened, _streams(stream))
    first, notes = truth_and_notes(truth)
    second, more = (None, []) if test is None else truth_and_notes(test)
    learn, held = split_truth(first, second, share)
    console, stored, notes = _console(as_json), clips.ids(), [*notes, *more]
    absent = len((learn.keys() | held.keys()) - stored)
    if absent:
        notes.append(f"{absent:,} videos have no features in the store and were left out")
    learn = {video: each for video, each in learn.items() if video in stored}
    held = {video: each for video, each in held.items() if video in stored}
    if not learn or not held:
        raise UsageError(
            f"the store has features of {len(learn)} videos to choose on and {len(held)} to report "
            f"on; {truth if test is None or not learn else test} names others: is it the file of "
            "another dataset?"
        )
    if cpd:
        try:
            check_runs(map(clips.clips, [*learn, *held]))
        except UsageError as error:
            cpd = False
            notes.append(f"no row of KernelCPD: {error}")
    done = tuned(
        learn,
        held,
        clips,
        space,
        aim,
        before=clips.parameters,
        cpd=cpd,
        seconds=seconds,
        seed=seed,
        progress=lambda videos, what: track(videos, what, console=console, transient=True),
    )
    snippet = done.yaml(str(truth), clips.streams)
    if out is not None:
        atomic_write(place_of(str(out)), snippet.encode())
    title = f"Chosen on {done.learned:,} videos, scored on {done.held:,} others"
    notes += [*done.notes, *_notes(done.rows, typical_count(held))]
    notes += [f"written: {out}" if out else f"in pipeline.yaml:\n{snippet}"]
    told = done.to_json() | {"truth": str(truth), "yaml": snippet}
    _answer(as_json, told, figures_table(title, done.rows, seconds, done.learn), done.rows, notes)


def _console(quiet: bool) -> Console:
    return plain_console(quiet=True) if quiet else new_console()


def _seconds(given: Sequence[str] | None) -> list[Tolerance]:
    from pipeline.events.compare import SECONDS, Tolerance

    parsed = [Tolerance.parse(each) for each in dict.fromkeys(given or ())] or list(SECONDS)
    for each in parsed:
        if each.relative:
            raise UsageError(f"--tolerance takes seconds as {each}s, got '{each}'")
    return parsed


def _streams(given: Sequence[str] | None) -> dict[str, float] | None:
    """`clip` or `clip=2` each."""
    streams = {}
    for text in given or ():
        stage, _, weight = text.partition("=")
        if stage in streams:
            raise UsageError(f"--stream names '{stage}' twice; give it once, with one weight")
        try:
            streams[stage] = float(weight or 1.0)
        except ValueError:
            streams[stage] = 0.0
        if not 0 < streams[stage] < float("inf"):
            raise UsageError(f"--stream takes STAGE or STAGE=WEIGHT above 0, got '{text}'")
    return streams or None


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise UsageError(f"--scales takes seconds as 2,4,8, got '{text}'") from None


def _by_count(store: Store, truth: Mapping[str, Truth], console: Console) -> Boundaries:
    """KernelCPD, told the mean number of true boundaries."""
    from pipeline.events.changepoints import KernelCpd, check_runs
    from pipeline.events.evaluate import typical_count
    from pipeline.events.stored import StoredClips

    clips = StoredClips(store)
    stored = clips.ids()
    videos = [video for video in truth if video in stored]
    check_runs(map(clips.clips, videos))
    find = KernelCpd(count=typical_count(truth))
    return {
        video: find(clips(video))
        for video in track(videos, "KernelCPD", console=console, transient=True)
    }


def _other_lengths(store: Store, truth: Mapping[str, Truth]) -> list[str]:
    """Said where the truth is of other parts of videos, or in other units."""
    reader = store.reader("events")
    grids = {video: reader.grid(video) for video in truth if video in reader}
    other = [
        video
        for video, grid in grids.items()
        if grid is not None
        and abs(grid.duration_s - truth[video].duration_s)
        > grid.clip_len_s + 0.05 * truth[video].duration_s
    ]
    if not other:
        return []
    return [
        f"{len(other):,} videos ({some(other, 3)}) last longer or shorter in the store than in the "
        "truth, by more than a clip and 5 %: are both of the same part, in seconds?"
    ]


def _notes(rows: Mapping[str, Figures], count: int) -> list[str]:
    from pipeline.events.compare import HUMAN

    informed = [name for name in ("uniform grid", "random", "KernelCPD") if name in rows]
    known = f"{', '.join(informed)}: told the mean number of true boundaries, {count}"
    none = [] if HUMAN in rows else ["no row of human annotators: no video has two of them"]
    return [known, *none]


def _one_number_for_all(truth: Mapping[str, Truth]) -> list[str]:
    lengths = [each.duration_s for each in truth.values()]
    longer = max(lengths) / min(lengths)
    if longer < _UNLIKE:
        return []
    return [
        f"the longest video lasts {longer:.1f} times as long as the shortest: one number for all "
        "is hard on KernelCPD; `pipeline events tune` chooses a penalty for it"
    ]


def figures_table(
    title: str,
    rows: Mapping[str, Figures],
    seconds: Sequence[Tolerance],
    learn: Mapping[str, float] | None = None,
) -> Table:
    """One row per method; `learn` is the F1 where the parameters were chosen.

    It fits in 80 columns, which is why that one has no mean and headings are short.
    """
    tuned = learn is not None
    columns = [*(["F1 where chosen>"] if tuned else []), "F1@0.05>", "prec.>", "recall>"]
    columns += [*([] if tuned else ["mean 0.05-0.5>"]), *(f"F1@{each}>" for each in seconds)]
    table = new_table(title, "", *columns, "pred. / true>")
    for column in table.columns[1:]:  # names are broken between words, figures are not
        column.width = max(len(word) for word in str(column.header).split())
    for name, row in rows.items():
        first = row.strictest
        values = [first.f1, first.precision, first.recall, *([] if tuned else [row.f1_mean])]
        values += [*(row.scores[each].f1 for each in seconds), first.ratio]
        before = [f"{learn[name]:.3f}" if name in learn else ""] if learn is not None else []
        table.add_row(name, *before, *(f"{value:.3f}" for value in values))
    return table


def _answer(
    as_json: bool,
    told: Mapping[str, Any],
    table: Table,
    rows: Mapping[str, Figures],
    notes: Sequence[str],
) -> None:
    if as_json:
        figures = {name: row.to_json() for name, row in rows.items()}
        say(json.dumps({**told, "scores": figures, "notes": list(notes)}, indent=2))
        return
    console = new_console()
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)
