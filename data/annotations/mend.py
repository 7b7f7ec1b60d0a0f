"""Moments made usable for training and strict scores: changed or left out, counted and told.

Files are read and stored as they are; this is for where moments are used. In this order
(specs/tea_lmr_cqval_splits.md §2.1): a moment that ends before it starts is swapped; its ends are
moved into the video; it is dropped if it is empty then, which it also is if it began at the end of
the video or later. A query all of whose moments are dropped is left out. Nothing else of a query is
changed. Without a duration nothing can be moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from data.annotations.types import Annotation

__all__ = ["Change", "MendReport", "mended"]

Window = tuple[float, float]
What = Literal["swapped", "clamped", "dropped", "left_out"]

_NAMED = 5
"""Queries named in a sentence; `MendReport.changes` has all."""


@dataclass(frozen=True)
class Change:
    """One thing that was done.

    Args:
        qid: the query.
        what: `swapped` or `clamped` a moment, `dropped` one, or `left_out` the query.
        before: the moment as the file has it; None for a query.
        after: the moment as it is used; None if it is not.
    """

    qid: int | str
    what: What
    before: Window | None = None
    after: Window | None = None


@dataclass(frozen=True)
class MendReport:
    """What was done to some queries.

    Args:
        queries: how many there were.
        windows: how many moments they had.
        changes: everything that was done, in the order of the file; a moment that was swapped and
            clamped is there twice.
        no_duration: queries with moments whose end nobody could check.
    """

    queries: int
    windows: int
    changes: tuple[Change, ...] = ()
    no_duration: tuple[int | str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How often each of these things was done; queries for `left_out`, else moments."""
        return {what: self.count(what) for what in get_args(What)}

    def count(self, what: What) -> int:
        """How often something was done."""
        return sum(change.what == what for change in self.changes)

    def sentences(self) -> list[str]:
        """What a user must know: how often, and the first queries; nothing if all is well."""
        told: dict[What, str] = {
            "swapped": "end before they start: start and end are swapped",
            "clamped": "reach out of their video: they are cut to it",
            "dropped": "are empty or begin after the end of their video: they are dropped",
        }
        found = [
            f"{self.count(what):,} of {self.windows:,} moments {why} ({self._first(what)})"
            for what, why in told.items()
            if self.count(what)
        ]
        if gone := self.count("left_out"):
            found.append(
                f"{gone:,} of {self.queries:,} queries have no other moment and are left out "
                f"({self._first('left_out')})"
            )
        if unknown := len(self.no_duration):
            found.append(
                f"{unknown:,} of {self.queries:,} queries do not say how long their video is: "
                "nobody checks whether their moments lie in it"
            )
        return found

    def _first(self, what: What) -> str:
        qids = list(dict.fromkeys(each.qid for each in self.changes if each.what == what))
        more = ", …" if len(qids) > _NAMED else ""
        return "qid " + ", ".join(map(str, qids[:_NAMED])) + more


def mended(rows: Sequence[Annotation]) -> tuple[list[Annotation], MendReport]:
    """The queries with moments that can be used, and what was done for it.

    Queries that need nothing are the same objects as before; so are those without moments.
    """
    kept: list[Annotation] = []
    changes: list[Change] = []
    for row in rows:
        usable, done = _mended(row)
        changes += done
        if usable is not None:
            kept.append(usable)
    unknown = tuple(row.qid for row in rows if row.windows and row.duration_s is None)
    count = sum(len(row.windows or ()) for row in rows)
    return kept, MendReport(len(rows), count, tuple(changes), unknown)


def _mended(row: Annotation) -> tuple[Annotation | None, list[Change]]:
    steps = [_steps(row, window) for window in row.windows or ()]
    done = [change for each in steps for change in each]
    if not done:
        return row, []
    results = [
        each[-1].after if each else window
        for each, window in zip(steps, row.windows or (), strict=True)
    ]
    windows = tuple(window for window in results if window is not None)
    if not windows:
        return None, [*done, Change(row.qid, "left_out")]
    return replace(row, windows=windows), done


def _steps(row: Annotation, window: Window) -> list[Change]:
    """What is done to one moment; [] for nothing, the last change has the result."""
    steps = []
    now = window
    if now[0] > now[1]:
        now = (now[1], now[0])
        steps.append(Change(row.qid, "swapped", window, now))
    if (inside := _inside(now, row.duration_s)) != now:
        steps.append(Change(row.qid, "clamped", now, inside))
    if inside[0] == inside[1]:
        # What is dropped was not worth moving first.
        return [Change(row.qid, "dropped", window)]
    return steps


def _inside(window: Window, duration_s: float | None) -> Window:
    if duration_s is None:
        return window
    start, end = (min(max(edge, 0.0), duration_s) for edge in window)
    return start, end
