"""Scores of several predictions side by side, always beside what does not look at the video.

The figures are those of the Kinetics-GEBD challenge (tolerances of 0.05 to 0.5 of the length and
their mean) and, because 5 % of a long video is many seconds, tolerances in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from data.errors import UsageError
from data.foreign import brief
from pipeline.events.evaluate import (
    BASELINES,
    Boundaries,
    BoundaryScore,
    Truth,
    boundary_score,
    human_score,
)

__all__ = ["CHALLENGE", "HUMAN", "SECONDS", "Figures", "Tolerance", "compare", "figures_of"]

HUMAN = "human (one rater left out)"


@dataclass(frozen=True)
class Tolerance:
    """How far a prediction may be off.

    Args:
        amount: seconds, or with `relative` a part of the video's length.
        relative: which of the two.
    """

    amount: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """`0.05` is a part of the video's length, `1s` are seconds.

        Raises:
            UsageError: neither, or not above 0, or more than the whole length.
        """
        relative = not text.endswith("s")
        try:
            amount = float(text.removesuffix("s"))
        except ValueError:
            amount = math.nan
        if not 0 < amount < (1 if relative else math.inf):
            raise UsageError(
                f"a tolerance is a part of the video's length (0.05) or seconds (1s), "
                f"got {brief(text)}"
            )
        return cls(amount, relative)

    def __str__(self) -> str:
        return f"{self.amount:g}" if self.relative else f"{self.amount:g}s"

    def score(self, predictions: Boundaries, truth: Mapping[str, Truth]) -> BoundaryScore:
        """Micro scores; see `boundary_score`."""
        return boundary_score(predictions, truth, tolerance=self.amount, relative=self.relative)

    def human(self, truth: Mapping[str, Truth]) -> BoundaryScore | None:
        """See `human_score`."""
        return human_score(truth, tolerance=self.amount, relative=self.relative)


CHALLENGE = tuple(Tolerance(number / 20, True) for number in range(1, 11))
"""0.05, 0.1, … 0.5 of the video's length."""

SECONDS = (Tolerance(0.5, False), Tolerance(1.0, False))


@dataclass(frozen=True)
class Figures:
    """Scores of one prediction by tolerance, those of `CHALLENGE` among them."""

    scores: Mapping[Tolerance, BoundaryScore]

    @property
    def strictest(self) -> BoundaryScore:
        """At 0.05, the one that papers print."""
        return self.scores[CHALLENGE[0]]

    @property
    def f1_mean(self) -> float:
        """Mean F1 of the challenge's tolerances."""
        return sum(self.scores[each].f1 for each in CHALLENGE) / len(CHALLENGE)

    def to_json(self) -> dict[str, Any]:
        """F1, precision and recall by tolerance; mean F1; predicted per true boundary."""
        return {
            "f1": {str(each): score.f1 for each, score in self.scores.items()},
            "precision": {str(each): score.precision for each, score in self.scores.items()},
            "recall": {str(each): score.recall for each, score in self.scores.items()},
            "f1_mean": self.f1_mean,
            "ratio": self.strictest.ratio,
        }


def figures_of(
    score: Callable[[Tolerance], BoundaryScore], seconds: Collection[Tolerance] = SECONDS
) -> Figures:
    """The figures by a function that scores at one tolerance."""
    return Figures({each: score(each) for each in (*CHALLENGE, *seconds)})


def compare(
    predictions: Mapping[str, Boundaries],
    truth: Mapping[str, Truth],
    *,
    seconds: Collection[Tolerance] = SECONDS,
    seed: int = 0,
) -> dict[str, Figures]:
    """Figures of the predictions, then of every baseline, then of the annotators, by name.

    Args:
        predictions: by name; a video that is missing in one counts as one without boundaries.
        truth: by video id; the annotators' own row is there if a video has two of them.
        seconds: tolerances beside those of the challenge.
        seed: of the random baseline.
    """
    named = dict(predictions) | {name: find(truth, seed) for name, find in BASELINES.items()}
    rows = {
        name: figures_of(partial(Tolerance.score, predictions=found, truth=truth), seconds)
        for name, found in named.items()
    }
    if any(len(each.raters) > 1 for each in truth.values()):
        rows[HUMAN] = figures_of(lambda each: each.human(truth) or BoundaryScore(0, 0, 0), seconds)
    return rows
