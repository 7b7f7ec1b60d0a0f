"""`python -m tests.torture`: run sections, print one table, write docs/reliability.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console

from . import report
from .figures import BrokenError, Findings
from .processes import ROOT, environment, preload
from .sizes import SIZES
from .world import World

SECTIONS = {
    "driver": "driver_kills",
    "workers": "worker_kills",
    "parts": "part_kills",
    "points": "kill_points",
    "power": "power_loss",
    "videos": "mutated_videos",
    "shards": "damaged_shards",
    "disk": "full_disk",
    "poison": "poison",
    "company": "company",
    "change": "change",
}
"""Name of each section and its module."""


def main() -> int:
    """Exit code 1 if a promise did not hold."""
    options = _options()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = options.only or list(SECTIONS)
    began = time.monotonic()
    found = _run_all(names, options, folder, console)
    console.print(report.table(found))
    console.print(f"{len(found)} sections in {(time.monotonic() - began) / 60:.1f} min")
    good = all(each.good for each in found)
    if not good or options.keep:
        console.print(f"kept for you to look at: {folder}", markup=False, soft_wrap=True)
    else:
        shutil.rmtree(folder)
    if options.write or (not options.only and options.size == "full"):
        page = options.write or ROOT / "docs" / "reliability.md"
        page.write_text(report.page(found, options.size, options.seed))
        console.print(f"written: {page}", markup=False, soft_wrap=True)
    return 0 if good else 1


def run_section(name: str, size: str, seed: int, folder: Path) -> Findings:
    """One section in this process."""
    world = World(name, SIZES[size], seed, folder / name)
    world.folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        importlib.import_module(f"{__package__}.{SECTIONS[name]}").run(world)
    except BrokenError as error:
        world.findings.breaks(str(error))
    except Exception:
        world.findings.breaks(traceback.format_exc())
    world.findings.seconds = time.monotonic() - began
    if world.findings.good:
        shutil.rmtree(world.folder)
    return world.findings


def _run_all(
    names: list[str], options: argparse.Namespace, folder: Path, console: Console
) -> list[Findings]:
    """Sections as forks of this process, which has everything imported; `--jobs` at a time."""
    os.environ.update(environment())
    preload()
    waiting, running = list(names), dict[str, int]()
    found: dict[str, Findings] = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            running[name] = _start(name, options, folder)
        pid, status = os.waitpid(-1, 0)
        for name in [each for each, own in running.items() if own == pid]:
            del running[name]
            code = os.waitstatus_to_exitcode(status)
            found[name] = _result(name, folder, code)
            state = "ok" if found[name].good else "FAILED"
            console.print(f"{name}: {state} after {found[name].seconds:.0f} s", highlight=False)
            for sentence in found[name].broken:
                console.print(sentence, markup=False, highlight=False)
    return [found[name] for name in names]


def _start(name: str, options: argparse.Namespace, folder: Path) -> int:
    """The pid of a fork that runs one section and leaves its findings as JSON."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            findings = run_section(name, options.size, options.seed, folder)
            (folder / f"{name}.json").write_text(json.dumps(findings.to_json()))
            code = 0
        finally:
            os._exit(code)
    return pid


def _result(name: str, folder: Path, code: int) -> Findings:
    file = folder / f"{name}.json"
    if file.exists():
        return Findings.from_json(json.loads(file.read_text()))
    return Findings(name, broken=[f"the section itself died with exit code {code}"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.torture", description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--only", choices=list(SECTIONS), action="append", help="repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="sections side by side")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--write", type=Path, help="write the page of figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
