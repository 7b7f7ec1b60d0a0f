"""Rows that are generated together: who sits where, who is over, who moves up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.captioners.loop.sampling import NOT_FINITE
from models.captioners.loop.types import FinishReason, Generated

__all__ = ["Ending", "Row", "Table"]

COMPACT_BELOW = 0.75
"""Share of rows still at work below which the rest moves together (specs/captioners.md §3.3: the
steps of rows that are over fall from +60–90 % to +6–8 %)."""

REFILL_BELOW = 0.875
"""The same where rows wait for a place: nothing but their own prompts has to be computed then. Of
64 rows it lets in 8 at once, 5,000 tokens of LLaVA, enough to keep a large GPU busy."""


@dataclass(frozen=True)
class Ending:
    """What ends a row.

    Args:
        eos: each of these tokens.
        stop: each of these sequences of new tokens.
        most: this many new tokens.
    """

    eos: frozenset[int]
    stop: tuple[tuple[int, ...], ...]
    most: int

    @staticmethod
    def of(eos: Collection[int], stop: Sequence[Sequence[int]], most: int) -> Ending:
        """Checked.

        Raises:
            ValueError: a stop sequence is empty.
        """
        if any(len(each) == 0 for each in stop):
            raise ValueError(f"a stop sequence has at least one token, got {list(stop)}")
        # The longest first: of two that match, it takes away more of what is no text.
        return Ending(
            frozenset(eos), tuple(sorted((tuple(each) for each in stop), key=len))[::-1], most
        )


@dataclass
class Row:
    """One generation.

    Args:
        index: of its prompt.
        prompt_tokens: T.
        uniform: one number per step, where tokens are sampled.
    """

    index: int
    prompt_tokens: int
    uniform: NDArray[np.float32] | None = None
    ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None

    def add(self, token: int, ending: Ending) -> None:
        """Take the next token."""
        if token == NOT_FINITE:
            self.finish = "error"
            return
        if token in ending.eos:
            self.finish = "stop"
            return
        self.ids.append(token)
        for stop in ending.stop:
            if tuple(self.ids[-len(stop) :]) == stop:
                del self.ids[-len(stop) :]
                self.finish = "stop"
                return
        if len(self.ids) == ending.most:
            self.finish = "length"

    def restart(self) -> None:
        """Forget what was generated; it comes out the same again."""
        self.ids.clear()
        self.finish = None

    @property
    def tokens(self) -> int:
        """Of prompt and answer; what attention sees when the last one is fed."""
        return self.prompt_tokens + len(self.ids)

    @property
    def next_uniform(self) -> float:
        """The number of the next step; of a row that is over, any."""
        if self.uniform is None or len(self.ids) >= len(self.uniform):
            return 0.0
        return float(self.uniform[len(self.ids)])

    def result(self) -> Generated:
        """What came out.

        Raises:
            ValueError: it is not over.
        """
        if self.finish is None:
            raise ValueError(f"row {self.index} is not over")
        reason = "the language model gave no finite number" if self.finish == "error" else ""
        return Generated(tuple(self.ids), self.finish, self.prompt_tokens, reason)


class Table:
    """Which row has which place in memory. Rows that are over keep theirs until others move up."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def at_work(self) -> list[Row]:
        """Rows that are not over."""
        return [row for row in self.rows if row.finish is None]

    @property
    def longest(self) -> int:
        """Tokens of the longest row at work."""
        return max(row.tokens for row in self.at_work)

    @property
    def equal(self) -> bool:
        """Whether all rows at work have as many tokens."""
        return len({row.tokens for row in self.at_work}) == 1

    def compact(self) -> tuple[list[int], list[int]]:
        """Rows at work from the end go to the places of rows that are over.

        Returns:
            the places that they leave and those that they take; as few moves as can be.
        """
        count = len(self.at_work)
        holes = [i for i in range(count) if self.rows[i].finish is not None]
        sources = [i for i in range(count, len(self.rows)) if self.rows[i].finish is None]
        for hole, source in zip(holes, sources, strict=True):
            self.rows[hole] = self.rows[source]
        del self.rows[count:]
        return sources, holes
