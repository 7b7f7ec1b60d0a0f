"""Confidence intervals: the bootstrap as a literal loop does it, and how often it is right."""

from __future__ import annotations

import numpy as np
import pytest
from one_number import measured

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics import METRICS, Measured
from training.metrics.base import Average, Columns
from training.metrics.uncertainty import (
    Resampling,
    Unit,
    intervals,
    intervals_json,
    unit_index,
    weight_blocks,
)
from training.predictions import Prediction


def interval(each: Measured, how: Resampling) -> tuple[float, float]:
    found = intervals(each, how)[("score",)]
    assert found is not None
    return found


@pytest.mark.parametrize("unit", ["video", "query"])
def test_the_interval_is_that_of_a_loop_that_draws_and_averages(unit: Unit) -> None:
    rng = np.random.default_rng(3)
    videos = [0, 0, 0, 1, 2, 2, 3, 4, 4, 5]
    shares = rng.random(10).tolist()
    counted = [True, False, True, True, True, True, False, True, True, True]
    how = Resampling(samples=500, level=0.9, unit=unit, seed=11)
    groups = sorted(set(videos)) if unit == "video" else list(range(10))
    draw = np.random.default_rng(11)
    means = []
    for chosen in draw.integers(0, len(groups), (500, len(groups))):
        drawn = [
            shares[query]
            for group in chosen
            for query in range(10)
            if (videos[query] if unit == "video" else query) == group and counted[query]
        ]
        means.append(np.mean(drawn))
    expected = np.quantile(means, [0.05, 0.95])
    assert interval(measured(shares, videos, counted), how) == pytest.approx(tuple(expected))


def test_drawing_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.asarray([0, 0, 1, 2, 2])
    how = Resampling(samples=100)
    at_once = np.concatenate(list(weight_blocks(index, how)))
    monkeypatch.setattr("training.metrics.uncertainty.CELLS", 35)
    blocks = list(weight_blocks(index, how))
    assert len(blocks) == 15
    assert (np.concatenate(blocks) == at_once).all()
    assert (at_once[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    # 40 videos of 4 queries that share their difficulty; the true mean is 0.5
    rng = np.random.default_rng(0)
    videos = np.repeat(np.arange(40), 4)
    held = {"video": 0, "query": 0}
    for trial in range(400):
        easy = rng.normal(0.5, 0.2, 40)[videos]
        each = measured((easy + rng.normal(0, 0.1, 160)).tolist(), videos.tolist())
        for unit in ("video", "query"):
            low, high = interval(each, Resampling(samples=300, unit=unit, seed=trial))
            held[unit] += low <= 0.5 <= high
    # 95 % promised; the standard error of 400 trials is 1.1 %
    assert 0.91 <= held["video"] / 400 <= 0.98
    # queries of one video are not independent: drawn one by one they promise too much
    assert held["query"] / 400 < 0.8


def test_the_interval_is_as_wide_as_theory_says_for_a_large_sample() -> None:
    shares = np.random.default_rng(1).random(2000)
    low, high = interval(measured(shares.tolist()), Resampling(samples=4000))
    assert high - low == pytest.approx(2 * 1.96 * shares.std() / 2000**0.5, rel=0.05)
    assert (low + high) / 2 == pytest.approx(shares.mean(), abs=1e-3)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    each = measured(np.random.default_rng(2).random(50).tolist())
    first = interval(each, Resampling(samples=200, seed=5))
    assert first == interval(each, Resampling(samples=200, seed=5))
    assert first != interval(each, Resampling(samples=200, seed=6))


def test_a_number_that_no_query_counts_for_has_no_interval() -> None:
    each = measured([0.5, 0.5], counted=[False, False])
    assert intervals(each, Resampling(samples=100)) == {("score",): None}


@pytest.mark.parametrize(("count", "told"), [(1, False), (2, False), (5, True)])
def test_a_few_videos_say_nothing_about_how_others_vary(count: int, told: bool) -> None:
    # a sample of 20 leaves out all of `count` videos with probability (1 - count / 20) ** 20:
    # 0.36 for one, 0.12 for two, 0.003 for five; one in twenty is allowed
    shares = np.linspace(0, 1, 20).tolist()
    each = measured(shares, counted=[place < count for place in range(20)])
    assert (intervals(each, Resampling(samples=1000))[("score",)] is not None) == told


def test_an_average_of_numbers_has_the_interval_of_the_average() -> None:
    rows = [Annotation(qid, "q", f"v{qid}", 10.0) for qid in range(20)]
    values = np.random.default_rng(4).random((20, 2))
    values = np.column_stack([values, values.mean(axis=1)])
    columns = Columns((("a",), ("b",), ("both",)), values, np.ones(20, bool))
    average = Average(("mean",), (("a",), ("b",)))
    found = intervals(Measured(rows, (columns,), (average,)), Resampling(samples=100))
    assert found[("mean",)] == pytest.approx(found[("both",)])


def test_every_number_of_the_json_has_an_interval_in_the_same_place() -> None:
    rng = np.random.default_rng(6)
    rows, answers = [], []
    for qid in range(30):
        start = float(rng.uniform(0, 50))
        rows.append(Annotation(qid, "q", f"v{qid // 3}", 150.0, ((start, start + 20.0),)))
        answers.append(Prediction(qid, "q", f"v{qid // 3}", ((start + 5, start + 20, 1.0),)))
    each = METRICS.get("mr_hd")(rows, answers, clip_len_s=2.0)
    found, scores = intervals_json(each, Resampling(samples=100)), each.scores()
    assert {key: found[key] for key in ("level", "samples", "unit", "units", "seed")} == {
        "level": 0.95,
        "samples": 100,
        "unit": "video",
        "units": 10,
        "seed": 0,
    }
    for name, value in scores["brief"].items():
        pair = found["brief"][name]
        assert pair is None if value is None else pair[0] <= value <= pair[1]
    assert found["full"].keys() == scores["full"].keys()
    assert found["full"]["MR-mAP"].keys() == scores["full"]["MR-mAP"].keys()
    assert found["short"]["MR-mIoU"] is None


def test_ids_that_look_alike_are_different_queries() -> None:
    rows = [Annotation(1, "q", "v"), Annotation("1", "q", "v")]
    assert unit_index(rows, "query").tolist() == [0, 1]
    assert unit_index(rows, "video").tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"level": 1.0}, r"above 0 and below 1, got 1\.0"),
        ({"samples": 30}, r"30 samples are too few for a level of 0\.95; at least 40"),
        ({"seed": -1}, "a seed is 0 or above, got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Resampling(**options)  # type: ignore[arg-type]
