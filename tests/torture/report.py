"""The figures of all sections as a table and as docs/reliability.md."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from .figures import Figure, Findings
from .processes import ROOT
from .sizes import SIZES

__all__ = ["page", "table"]

_INTRODUCTION = """# Reliability in figures

Written by `make torture` (`python -m tests.torture`); do not edit. The oracle is an undisturbed run
of the same config: afterwards every visible row must be equal to it bit for bit, none missing, none
twice, `pipeline verify` clean, nothing in quarantine that is not at fault itself, and a further run
must find nothing to do. `tests/torture` says how each fault is made.

| section | what is done |
|---|---|
| driver | `kill -9` of the driver at random moments of all stages; restarted until all is stored |
| workers | `kill -9` of Ray workers, decoding children and the raylet while a run goes on |
| parts | `kill -9` in the middle of one long video, counted by the captioner itself |
| points | exit at every write, fsync, rename and append of the store, before, half done and after |
| power | disks on which un-fsynced data and names of a run are lost or torn in any combination |
| videos | mutated real media files through `probe` and `clip` |
| shards | damaged shards: found by `verify`, never read wrong, repaired and refilled |
| disk | full, over quota, failing, read-only |
| poison | inputs that crash, kill, hang, flood or lie; SIGTERM at random moments |
| company | two jobs on one store at once |
| change | a file that changes under its name, a store that moves |
"""


def table(found: Iterable[Findings]) -> Table:
    """For the terminal."""
    made = Table(title="Storyline under fire", title_justify="left")
    for name in ("section", "figure", "value", "must be", "", "remark"):
        made.add_column(name, justify="right" if name in ("value", "must be") else "left")
    for one in found:
        for index, figure in enumerate(one.figures):
            made.add_row(
                one.section if index == 0 else "",
                figure.name,
                _number(figure),
                figure.wanted,
                _mark(figure),
                escape(figure.note),
            )
        for sentence in one.broken:
            made.add_row(one.section, "[bold]BROKEN[/]", "", "", "", escape(sentence[:500]))
        made.add_section()
    return made


def page(found: Sequence[Findings], size: str, seed: int) -> str:
    """docs/reliability.md."""
    lines = [_INTRODUCTION]
    lines += [f"{_machine()}; size `{size}`, seed {seed}.", ""]
    lines += ["| section | figure | value | must be | |  remark |", "|---|---|---:|---:|---|---|"]
    for one in found:
        for each in one.figures:
            cells = (one.section, each.name, _number(each), each.wanted, _mark(each), each.note)
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        for sentence in one.broken:
            told = sentence.replace("|", "/").replace("\n", " ")[:300]
            lines.append(f"| {one.section} | **broken** | | | | {told} |")
    times = ", ".join(f"{one.section} {one.seconds:.0f} s" for one in found)
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(SIZES[size]).items())
    lines += ["", f"Times: {times}.", "", f"Sizes: {sizes}.", ""]
    return "\n".join(lines)


def _number(figure: Figure) -> str:
    return f"{figure.value:,.0f}" if figure.value == int(figure.value) else f"{figure.value:,.2f}"


def _mark(figure: Figure) -> str:
    if not figure.rule:
        return ""
    return "ok" if figure.met else "BROKEN"


def _machine() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = told.stdout.strip() or "none"
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit}, {os.cpu_count()} x {platform.machine()}, "
        f"{memory_gb:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )
