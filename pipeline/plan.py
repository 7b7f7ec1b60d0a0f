"""What would run and why, for a person and for a machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from data.terminal import new_table
from pipeline.cost import Cost
from pipeline.speeds import Speed
from pipeline.stage import Given
from pipeline.survey import Inventory, Ledger, Survey

__all__ = ["Line", "Plan", "make_plan"]


@dataclass(frozen=True)
class Line:
    """One stage of a plan.

    Args:
        stage: name of the stage.
        recipe: its recipe id.
        wanted: inputs that it should have rows for.
        present: inputs that it has rows for.
        missing: inputs to work on, now or after the stages before.
        waiting: those of the missing that wait for stages before.
        quarantined: inputs that were given up.
        blocked: inputs that were given up by a stage before.
        decode_with: stages that share its decode.
        because: why it is in the plan though nobody asked; "" if somebody did.
        change: in which points its recipe differs from the store's current one.
        imported: whether its rows were imported and are only read.
    """

    stage: str
    recipe: str
    wanted: int
    present: int
    missing: int
    waiting: int
    quarantined: int
    blocked: int
    decode_with: tuple[str, ...] = ()
    because: str = ""
    change: str = ""
    imported: bool = False

    @property
    def note(self) -> str:
        """The last four in words."""
        notes = ["imported rows"] if self.imported else []
        if self.imported and self.blocked:
            notes.append(
                f"{self.blocked:,} inputs have none of the same content; `pipeline import` again"
            )
        if self.because:
            notes.append(f"needed by {self.because}")
        if self.decode_with:
            notes.append(f"one decode with {', '.join(self.decode_with)}")
        if self.change:
            notes.append(f"new recipe: {self.change}")
        return "; ".join(notes)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Args:
        lines: stage by stage.
        damage: shards that cannot be read.
        unhashed: videos that the store knows, and whose files this machine has not hashed yet:
            nobody can say before that whether their rows are those of these files.
        speeds: how fast the stages over frames are that have something to do; () if not measured.
        lacks: what this machine lacks for it; `run` would refuse.
        costs: what captions that are left will cost.
        notices: what a user should know before it begins: that frames leave this machine.
    """

    lines: tuple[Line, ...]
    damage: tuple[str, ...] = ()
    unhashed: tuple[str, ...] = ()
    speeds: tuple[Speed, ...] = ()
    lacks: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def missing(self) -> int:
        """How many (stage, input) pairs are to work on."""
        return sum(line.missing for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "stages": [asdict(line) for line in self.lines],
            "damage": list(self.damage),
            "unhashed": list(self.unhashed),
            "speeds": [each.to_json() for each in self.speeds],
            "lacks": list(self.lacks),
            "costs": [each.to_json() for each in self.costs],
            "notices": list(self.notices),
        }

    def table(self) -> Table:
        """For a terminal."""
        numbers = ("wanted>", "present>", "to do>", "waiting>", "quarantined>", "blocked>")
        table = new_table("Plan", "stage", "recipe", *numbers, "why")
        for line in self.lines:
            counts = (line.wanted, line.present, line.missing, line.waiting)
            cells = map(str, (*counts, line.quarantined, line.blocked))
            table.add_row(line.stage, line.recipe, *cells, line.note)
        return table


def make_plan(inventory: Inventory, ledger: Ledger) -> Plan:
    """The plan of a surveyed program."""
    partners = {name: each.names for each in inventory.program.sets for name in each.names}
    lines = [_line(one, inventory, ledger, partners) for one in inventory.surveys.values()]
    unhashed = tuple(each.key.id for each in ledger.unhashed(inventory.videos))
    return Plan(tuple(lines), tuple(ledger.damage), unhashed)


def _line(
    one: Survey, inventory: Inventory, ledger: Ledger, partners: Mapping[str, Iterable[str]]
) -> Line:
    name = one.stage.name
    return Line(
        stage=name,
        recipe=one.recipe.id,
        wanted=len(one.states),
        present=one.count("present"),
        missing=one.count("todo", "waiting"),
        waiting=one.count("waiting"),
        quarantined=one.count("quarantined"),
        blocked=one.count("blocked"),
        decode_with=tuple(each for each in partners.get(name, ()) if each != name),
        because=inventory.program.because.get(name, ""),
        change=ledger.change(one.recipe),
        imported=isinstance(one.stage, Given),
    )
