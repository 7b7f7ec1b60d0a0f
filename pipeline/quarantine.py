"""What is in quarantine, for `pipeline failures`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from data.store import Failure, Store
from data.terminal import new_table

__all__ = ["Quarantined", "quarantine_table", "read_quarantine"]

_MOST_CHARACTERS = 200


@dataclass(frozen=True)
class Quarantined:
    """One input that was given up.

    Args:
        recipe: id of the recipe under which it was.
        current: whether that is the current one of its stage.
        failure: what happened.
    """

    recipe: str
    current: bool
    failure: Failure

    @property
    def retry(self) -> str:
        """The command that tries it again."""
        return f"pipeline run --stage {self.failure.stage} --retry-failed"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        places = {"recipe": self.recipe, "current": self.current, "retry": self.retry}
        return asdict(self.failure) | places


def read_quarantine(store: Store) -> Iterator[Quarantined]:
    """Everything that failed and has no row since, of all recipes, in order of stage and id."""
    current = store.current
    for stage in store.stages():
        for recipe_id in store.recipes(stage):
            failures = store.failures(stage, recipe_id).read()
            if not failures:
                continue
            present = store.reader(stage, recipe_id, strict=False).keys()
            for place in sorted(failures):
                if failures[place].key not in present:
                    is_current = current.get(stage) == recipe_id
                    yield Quarantined(recipe_id, is_current, failures[place])


def quarantine_table(listed: Iterable[Quarantined]) -> Table:
    """For a terminal."""
    table = new_table("In quarantine", "stage", "input", "reason", "attempts>", "message")
    for each in listed:
        failure = each.failure
        key = failure.key
        part = f" (part {key.part + 1} of {key.parts})" if key.parts > 1 else ""
        stage = failure.stage if each.current else f"{failure.stage} ({each.recipe})"
        message = failure.message[:_MOST_CHARACTERS]
        table.add_row(stage, f"{key.id}{part}", failure.reason, str(failure.attempts), message)
    return table
