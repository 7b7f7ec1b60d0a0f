"""`trainer lint`: the faults of annotation files, and rows that two of them share (docs/lint.md).

Exit codes: 0 no error was found, warnings may be; 1 an error was found; 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from data.annotations.findings import Finding, Sheet, Spot
from data.annotations.lint import lint_together
from data.commands import EXIT_FAILED
from data.errors import UsageError
from data.grid import SHORTEST_CLIP_S
from data.store.place import place_of
from data.terminal import new_table
from training.checks import lengths_in, open_sheet, open_store
from training.options import answered, check_writable, console_beside, tell, write_json

__all__ = ["lint_commands"]

lint_commands = typer.Typer()


@lint_commands.command("lint")
@answered
def lint_command(
    annotations: Annotated[
        list[str],
        typer.Argument(
            help="Annotation files, of a dataset or of a store; each is compared with those "
            "before it, too.",
            show_default=False,
        ),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", help="A file that was trained on: what is shared is told. Repeatable."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Whose format all files have. Default: as they look."),
    ] = None,
    clip_len: Annotated[
        float | None,
        typer.Option("--clip-len", help="Seconds of a clip. Default: the dataset's."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="A store that measured the videos: compare durations."),
    ] = None,
    show: Annotated[
        int, typer.Option("--show", min=0, help="How many places of each finding are shown.")
    ] = 3,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Also write all findings with all places here; - is stdout."),
    ] = None,
) -> None:
    """Look for faults in annotation files, and for rows that they share."""
    _check(annotations, against or [], clip_len, json_path)
    lengths = lengths_in(open_store(store)) if store else {}
    if store and not lengths:
        raise UsageError(
            f"--store: {store} did not measure any video; run `pipeline run --stage probe` for it"
        )
    sheets, others = (
        [open_sheet(each, dataset, clip_len, lengths) for each in names]
        for names in (annotations, against or [])
    )
    findings = lint_together(sheets, others)
    if json_path is not None:
        write_json(json_path, _report(sheets, others, findings))
    wrong = [each for each in others if each.wrong]
    _show([*sheets, *wrong], findings, show, json_path)
    if any(each.kind.level == "error" for each in findings):
        raise typer.Exit(EXIT_FAILED)


def _check(
    annotations: Sequence[str],
    against: Sequence[str],
    clip_len: float | None,
    json_path: Path | None,
) -> None:
    """What can be refused before anything is read."""
    places = [place_of(each) for each in [*annotations, *against]]
    # not Path.resolve, which raises for a link to itself
    real = [os.path.realpath(each) if isinstance(each, Path) else each for each in places]
    twice = [name for i, name in enumerate([*annotations, *against]) if real[i] in real[:i]]
    if twice:
        raise UsageError(f"'{twice[0]}' is named twice; a file shares all rows with itself")
    if clip_len is not None and not SHORTEST_CLIP_S <= clip_len < float("inf"):
        raise UsageError(
            "--clip-len must be a number of seconds above 0, at least "
            f"{SHORTEST_CLIP_S:g}, got {clip_len}"
        )
    check_writable("--json", json_path)


def _report(
    sheets: Sequence[Sheet], against: Sequence[Sheet], findings: Sequence[Finding]
) -> dict[str, Any]:
    levels = [each.kind.level for each in findings]
    return {
        "errors": levels.count("error"),
        "warnings": levels.count("warning"),
        "files": [_about(each) for each in sheets],
        "against": [_about(each) for each in against],
        "findings": [each.to_json() for each in findings],
    }


def _about(sheet: Sheet) -> dict[str, Any]:
    return {
        "file": sheet.name,
        "dataset": sheet.dataset.name,
        "clip_len_s": sheet.clip_len_s,
        "rows": len(sheet.rows) + len(sheet.wrong),
        "videos": len({row.annotation.video_id for row in sheet.rows}),
    }


def _show(
    sheets: Sequence[Sheet], findings: Sequence[Finding], show: int, json_path: Path | None
) -> None:
    console = console_beside(json_path, width=None if sys.stdout.isatty() else 160)
    worst_first = sorted(findings, key=lambda finding: finding.kind.level)
    for sheet in sheets:
        of_sheet = [each for each in worst_first if each.file == sheet.name]
        _show_sheet(console, sheet, of_sheet, show)
    levels = [each.kind.level for each in findings]
    told = ", ".join(f"{level}s: {levels.count(level)}" for level in ("error", "warning"))
    where = f"; every place is in {json_path}" if json_path else ""
    tell(console, f"files: {len(sheets)}, {told}{where}")


def _show_sheet(console: Console, sheet: Sheet, findings: Sequence[Finding], show: int) -> None:
    about = _about(sheet)
    rows, videos = (f"{about[n]:,} {n[:-1]}{'s' * (about[n] != 1)}" for n in ("rows", "videos"))
    title = (
        f"{sheet.name}: {rows} on {videos}, read as {sheet.dataset.name} with clips of "
        f"{sheet.clip_len_s:g} s"
    )
    if not findings:
        tell(console, f"{title}: nothing found")
        return
    table = new_table(title, "level", "check", "count>", "what", "for example")
    for each in findings:
        count = f"{len(each.spots):,}"
        table.add_row(each.kind.level, each.kind.name, count, _what(each), _places(each, show))
    console.print(table)


def _what(finding: Finding) -> str:
    _, _, what = finding.message.partition(" × ")
    return what


def _places(finding: Finding, show: int) -> str:
    spots = finding.spots[:show]
    more = len(finding.spots) - len(spots)
    lines = [_place(each, finding) for each in spots]
    return "\n".join(lines + [f"and {more:,} more"] * (more > 0 and show > 0))


def _place(spot: Spot, finding: Finding) -> str:
    """A fault without the names of the files, which stand beside it."""
    line = f"{spot.where}: {spot.detail}"
    for name in (finding.file, finding.against):
        line = line.replace(f"{name}, ", "") if name else line
    return line
