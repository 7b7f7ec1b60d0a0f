"""What must be true of moment retrieval and highlight detection whatever is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from literal_metrics import Numbers, literal_highlights, literal_moments
from metric_cases import (
    CLIP_LEN_S,
    Answered,
    agree,
    answered,
    cases,
    in_both_modes,
    many_cases,
    seconds,
    sound_spans,
)

from data.annotations.types import Annotation
from training.metrics import Mode
from training.predictions import Prediction

FAR_AWAY = (1e6, 1e6 + 1.3)
"""Overlaps nothing; no true window has its length, so no union is 0."""


def moments_only(numbers: Numbers) -> Numbers:
    return {key: value for key, value in numbers.items() if not key[0].startswith("HL")}


def full(numbers: Numbers) -> Numbers:
    """Without the length ranges."""
    return {key: value for key, value in numbers.items() if key[0] == "full"}


def precision_only(numbers: Numbers) -> Numbers:
    return {key: value for key, value in numbers.items() if key[1] == "MR-mAP"}


def recall_of_five(numbers: Numbers) -> Numbers:
    return {key: value for key, value in numbers.items() if key[1] == "MR-R5"}


@many_cases
@given(case=answered())
def test_official_equals_the_definitions_word_for_word(case: Answered) -> None:
    expected = literal_moments(case.annotations, case.predictions, "official")
    expected |= literal_highlights(case.annotations, case.predictions, CLIP_LEN_S, "official")
    agree(case.means("official"), expected)


@many_cases
@given(case=answered(min_windows=0))
def test_strict_equals_the_definitions_word_for_word(case: Answered) -> None:
    expected = literal_highlights(case.annotations, case.predictions, CLIP_LEN_S, "strict")
    if any(each.windows for each in case.predictions):  # else a detector of highlights
        expected |= literal_moments(case.annotations, case.predictions, "strict")
    agree(case.means("strict"), expected)


@in_both_modes
@cases
@given(case=answered())
def test_every_number_is_a_percentage(mode: Mode, case: Answered) -> None:
    for key, share in case.means(mode).items():
        assert share is None or 0 <= share <= 1, key
    brief = case.measured(mode).scores()["brief"]
    assert all(value is None or 0 <= value <= 100 for value in brief.values())


@in_both_modes
@cases
@given(case=answered(), order=st.randoms(use_true_random=False))
def test_the_order_of_queries_changes_nothing(mode: Mode, case: Answered, order: Any) -> None:
    places = list(range(len(case.annotations)))
    order.shuffle(places)
    shuffled = Answered(
        tuple(case.annotations[i] for i in places), tuple(case.predictions[i] for i in places)
    )
    agree(shuffled.means(mode), case.means(mode))


@in_both_modes
@cases
@given(case=answered())
def test_a_score_is_the_mean_of_its_queries(mode: Mode, case: Answered) -> None:
    measured = case.measured(mode)
    by_query = measured.table()
    for key, share in measured.means().items():
        own = by_query[key][~np.isnan(by_query[key])]
        assert share == (pytest.approx(own.mean(), abs=1e-12) if len(own) else None), key


@in_both_modes
@cases
@given(case=answered(min_windows=1))
def test_among_equal_scores_the_order_of_the_file_decides(mode: Mode, case: Answered) -> None:
    # distinct scores that rank the windows as the file lists them: no tie is left to break
    def untied(windows: Sequence[Any]) -> list[Any]:
        best_first = sorted(range(len(windows)), key=lambda i: -windows[i][2])
        return [(*w[:2], float(-best_first.index(i))) for i, w in enumerate(windows)]

    agree(case.with_windows(untied).means(mode), case.means(mode))


@cases
@given(case=answered(max_windows=10, distinct_scores=True), order=st.randoms(use_true_random=False))
def test_without_equal_scores_the_order_of_windows_is_seen_by_official_recall_only(
    case: Answered, order: Any
) -> None:
    shuffled = case.with_windows(lambda windows: order.sample(windows, len(windows)))
    agree(shuffled.means("strict"), case.means("strict"))
    agree(
        precision_only(shuffled.means("official")),
        precision_only(case.means("official")),
    )


@in_both_modes
@cases
@given(case=answered(max_windows=5), order=st.randoms(use_true_random=False))
def test_recall_of_five_looks_at_five_windows_in_any_order(
    mode: Mode, case: Answered, order: Any
) -> None:
    shuffled = case.with_windows(lambda windows: order.sample(windows, len(windows)))
    agree(recall_of_five(shuffled.means(mode)), recall_of_five(case.means(mode)))


@in_both_modes
@cases
@given(case=answered(max_windows=9))
def test_a_wrong_window_below_all_others_changes_nothing(mode: Mode, case: Answered) -> None:
    more = case.with_windows(lambda windows: [*windows, (*FAR_AWAY, -100.0)])
    agree(more.means(mode), case.means(mode))


@in_both_modes
@cases
@given(case=answered())
def test_a_wrong_window_above_all_others_raises_nothing(mode: Mode, case: Answered) -> None:
    more = case.with_windows(lambda windows: [(*FAR_AWAY, 100.0), *windows])
    before, after = moments_only(case.means(mode)), moments_only(more.means(mode))
    for key, share in before.items():
        assert share is None or after[key] <= share + 1e-12, key  # type: ignore[operator]


@in_both_modes
@cases
@given(case=answered(), factor=st.sampled_from([0.25, 2.0, 8.0]), shift=seconds)
def test_overlap_has_no_unit_and_no_origin(
    mode: Mode, case: Answered, factor: float, shift: float
) -> None:
    def moved(span: Sequence[float]) -> tuple[float, float]:
        return span[0] * factor + shift, span[1] * factor + shift

    other = Answered(
        tuple(replace(a, windows=tuple(map(moved, a.windows or ()))) for a in case.annotations),
        case.with_windows(lambda windows: [(*moved(w), w[2]) for w in windows]).predictions,
    )
    assert full(other.means(mode)) == full(case.means(mode))


@in_both_modes
@cases
@given(truth=st.lists(st.lists(sound_spans, min_size=1, max_size=10, unique=True), min_size=1))
def test_the_true_windows_score_100(mode: Mode, truth: list[list[tuple[float, float]]]) -> None:
    case = Answered(
        tuple(Annotation(i, "q", "v", 90.0, tuple(each)) for i, each in enumerate(truth)),
        tuple(
            Prediction(i, "q", "v", tuple((*span, -float(k)) for k, span in enumerate(each)))
            for i, each in enumerate(truth)
        ),
    )
    assert full(case.means(mode)) == dict.fromkeys(full(case.means(mode)), 1.0)


@in_both_modes
@cases
@given(ratings=st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(lambda all_: 4 in all_))
def test_the_ratings_of_the_only_annotator_score_100(mode: Mode, ratings: list[int]) -> None:
    row = Annotation(
        1,
        "q",
        "v",
        CLIP_LEN_S * len(ratings),
        ((0.0, 2.0),),
        tuple(range(len(ratings))),
        tuple((float(each),) for each in ratings),
    )
    answer = Prediction(1, "q", "v", ((0.0, 2.0, 1.0),), tuple(map(float, ratings)))
    means = Answered((row,), (answer,)).means(mode)
    found = {key: value for key, value in means.items() if key[0].startswith("HL")}
    assert len(found) == 6
    assert set(found.values()) == {1.0}


@in_both_modes
@cases
@given(case=answered())
def test_recall_falls_with_the_threshold_and_rises_with_more_windows(
    mode: Mode, case: Answered
) -> None:
    means = case.means(mode)
    steps = [f"{0.3 + 0.05 * i:.2f}".rstrip("0") for i in range(14)]
    for name in ("full", "long", "middle", "short"):
        if means[name, "MR-mIoU"] is None:
            continue
        one, five = ([means[name, kind, at] or 0.0 for at in steps] for kind in ("MR-R1", "MR-R5"))
        assert one == sorted(one, reverse=True)
        assert five == sorted(five, reverse=True)
        assert all(some <= more for some, more in zip(one, five, strict=True))


@in_both_modes
@cases
@given(case=answered(), order=st.randoms(use_true_random=False))
def test_highlight_precision_has_no_opinion_on_the_order_of_clips(
    mode: Mode, case: Answered, order: Any
) -> None:
    pairs = [
        shuffled_clips(a, p, order) for a, p in zip(case.annotations, case.predictions, strict=True)
    ]
    ordered, shuffled = (
        {
            key: value
            for key, value in Answered(
                tuple(pair[i][0] for pair in pairs), tuple(pair[i][1] for pair in pairs)
            )
            .means(mode)
            .items()
            if key[-1] == "HL-mAP"
        }
        for i in (0, 1)
    )
    agree(shuffled, ordered)


def shuffled_clips(
    annotation: Annotation, prediction: Prediction, order: Any
) -> tuple[tuple[Annotation, Prediction], tuple[Annotation, Prediction]]:
    """A query whose clips all have a score, and the same with its clips in another order."""
    clips = int((annotation.duration_s or 0) / CLIP_LEN_S)
    given_scores = prediction.saliency or ()
    filled = [*given_scores, *[0.0] * clips][:clips]
    place = order.sample(range(clips), clips)
    moved = [filled[place.index(i)] for i in range(clips)]
    ids = tuple(place[i] for i in annotation.clip_ids or ())
    return (
        (annotation, replace(prediction, saliency=tuple(filled))),
        (replace(annotation, clip_ids=ids), replace(prediction, saliency=tuple(moved))),
    )


@in_both_modes
@cases
@given(case=answered())
def test_only_the_order_of_scores_counts(mode: Mode, case: Answered) -> None:
    # doubling keeps the order and the place of 0.0, which official fills short lists with
    doubled = case.with_windows(lambda windows: [(*w[:2], 2 * w[2] + 1) for w in windows])
    doubled = replace(
        doubled,
        predictions=tuple(
            replace(p, saliency=tuple(2 * each for each in p.saliency or ()))
            for p in doubled.predictions
        ),
    )
    assert doubled.means(mode) == case.means(mode)
