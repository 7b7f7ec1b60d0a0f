"""What an import did, input by input, for a person and for a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["ImportReport", "Line", "Outcome"]

Outcome: TypeAlias = Literal["stored", "present", "refused", "planned"]


@dataclass(frozen=True)
class Line:
    """One video or query.

    Args:
        id: the video, or the qid.
        outcome: `stored` now; `present` before; `refused`: in quarantine; `planned` (`--dry-run`).
        files: files, and places in them.
        rows: rows of the file; None if nobody could see.
        clips: rows in the store.
        fit: `kept`, `cut`, `repeated`, `resampled`; "" for queries.
        by: how many rows were cut or repeated.
        expected: who says how long the video is: `probe`, `annotations`, `stream NAME`, `rows`.
        reason: short code of a refusal (`data.interop.arrays.REASONS`).
        told: what was done and why, in a sentence.
    """

    id: str
    outcome: Outcome
    files: Sequence[str] = ()
    rows: int | None = None
    clips: int | None = None
    fit: str = ""
    by: int = 0
    expected: str = ""
    reason: str = ""
    told: str = ""

    @staticmethod
    def of_facts(id: str, outcome: Outcome, facts: Mapping[str, Any]) -> Line:
        """The line of a row that an import made, from the facts of the row."""
        names = ("files", "rows", "clips", "fit", "by", "expected", "told")
        return Line(id, outcome, **{name: facts[name] for name in names if name in facts})


@dataclass(frozen=True)
class ImportReport:
    """How an import ended.

    Args:
        stage: name of the stage.
        recipe: id of its recipe.
        source: what was recognised.
        lines: input by input.
        left_out: names in the source that are no input, with the reason.
        notes: what a person should know.
        current: whether readers are sent to these rows now.
        interrupted: whether it was asked to stop before its end.
    """

    stage: str
    recipe: str
    source: str
    lines: Sequence[Line]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    current: bool = False
    interrupted: bool = False

    @property
    def refused(self) -> list[Line]:
        """What is in quarantine."""
        return [line for line in self.lines if line.outcome == "refused"]

    def counts(self) -> dict[tuple[str, str], int]:
        """Number of inputs by outcome and by what was done to their rows, or why not."""
        pairs = ((line.outcome, line.reason or line.fit) for line in self.lines)
        return dict(sorted(Counter(pairs).items()))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        counts = [
            {"outcome": outcome, "what": what, "inputs": count}
            for (outcome, what), count in self.counts().items()
        ]
        whole = asdict(self) | {"counts": counts}
        return whole | {"left_out": dict(self.left_out), "notes": list(self.notes)}
