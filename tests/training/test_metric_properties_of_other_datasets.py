"""What must be true of the metrics of TVSum, YouTube Highlights and the OOD splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from literal_metrics import (
    Numbers,
    literal_discounted,
    literal_tsg,
    literal_tvsum,
    literal_youtube,
)
from metric_cases import (
    Answered,
    agree,
    cases,
    few,
    few_times,
    in_both_modes,
    many_cases,
    scores,
    seconds,
    spans_between,
)

from data.annotations.types import Annotation
from training.metrics import Mode
from training.predictions import Prediction

LITERAL: dict[str, Callable[..., Numbers]] = {
    "tvsum_top5": literal_tvsum,
    "youtube_map": literal_youtube,
    "tsg": literal_tsg,
    "tsg_discounted": literal_discounted,
}

of_every_domain_metric = pytest.mark.parametrize("metric", ["tvsum_top5", "youtube_map"])
of_every_tsg_metric = pytest.mark.parametrize("metric", ["tsg", "tsg_discounted"])


@st.composite
def rated(draw: st.DrawFn, longest: int = 2) -> Answered:
    """One to five videos of two domains, each clip rated by three people.

    `longest`: how many more scores than clips there may be; also fewer, and equal ones.
    """
    annotations, predictions = [], []
    for qid in range(draw(st.integers(1, 5))):
        clips = draw(st.integers(1, 9))
        levels = draw(st.sampled_from([st.integers(1, 5), st.integers(0, 1), st.just(0)]))
        ratings = st.tuples(levels, levels, levels).map(lambda row: tuple(map(float, row)))
        annotations.append(
            Annotation(
                qid,
                "q",
                f"v{qid}",
                2.0 * clips,
                clip_ids=tuple(range(clips)),
                saliency=tuple(draw(st.lists(ratings, min_size=clips, max_size=clips))),
                extra={"domain": draw(st.sampled_from(["BK", "dog"]))},
            )
        )
        given_scores = draw(st.lists(scores, min_size=1, max_size=max(1, clips + longest)))
        predictions.append(Prediction(qid, "q", f"v{qid}", (), tuple(given_scores)))
    return Answered(tuple(annotations), tuple(predictions))


def by_one_person(case: Answered) -> Answered:
    """YouTube Highlights has one label per clip."""
    rows = [
        replace(row, saliency=tuple(ratings[:1] for ratings in row.saliency or ()))
        for row in case.annotations
    ]
    return replace(case, annotations=tuple(rows))


def scored_by(metric: str, case: Answered) -> Answered:
    return replace(by_one_person(case) if metric == "youtube_map" else case, metric=metric)


@st.composite
def grounded(
    draw: st.DrawFn,
    moments: int = 1,
    fewest: int = 1,
    times: st.SearchStrategy[list[float]] = few_times,
) -> Answered:
    """One to five queries on videos of 30 seconds; edges may lie outside."""
    annotations, predictions = [], []
    for qid in range(draw(st.integers(1, 5))):
        span = spans_between(draw(times))
        truth = draw(st.lists(span, min_size=1, max_size=moments))
        guess = st.tuples(span, scores)
        listed = draw(st.lists(guess, min_size=fewest, max_size=7))
        annotations.append(Annotation(qid, "q", f"v{qid}", 30.0, tuple(truth)))
        windows = tuple((*edges, score) for edges, score in listed)
        predictions.append(Prediction(qid, "q", f"v{qid}", windows))
    return Answered(tuple(annotations), tuple(predictions))


@of_every_domain_metric
@many_cases
@given(case=rated())
def test_official_domain_metrics_equal_their_definition(metric: str, case: Answered) -> None:
    case = scored_by(metric, case)
    agree(case.means("official"), LITERAL[metric](case.annotations, case.predictions, "official"))


@of_every_domain_metric
@many_cases
@given(case=rated(longest=0))
def test_strict_domain_metrics_equal_their_definition(metric: str, case: Answered) -> None:
    case = scored_by(metric, case)
    agree(case.means("strict"), LITERAL[metric](case.annotations, case.predictions, "strict"))


@of_every_tsg_metric
@many_cases
@given(case=grounded())
def test_official_tsg_metrics_equal_their_definition(metric: str, case: Answered) -> None:
    case = replace(case, metric=metric)
    agree(case.means("official"), LITERAL[metric](case.annotations, case.predictions, "official"))


@of_every_tsg_metric
@many_cases
@given(case=grounded(moments=3, fewest=0))
def test_strict_tsg_metrics_equal_their_definition(metric: str, case: Answered) -> None:
    case = replace(case, metric=metric)
    agree(case.means("strict"), LITERAL[metric](case.annotations, case.predictions, "strict"))


@in_both_modes
@cases
@given(videos=rated(longest=0), queries=grounded(times=st.lists(few, min_size=2, max_size=4)))
def test_every_share_is_between_0_and_1(mode: Mode, videos: Answered, queries: Answered) -> None:
    for metric in LITERAL:
        case = scored_by(metric, videos) if videos_are_rated(metric) else queries
        for key, share in replace(case, metric=metric).means(mode).items():
            assert share is None or 0 <= share <= 1, (metric, key)


def videos_are_rated(metric: str) -> bool:
    return metric in ("tvsum_top5", "youtube_map")


@in_both_modes
@cases
@given(videos=rated(longest=0), queries=grounded(), order=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(
    mode: Mode, videos: Answered, queries: Answered, order: Any
) -> None:
    for metric in LITERAL:
        case = scored_by(metric, videos) if videos_are_rated(metric) else queries
        case = replace(case, metric=metric)
        places = order.sample(range(len(case.annotations)), len(case.annotations))
        shuffled = replace(
            case,
            annotations=tuple(case.annotations[i] for i in places),
            predictions=tuple(case.predictions[i] for i in places),
        )
        agree(shuffled.means(mode), case.means(mode))


@of_every_domain_metric
@cases
@given(case=rated(longest=0), order=st.randoms(use_true_random=False))
def test_strict_domain_metrics_do_not_reward_the_order_of_equal_scores(
    metric: str, case: Answered, order: Any
) -> None:
    case = scored_by(metric, case)
    filled, shuffled = [], []
    for row, answer in zip(case.annotations, case.predictions, strict=True):
        clips = len(row.saliency or ())
        given_scores = [*(answer.saliency or ()), *[0.0] * clips][:clips]
        places = order.sample(range(clips), clips)
        ratings = tuple((row.saliency or ())[i] for i in places)
        filled.append((row, replace(answer, saliency=tuple(given_scores))))
        shuffled.append(
            (
                replace(row, saliency=ratings),
                replace(answer, saliency=tuple(given_scores[i] for i in places)),
            )
        )
    one, other = (
        replace(
            case,
            annotations=tuple(row for row, _ in pairs),
            predictions=tuple(answer for _, answer in pairs),
        )
        for pairs in (filled, shuffled)
    )
    agree(other.means("strict"), one.means("strict"))


@cases
@given(case=rated(longest=0))
def test_strict_is_never_kinder_to_equal_scores_than_official(case: Answered) -> None:
    # the same list without ties, in the best order for the model, scores at least as much
    case = by_one_person(case)
    best = []
    for row, answer in zip(case.annotations, case.predictions, strict=True):
        labels = [ratings[0] for ratings in row.saliency or ()]
        clips = len(labels)
        given_scores = [*(answer.saliency or ()), *[0.0] * clips][:clips]
        lifted = [s + 0.1 * (label > 0) for s, label in zip(given_scores, labels, strict=True)]
        best.append((replace(answer, saliency=tuple(given_scores)), tuple(lifted)))
    tied = replace(case, metric="youtube_map", predictions=tuple(answer for answer, _ in best))
    untied = replace(
        tied, predictions=tuple(replace(answer, saliency=lifted) for answer, lifted in best)
    )
    before, after = tied.means("strict"), untied.means("strict")
    for key, share in before.items():
        assert share is None or share <= (after[key] or 0.0) + 1e-12, key


@cases
@given(
    truth=st.tuples(seconds, st.integers(1, 60)).map(lambda at: (at[0], at[0] + at[1] / 2)),
)
def test_the_true_moment_scores_100_in_strict_and_nearly_in_official(
    truth: tuple[float, float],
) -> None:
    row = Annotation(1, "q", "v", 100.0, (truth,))
    answer = Prediction(1, "q", "v", ((*truth, 1.0),))
    for metric in ("tsg", "tsg_discounted"):
        case = Answered((row,), (answer,), metric)
        assert set(case.means("strict").values()) == {1.0}
    # 0.0001 s in the union; the shortest moment here has half a second
    official = Answered((row,), (answer,), "tsg").means("official")
    assert 0.9998 <= (official[("mIoU",)] or 0.0) < 1
    assert official[("R1@0.9",)] == 1
