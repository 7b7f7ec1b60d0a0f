"""What a section found: numbers beside what they must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["BrokenError", "Figure", "Findings"]

Rule = Literal["=", ">=", "<=", ""]


class BrokenError(Exception):
    """A promise of the product did not hold. The message says which, and where to look."""


@dataclass(frozen=True)
class Figure:
    """One number, what it must be (`rule` "" only shows it), and a remark."""

    name: str
    value: float
    rule: Rule = ""
    target: float = 0
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the promise holds."""
        checks: Mapping[str, bool] = {
            "": True,
            "=": self.value == self.target,
            ">=": self.value >= self.target,
            "<=": self.value <= self.target,
        }
        return checks[self.rule]

    @property
    def wanted(self) -> str:
        """The promise in words."""
        return f"{self.rule} {self.target:,.10g}".strip() if self.rule else ""


@dataclass
class Findings:
    """The figures of one section, in order, and the sentences of what went wrong."""

    section: str
    figures: list[Figure] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(
        self, name: str, value: float, rule: Rule = "", target: float = 0, note: str = ""
    ) -> None:
        """Add a number."""
        self.figures.append(Figure(name, float(value), rule, float(target), note))

    def breaks(self, sentence: str) -> None:
        """Note a promise that did not hold."""
        self.broken.append(sentence)

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        return not self.broken and all(each.met for each in self.figures)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Findings:
        """The inverse of `to_json`."""
        figures = [Figure(**each) for each in value["figures"]]
        return Findings(value["section"], figures, list(value["broken"]), value["seconds"])
