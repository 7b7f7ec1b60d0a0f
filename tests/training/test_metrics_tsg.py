"""The two evaluators of the OOD splits: published digits, and every quirk.

That they equal a word-for-word version is tested in `test_metric_properties_of_other_datasets`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.annotations import load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics import METRICS, Mode
from training.predictions import Prediction, read_predictions

Window = tuple[float, float]

BOTH = ["tsg", "tsg_discounted"]


def query(*windows: Window, duration_s: float | None = 10.0) -> Annotation:
    return Annotation(1, "q", "v", duration_s, windows)


def answer(*windows: tuple[float, float, float]) -> Prediction:
    return Prediction(1, "q", "v", windows)


def score(metric: str, row: Annotation, given: Prediction, mode: Mode = "official") -> Any:
    return METRICS.get(metric)([row], [given], clip_len_s=1.0, mode=mode).scores()


def test_the_published_result_on_charades_cd_is_equal_on_every_key(shared: Path) -> None:
    folder = shared / "predictions/shuffling_charades_cd_ood"
    truth = shared / "annotations/charades_cd/charades_test_ood.json"
    rows = load_annotations("charades_cd", truth)
    answers = read_predictions(folder / "predictions.json", rows)
    found = METRICS.get("tsg")(rows, answers, clip_len_s=1.0).scores()
    expected = json.loads((folder / "expected.json").read_text())
    assert {key: found[key] for key in expected} == expected
    assert found == {"brief": expected, **expected}


def test_discounted_recall_is_recall_times_the_nearness_of_both_edges() -> None:
    # IoU 3/5; start and end are 1 s of 10 away: 0.9 · 0.9
    found = score("tsg_discounted", query((2, 6)), answer((3, 7, 1)))
    assert found["R1@0.5"] == 100.0
    assert found["dR1@0.5"] == found["dR5@0.5"] == 81.0
    assert found["R1@0.7"] == found["dR1@0.7"] == 0.0
    assert found["mIoU"] == 60.0


def test_of_five_windows_the_nearest_counts() -> None:
    listed = answer((0, 1, 0.9), (3, 7, 0.8), (2, 6, 0.7))
    found = score("tsg_discounted", query((2, 6)), listed)
    assert (found["R1@0.5"], found["R5@0.5"], found["dR5@0.9"]) == (0.0, 100.0, 100.0)
    sixth = answer(*[(0.0, 1.0, 0.9)] * 5, (2, 6, 0.7))
    assert score("tsg_discounted", query((2, 6)), sixth)["R5@0.1"] == 0.0


def test_official_tsg_adds_a_ten_thousandth_second_to_the_union() -> None:
    perfect = query((0, 1)), answer((0, 1, 1))
    assert score("tsg", *perfect)["mIoU"] == 99.99
    assert score("tsg", *perfect, mode="strict")["mIoU"] == 100.0


@pytest.mark.parametrize("metric", BOTH)
def test_an_iou_equal_to_the_threshold_is_a_hit_in_strict_only(metric: str) -> None:
    half = query((0, 2)), answer((0, 1, 1))
    assert score(metric, *half)["R1@0.5"] == 0.0
    assert score(metric, *half, mode="strict")["R1@0.5"] == 100.0


@pytest.mark.parametrize("metric", BOTH)
def test_official_looks_at_the_window_listed_first_and_strict_at_the_best(metric: str) -> None:
    listed = query((0, 2)), answer((8, 9, 0.1), (0, 2, 0.9))
    assert score(metric, *listed)["R1@0.5"] == 0.0
    assert score(metric, *listed, mode="strict")["R1@0.5"] == 100.0


@pytest.mark.parametrize("metric", BOTH)
def test_empty_and_reversed_windows_are_misses(metric: str) -> None:
    for mode in ("official", "strict"):
        for window in ((5, 5, 1), (6, 4, 1), (10, 0, 1)):
            found = score(metric, query((0, 10)), answer(window), mode=mode)  # type: ignore[arg-type]
            assert found["mIoU"] == found["R1@0.1"] == 0.0
        empty = score(metric, query((5, 5)), answer((5, 5, 1)), mode=mode)  # type: ignore[arg-type]
        assert empty["mIoU"] == 0.0


@pytest.mark.parametrize("metric", BOTH)
def test_several_true_moments_are_refused_officially_and_the_best_counts_in_strict(
    metric: str,
) -> None:
    several = query((0, 2), (5, 8)), answer((5, 8, 1))
    with pytest.raises(UsageError, match=r"1 queries have several true moments .*metric `mr_hd`"):
        score(metric, *several)
    assert score(metric, *several, mode="strict")["R1@0.9"] == 100.0


@pytest.mark.parametrize("metric", BOTH)
def test_no_predicted_window_is_refused_officially_and_a_miss_in_strict(metric: str) -> None:
    with pytest.raises(UsageError, match="1 queries have no predicted window"):
        score(metric, query((0, 2)), answer())
    assert score(metric, query((0, 2)), answer(), mode="strict")["mIoU"] == 0.0


@pytest.mark.parametrize("metric", BOTH)
@pytest.mark.parametrize(
    ("row", "given", "message"),
    [
        (query(), answer((0, 1, 1)), "1 of 1 queries have no ground-truth moment"),
        (query((0, 2)), answer((0, float("nan"), 1)), "predicted windows of 1 queries are not f"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    metric: str, row: Annotation, given: Prediction, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        score(metric, row, given)


def test_the_discount_needs_the_length_of_the_video() -> None:
    with pytest.raises(UsageError, match=r"1 queries have no duration .*`tsg` needs none"):
        score("tsg_discounted", query((0, 2), duration_s=None), answer((0, 2, 1)))


def test_edges_far_outside_discount_to_nothing_in_strict() -> None:
    far = query((0, 10)), answer((-30, 40, 1))
    # 1 - 3 = -2 for both edges: a factor of 4 where recall counts
    assert score("tsg_discounted", *far)["dR1@0.1"] == 400.0
    assert score("tsg_discounted", *far, mode="strict")["dR1@0.1"] == 0.0
