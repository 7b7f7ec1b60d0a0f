"""`trainer compare A B`: which of two files of predictions is better, and is it more than luck?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from data.errors import UsageError
from data.terminal import new_table
from training.compare import Comparison, Contrast, PairedTest, compare, per_query
from training.evaluate_command import (
    CiLevelOption,
    CiSamplesOption,
    CiUnitOption,
    GroundTruth,
    SeedOption,
    named,
    tell_mending,
)
from training.metrics.uncertainty import Resampling
from training.options import (
    AnnotationsOption,
    DatasetOption,
    FormatOption,
    JsonOption,
    MetricsOption,
    ModeOption,
    PerQueryOption,
    answered,
    check_writable,
    console_beside,
    tell,
    tell_written,
    write_json,
    write_rows,
)

__all__ = ["compare_commands"]

compare_commands = typer.Typer()


@compare_commands.command("compare")
@answered
def compare_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Predictions to compare with.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Predictions that may be better.")],
    dataset: DatasetOption = None,
    annotations: AnnotationsOption = None,
    format: FormatOption = None,
    metrics: MetricsOption = None,
    mode: ModeOption = None,
    ci_samples: CiSamplesOption = 2000,
    ci_level: CiLevelOption = 0.95,
    ci_unit: CiUnitOption = "video",
    permutations: Annotated[
        int, typer.Option("--permutations", help="Sign flips that are drawn for p.")
    ] = 10_000,
    seed: SeedOption = 0,
    per_query_path: PerQueryOption = None,
    json_path: JsonOption = None,
) -> None:
    """Compare two files of predictions for the same queries.

    Differences are B - A, with a paired bootstrap interval and the p of a paired permutation test.
    """
    console = console_beside(json_path)
    check_writable("--json", json_path)
    check_writable("--per-query", per_query_path)
    test = PairedTest(Resampling(ci_samples, ci_level, ci_unit, seed), permutations)
    if annotations is None or dataset is None:
        raise UsageError("compare needs --annotations FILE and --dataset NAME")
    truth = GroundTruth.read(dataset, annotations, metrics)
    chosen = mode or "official"
    one, other = (truth.measure(path, chosen, format) for path in (a, b))
    found = compare(one, other, test)
    for name, measured in (("A", one), ("B", other)):
        for note in measured.notes:
            tell(console, f"{name}: {note}")
    queries = len(one.annotations)
    mended = tell_mending(console, one)
    tell(console, f"A is {a}, B is {b}: {queries:,} queries, {truth.metrics}, {chosen} metrics")
    if per_query_path is not None:
        write_rows(per_query_path, per_query(one, other))
    if json_path is not None:
        about = {"mode": chosen, "metrics": truth.metrics, **truth.about}
        about |= {"a": named(a), "b": named(b), "queries": queries, **mended, **test.json()}
        write_json(json_path, {**found.json(), **about})
    console.print(_table(found, test, one.number.decimals))
    tell(console, _explained(found, test))
    tell_written(console, "the shares of each query are in", per_query_path)
    tell_written(console, "the comparison is in", json_path)


def _table(found: Comparison, test: PairedTest, decimals: int) -> Table:
    between = f"{100 * test.resampling.level:g} % between>"
    table = new_table("", "metric", "A>", "B>", "B - A>", between, "Holm p>", "better / worse>")
    table.columns[0].no_wrap = table.columns[5].no_wrap = True
    table.columns[4].min_width = len("+10.00 …")
    for name, each in found.contrasts.items():
        table.add_row(name, *_cells(each, decimals))
    return table


def _cells(each: Contrast, decimals: int) -> list[str]:
    numbers = ["-" if value is None else f"{value:.{decimals}f}" for value in (each.a, each.b)]
    difference = "-" if each.difference is None else f"{each.difference:+.{decimals}f}"
    ci = " … ".join(f"{end:+.{decimals}f}" for end in each.ci or ()) or "-"
    p = "-" if each.p_holm is None else f"{each.p_holm:.4f}"
    return [*numbers, difference, ci, p, f"{each.better}/{each.worse}"]


def _explained(found: Comparison, test: PairedTest) -> str:
    units = {"video": "videos", "query": "queries"}[test.resampling.unit]
    flips = "all" if found.exact else f"{test.permutations:,} random"
    left_out = f" Only one file has {', '.join(found.left_out)}." if found.left_out else ""
    return (
        f"p: how often {flips} exchanges of A and B on some of the {found.units:,} {units} give a "
        f"difference as large, corrected by Holm for all {len(found.contrasts)} numbers at once."
        + left_out
    )
