"""Figures beside targets: what every script of this folder prints with.

bench = Benchmark("Can the evaluator keep up with training?")
bench.figure("speed-up", 29.4, unit="x", at_least=20)
bench.finish()          # prints the table; `--check` exits 1 where a target is missed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["Benchmark", "cpu_seconds", "median_ratio"]


@dataclass(frozen=True)
class Figure:
    """One measured number and what it should be; no target means it is only shown."""

    name: str
    value: float
    unit: str
    at_least: float | None
    at_most: float | None

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""

    @property
    def met(self) -> bool:
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)


class Benchmark:
    """Collects figures, prints them as one table, and answers `--check` and `--json FILE`."""

    def __init__(self, question: str, parser: argparse.ArgumentParser | None = None) -> None:
        parser = parser or argparse.ArgumentParser(description=question)
        parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
        parser.add_argument("--json", type=Path, help="also write the figures, machine and commit")
        self.args = parser.parse_args()
        self.question = question
        self.figures: list[Figure] = []

    def figure(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add one number."""
        self.figures.append(Figure(name, float(value), unit, at_least, at_most))

    def finish(self) -> None:
        """Print; exit 1 under `--check` if a target is missed."""
        table = Table(title=self.question, title_justify="left", caption=_machine())
        for column in ("figure", "value", "target", ""):
            table.add_column(column, justify="left" if column == "figure" else "right")
        for each in self.figures:
            mark = ("ok" if each.met else "MISSED") if each.target else ""
            table.add_row(each.name, f"{each.value:,.4g} {each.unit}", each.target, mark)
        Console(width=110).print(table)
        if self.args.json:
            self.args.json.write_text(json.dumps(self._record(), indent=2) + "\n")
        if self.args.check and not all(each.met for each in self.figures):
            sys.exit(1)

    def _record(self) -> dict[str, object]:
        rows = [
            {"name": f.name, "value": f.value, "unit": f.unit, "target": f.target, "met": f.met}
            for f in self.figures
        ]
        return {"question": self.question, "machine": _machine(), "figures": rows}


def cpu_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU seconds (this process, user + system) of `work` over `repeats` runs."""
    return statistics.median(_cpu(work) for _ in range(repeats))


def median_ratio(
    slow: Callable[[], object], fast: Callable[[], object], repeats: int = 5
) -> tuple[float, float, float]:
    """Run both side by side, alternating; medians of wall seconds and the ratio slow / fast."""
    pairs = [(_wall(slow), _wall(fast)) for _ in range(repeats)]
    slow_s = statistics.median(pair[0] for pair in pairs)
    fast_s = statistics.median(pair[1] for pair in pairs)
    return slow_s, fast_s, slow_s / fast_s


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _wall(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, "
        f"commit {commit or 'none'}, {time.strftime('%Y-%m-%d')}"
    )
