"""Finds the faults of annotation files: of each alone, and rows that two of them share.

Reading goes on after a row of wrong form, so that one run tells all. docs/lint.md has the checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from data.annotations.faults import CHECKS, WRONG_FORM
from data.annotations.findings import Check, Finding, Kind, Sheet, SheetRow, Spot
from data.annotations.formats import Dataset, Record
from data.annotations.leakage import Seen, leaks
from data.annotations.types import Annotation
from data.errors import UsageError

__all__ = ["lint", "lint_together", "read_sheet", "sheet_of"]


def read_sheet(
    records: Iterable[Record],
    name: str,
    dataset: Dataset,
    clip_len_s: float,
    lengths_s: Mapping[str, float] | None = None,
) -> Sheet:
    """The rows of a file, those of wrong form set aside.

    Args:
        records: of the file.
        name: of the file.
        dataset, clip_len_s, lengths_s: see `Sheet`.

    Raises:
        UsageError: what is wrong with the file as a whole.
    """
    rows, wrong = [], []
    for record in records:
        try:
            rows.append(SheetRow(record.where, record.annotation()))
        except UsageError as error:
            problem = str(error).removeprefix(record.where).lstrip(": ")
            wrong.append(Spot(record.where, problem))
    return Sheet(name, dataset, clip_len_s, rows, wrong, lengths_s or {})


def sheet_of(
    rows: Iterable[Annotation],
    name: str,
    dataset: Dataset,
    clip_len_s: float,
    lengths_s: Mapping[str, float] | None = None,
) -> Sheet:
    """Rows that were read already; their places are their numbers, from 1."""
    placed = [SheetRow(f"{name}, row {n}", row) for n, row in enumerate(rows, start=1)]
    return Sheet(name, dataset, clip_len_s, placed, (), lengths_s or {})


def lint(sheet: Sheet, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """What is wrong with one file, errors first."""
    spots: dict[Kind, list[Spot]] = {WRONG_FORM: list(sheet.wrong)} if sheet.wrong else {}
    for check in checks:
        for fault in check(sheet):
            spots.setdefault(fault.kind, []).append(Spot.at(fault.row, fault.detail))
    found = [Finding(kind, sheet.name, tuple(each)) for kind, each in spots.items()]
    return sorted(found, key=lambda finding: finding.kind.level)


def lint_together(sheets: Sequence[Sheet], against: Sequence[Sheet] = ()) -> list[Finding]:
    """What is wrong with each file, and what each shares with those before it and `against`.

    Args:
        sheets: files that are looked at.
        against: files that are not, such as those of a training.
    """
    seen = {each.name: _seen(each) for each in [*against, *sheets[:-1]]}
    # What cannot be read cannot be compared either.
    findings = [finding for each in against for finding in lint(each, checks=())]
    for number, sheet in enumerate(sheets):
        findings += lint(sheet)
        for other in [*against, *sheets[:number]]:
            findings += leaks(sheet, seen[other.name], other.name)
    return findings


def _seen(sheet: Sheet) -> Seen:
    rows = ((row.where, row.annotation) for row in sheet.rows)
    return Seen.of(rows, sheet.dataset.source_of)
