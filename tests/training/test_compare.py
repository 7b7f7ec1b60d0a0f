"""The paired comparison: against scipy, against arithmetic, and on published predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from one_number import measured
from scipy import stats

from data.annotations import load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from training.compare import PairedTest, compare, holm, per_query
from training.evaluate import measure
from training.metrics import METRICS, Measured
from training.metrics.uncertainty import Resampling
from training.predictions import Prediction, read_predictions


def few(permutations: int = 10_000, seed: int = 0) -> PairedTest:
    return PairedTest(Resampling(samples=200, seed=seed), permutations)


def mean_difference(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(y) - np.mean(x))


@pytest.mark.parametrize("seed", range(4))
def test_p_equals_scipys_exact_paired_permutation_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random(9), rng.random(9) + 0.2 * seed
    found = compare(measured(a.tolist()), measured(b.tolist()), few())
    expected = stats.permutation_test(
        (a, b), mean_difference, permutation_type="samples", n_resamples=np.inf
    )
    assert found.exact
    assert found.contrasts["score"].p == pytest.approx(expected.pvalue)


def test_p_equals_scipys_where_flips_are_drawn() -> None:
    rng = np.random.default_rng(7)
    a = rng.random(60)
    b = a + rng.normal(0.03, 0.1, 60)
    found = compare(measured(a.tolist()), measured(b.tolist()), few())
    expected = stats.permutation_test(
        (a, b), mean_difference, permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert not found.exact
    # both are drawn: the standard error of p = 0.05 is 0.002 for 10,000 flips
    assert found.contrasts["score"].p == pytest.approx(expected.pvalue, abs=0.012)


def test_all_queries_of_a_video_change_sides_together() -> None:
    # three videos, each four times alike: 2 of 8 flips are as far from 0, not 2 of 4,096
    videos = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    a, b = measured([0.0] * 12, videos), measured([1.0] * 12, videos)
    found = compare(a, b, few())
    assert found.units == 3
    assert found.contrasts["score"].p == 0.25
    alone = PairedTest(Resampling(samples=200, unit="query"))
    assert compare(a, b, alone).contrasts["score"].p == 2 / 4096


def test_equal_files_differ_in_nothing() -> None:
    each = measured(np.random.default_rng(1).random(30).tolist())
    found = compare(each, each, few()).contrasts["score"]
    assert (found.difference, found.ci, found.p) == (0, (0, 0), 1)
    assert (found.better, found.worse, found.equal) == (0, 0, 30)


def test_true_hypotheses_are_rejected_as_seldom_as_p_says() -> None:
    rng = np.random.default_rng(5)
    p = []
    for trial in range(300):
        a, b = rng.random((2, 25))
        each = compare(measured(a.tolist()), measured(b.tolist()), few(400, trial))
        p.append(each.contrasts["score"].p)
    # a share of 0.1 of uniform p; its standard error is 0.017
    assert 0.05 <= np.mean([value <= 0.1 for value in p if value is not None]) <= 0.15


def test_a_difference_is_paired_and_its_interval_is_narrower_than_of_each_file() -> None:
    rng = np.random.default_rng(8)
    hard = rng.random(300)
    a, b = measured(hard.tolist()), measured((hard + rng.normal(0.05, 0.02, 300)).tolist())
    ci = compare(a, b, few()).contrasts["score"].ci
    assert ci is not None
    assert 4.5 < ci[0] < 5 < ci[1] < 5.5


def test_the_difference_is_that_of_the_shares_before_they_are_rounded() -> None:
    a, b = measured([1 / 3, 1 / 3, 1 / 3]), measured([2 / 3, 2 / 3, 2 / 3])
    found = compare(a, b, few()).contrasts["score"]
    assert (found.a, found.b, found.difference) == (33.33, 66.67, 33.33)


def test_queries_that_do_not_count_are_neither_better_nor_worse() -> None:
    counted = [True, True, True, True, False]
    found = compare(
        measured([0.5, 0.5, 0.5, 0.5, 0], counted=counted),
        measured([0.6, 0.7, 0.4, 0.5, 1], counted=counted),
        few(),
    ).contrasts["score"]
    assert (found.better, found.worse, found.equal) == (2, 1, 1)


def test_files_that_count_other_queries_are_not_compared() -> None:
    with pytest.raises(UsageError, match="counts 1 queries of one file and others of the second"):
        compare(
            measured([1, 1], counted=[True, True]), measured([1, 1], counted=[True, False]), few()
        )


def test_a_number_that_no_query_counts_for_has_no_p_and_costs_the_others_nothing() -> None:
    rows = [Annotation(qid, "q", f"v{qid}", 150.0, ((0.0, 20.0),)) for qid in range(4)]
    answers = [Prediction(qid, "q", f"v{qid}", ((0.0, 20.0, 1.0),)) for qid in range(4)]
    each = METRICS.get("mr_hd")(rows, answers, clip_len_s=2.0)
    found = compare(each, each, few())
    assert found.contrasts["MR-long-mAP"].p is None
    assert found.contrasts["MR-long-mAP"].ci is None
    assert found.contrasts["MR-full-mAP"].p_holm == 1


def test_numbers_of_one_file_only_are_named() -> None:
    row = Annotation(1, "q", "v", 20.0, ((0.0, 10.0),), (0,), ((4.0,),))
    answers = [
        Prediction(1, "q", "v", ((0.0, 10.0, 1.0),), saliency) for saliency in ((1.0,), None)
    ]
    with_highlights, without = (
        METRICS.get("mr_hd")([row], [each], clip_len_s=2.0) for each in answers
    )
    for pair in ((with_highlights, without), (without, with_highlights)):
        found = compare(*pair, few())
        assert "HL-min-Fair-mAP" in found.left_out
        assert found.contrasts["MR-full-mAP"].difference == 0


def test_holm_multiplies_the_smallest_p_most_and_never_changes_the_order() -> None:
    # 4 x 0.01; 3 x 0.013 is smaller than that; 2 x 0.04; 1 x 0.5
    found = holm({"a": 0.5, "b": 0.01, "c": 0.013, "d": 0.04})
    assert found == pytest.approx({"b": 0.04, "c": 0.04, "d": 0.08, "a": 0.5})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_no_permutation_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 permutation is needed, got 0"):
        PairedTest(permutations=0)


def published(shared: Path, name: str) -> Measured:
    rows = load_annotations(
        "qvhighlights", shared / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"
    )
    answers = read_predictions(shared / "predictions" / name / "predictions.jsonl")
    return measure(rows, answers, metrics="mr_hd", clip_len_s=2.0)


def test_qd_detr_is_better_than_moment_detr_on_qvhighlights(shared: Path) -> None:
    a, b = published(shared, "moment_detr_val"), published(shared, "qd_detr_val")
    found = compare(a, b, few(2000))
    assert found.units == 1519
    expected = json.loads((shared / "predictions" / "qd_detr_val" / "expected.json").read_text())
    for name, value in expected["brief"].items():
        assert found.contrasts[name].b == value
    each = found.contrasts["MR-full-mAP"]
    assert (each.a, each.b, each.difference) == (32.2, 41.24, 9.03)
    assert each.p == 1 / 2001
    assert each.ci is not None
    assert 7 < each.ci[0] < 9.03 < each.ci[1] < 11
    # few short moments are found by either
    assert found.contrasts["MR-short-mIoU"].p_holm > 0.05  # type: ignore[operator]
    row = next(per_query(a, b))
    assert row["MR-full-mIoU"]["difference"] == pytest.approx(
        row["MR-full-mIoU"]["b"] - row["MR-full-mIoU"]["a"]
    )
