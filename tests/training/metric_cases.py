"""Random queries and answers for the property tests of the metrics.

Times and scores are multiples of a half, and a query has few different times, so that equal
overlaps, equal scores, touching, empty, reversed and repeated windows are common, and no property
is blurred by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from literal_metrics import Numbers

from data.annotations.types import Annotation
from training.metrics import METRICS, Measured, Mode
from training.predictions import Prediction

CLIP_LEN_S = 2.0

in_both_modes = pytest.mark.parametrize("mode", ["official", "strict"])
cases = settings(max_examples=25, deadline=None, derandomize=True)
many_cases = settings(max_examples=100, deadline=None, derandomize=True)

halves = st.integers(-4, 90).map(lambda n: n / 2)
fives = st.integers(0, 9).map(lambda n: 5.0 * n)
few = st.integers(0, 6).map(float)
seconds = st.one_of(halves, fives)
few_times = st.one_of([st.lists(each, min_size=2, max_size=5) for each in (few, fives, halves)])
scores = st.integers(-4, 4).map(lambda halves: halves / 2)
sound_spans = st.tuples(seconds, st.integers(1, 80)).map(lambda at: (at[0], at[0] + at[1] / 2))


@dataclass(frozen=True)
class Answered:
    """Queries and what was predicted for them."""

    annotations: tuple[Annotation, ...]
    predictions: tuple[Prediction, ...]
    metric: str = "mr_hd"

    def measured(self, mode: Mode) -> Measured:
        metric = METRICS.get(self.metric)
        return metric(self.annotations, self.predictions, clip_len_s=CLIP_LEN_S, mode=mode)

    def means(self, mode: Mode) -> Numbers:
        return self.measured(mode).means()

    def with_windows(self, change: Callable[[Sequence[Any]], Sequence[Any]]) -> Answered:
        """The same queries with other predicted windows."""
        changed = (replace(p, windows=tuple(change(p.windows))) for p in self.predictions)
        return replace(self, predictions=tuple(changed))


@st.composite
def answered(
    draw: st.DrawFn, min_windows: int = 1, max_windows: int = 13, distinct_scores: bool = False
) -> Answered:
    """One to five queries on videos of one to eight clips."""
    pairs = [
        draw(query(qid, min_windows, max_windows, distinct_scores))
        for qid in range(draw(st.integers(1, 5)))
    ]
    return Answered(tuple(each[0] for each in pairs), tuple(each[1] for each in pairs))


def spans_between(times: Sequence[float]) -> st.SearchStrategy[tuple[float, float]]:
    """Windows with edges at these times, mostly sound ones."""
    any_two = st.tuples(st.sampled_from(times), st.sampled_from(times))
    return st.one_of(any_two.map(lambda two: (min(two), max(two))), any_two)


@st.composite
def query(
    draw: st.DrawFn, qid: int, min_windows: int, max_windows: int, distinct_scores: bool
) -> tuple[Annotation, Prediction]:
    span = spans_between(draw(few_times))
    truth = draw(st.lists(span, min_size=1, max_size=5))
    guesses = draw(st.lists(span, min_size=min_windows, max_size=max_windows))
    same_size = {"min_size": len(guesses), "max_size": len(guesses)}
    unique = {"unique": True} if distinct_scores else {}
    values = st.integers(-40, 40) if distinct_scores else scores
    given_scores = draw(st.lists(values, **same_size, **unique))
    windows = [(*span, float(s)) for span, s in zip(guesses, given_scores, strict=True)]
    clips = draw(st.integers(1, 8))
    clip_ids = draw(st.lists(st.integers(0, clips - 1), min_size=1, unique=True))
    levels = draw(st.sampled_from([st.integers(0, 4), st.just(0), st.just(4)]))
    ratings = [draw(st.tuples(levels, levels, levels)) for _ in clip_ids]
    saliency = draw(st.lists(scores, min_size=1, max_size=clips + 3))
    return (
        Annotation(
            qid,
            "q",
            f"v{qid}",
            CLIP_LEN_S * clips + draw(st.sampled_from([0.0, 1.5])),
            tuple(truth),
            tuple(clip_ids),
            tuple(tuple(map(float, each)) for each in ratings),
        ),
        Prediction(qid, "q", f"v{qid}", tuple(windows), tuple(saliency)),
    )


def agree(found: Numbers, expected: Numbers) -> None:
    """On every key, up to the order in which numbers were added up."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value is None:
            assert found[key] is None, key
        else:
            assert found[key] == pytest.approx(value, abs=1e-12), key
