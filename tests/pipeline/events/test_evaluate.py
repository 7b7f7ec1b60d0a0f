from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.errors import UsageError
from data.grid import Grid
from data.store import Store
from data.store.types import ItemKey, Recipe, Row, Schema, StreamSpec
from pipeline.events.evaluate import (
    BASELINES,
    BoundaryScore,
    Truth,
    boundary_score,
    matches,
    read_truth,
    score_store,
    typical_count,
)


def test_each_true_boundary_takes_the_nearest_prediction_that_is_left() -> None:
    # 5.0 takes 5.4, so 5.5 finds nothing near, although 4.55 and 5.4 could serve both
    assert matches([5.0, 5.5], [4.55, 5.4], 0.5) == 1
    assert matches([1.0, 9.0], [1.5, 1.4, 8.5], 0.5) == 2
    assert matches([1.0], [1.5001], 0.5) == 0
    assert matches([], [1.0], 0.5) == 0


def test_counts_are_summed_over_videos_before_the_ratio() -> None:
    truth = {"a": Truth(10, ((2.0, 4.0),)), "b": Truth(10, ((5.0, 6.0, 7.0, 8.0),))}
    score = boundary_score({"a": [2.0, 4.0], "b": [5.0, 1.0]}, truth, tolerance=0.5)
    assert (score.matched, score.true, score.predicted) == (3, 6, 4)
    assert (score.precision, score.recall) == (0.75, 0.5)
    assert score.f1 == pytest.approx(0.6)
    assert score.ratio == pytest.approx(4 / 6)


def test_a_video_without_predictions_counts_as_missed() -> None:
    truth = {"a": Truth(10, ((2.0,),)), "b": Truth(10, ((5.0, 6.0, 7.0),))}
    assert boundary_score({"a": [2.0]}, truth, tolerance=0.5) == BoundaryScore(1, 4, 1)


def test_the_rater_that_fits_best_counts_and_of_equals_the_first() -> None:
    truth = {"a": Truth(10, ((1.0, 2.0, 3.0), (5.0,)))}
    assert boundary_score({"a": [5.0]}, truth, tolerance=0.5) == BoundaryScore(1, 1, 1)
    assert boundary_score({"a": [9.0]}, truth, tolerance=0.5) == BoundaryScore(0, 3, 1)


def test_a_relative_tolerance_grows_with_the_video() -> None:
    truth = {"a": Truth(100, ((50.0,),))}
    assert boundary_score({"a": [45.0]}, truth, tolerance=0.05, relative=True).f1 == 1.0
    assert boundary_score({"a": [44.9]}, truth, tolerance=0.05, relative=True).f1 == 0.0


def test_baselines_predict_the_typical_count_and_random_ones_follow_the_seed() -> None:
    truth = {v: Truth(12, ((3.0, 6.0, 9.0),)) for v in "ab"}
    assert typical_count(truth) == 3
    assert BASELINES["uniform grid"](truth, 0)["a"] == [3.0, 6.0, 9.0]
    assert BASELINES["no boundary"](truth, 0) == {}
    one, same, other = (BASELINES["random"](truth, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert [len(times) for times in one.values()] == [3, 3]


@pytest.mark.parametrize("line", ["{", '{"vid": "a"}', '{"vid": "a", "duration": "x"}', "[]"])
def test_a_bad_line_of_the_truth_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "boundaries.jsonl"
    file.write_text(json.dumps({"vid": "a", "duration": 3, "boundaries": []}) + "\n" + line)
    with pytest.raises(UsageError, match="line 2"):
        read_truth(file)


def test_a_store_is_scored_beside_the_baselines(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", dataset="test", clip_len_s=1.0)
    schema = Schema({"boundaries_s": StreamSpec((), "float64", "item")})
    recipe = Recipe("events", 1, {"method": "rtp"}, {}, schema)
    with store.writer(recipe) as writer:
        for name, found in (("a", [4.0, 8.4]), ("b", [5.9])):
            key = ItemKey(name, "0" * 63 + name)
            writer.add(Row(key, Grid(12.0, 1.0), {"boundaries_s": np.array(found)}))
    store.set_current({"events": recipe.id})
    file = tmp_path / "boundaries.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"vid": vid, "duration": 12.0, "boundaries": times})
            for vid, times in (("a", [4.0, 8.0]), ("b", [5.0, 11.0]))
        )
    )
    scores = score_store(store, file)
    assert scores["events (rtp)"] == {
        "f1_half": pytest.approx(2 * 2 / 7),
        "f1_one": pytest.approx(2 * 3 / 7),
        "ratio": 0.75,
    }
    assert list(scores)[1:] == ["uniform grid", "uniform grid of 9", "random", "no boundary"]
    assert scores["uniform grid"]["f1_half"] == 0.5
    assert scores["no boundary"] == {"f1_half": 0.0, "f1_one": 0.0, "ratio": 0.0}
