"""The official metrics: published scores, every quirk of the reference, and its mended form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.annotations import load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics import METRICS, Mode, Scores, qvhighlights
from training.predictions import in_order, read_predictions
from training.task import Prediction

Windows = list[tuple[float, float, float]]


def annotation(
    qid: int = 1, windows: Any = ((0.0, 10.0),), duration_s: float = 150.0, **more: Any
) -> Annotation:
    return Annotation(qid, "q", "v", duration_s, tuple(windows), **more)


def prediction(
    qid: int = 1, windows: Any = ((0.0, 10.0, 1.0),), saliency: Any = None
) -> Prediction:
    return Prediction(qid, "q", "v", tuple(windows), saliency)


def one(windows: Windows, truth: list[tuple[float, float]], mode: Mode = "official") -> Scores:
    return qvhighlights([annotation(windows=truth)], [prediction(windows=windows)], mode=mode)


def mean_ap(scores: Scores) -> float:
    return float(scores["full"]["MR-mAP"]["average"])


def recall(scores: Scores) -> float:
    return float(scores["full"]["MR-R1"]["0.5"])


def highlights(
    scores: list[float], ratings: list[list[float]], mode: Mode = "official", clips: int = 0
) -> Scores:
    """Scores of one query whose first clips are rated."""
    row = annotation(
        duration_s=2.0 * (clips or len(ratings)),
        clip_ids=tuple(range(len(ratings))),
        saliency=tuple(tuple(each) for each in ratings),
    )
    return qvhighlights([row], [prediction(saliency=tuple(scores))], mode=mode)


@pytest.mark.parametrize("name", ["qd_detr_val", "moment_detr_val"])
def test_published_predictions_have_the_published_scores_on_every_key(
    shared: Path, name: str
) -> None:
    folder = shared / "predictions" / name
    rows = load_annotations(
        "qvhighlights", shared / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"
    )
    found = qvhighlights(rows, in_order(rows, read_predictions(folder / "predictions.jsonl")))
    expected = json.loads((folder / "expected.json").read_text())
    assert found == expected
    assert json.dumps(found) == json.dumps(expected)


def test_strict_padding_moves_published_highlight_scores_as_the_specs_say(shared: Path) -> None:
    # specs/evaluator_reference.md §6: 74.93/64.03/39.49 become 74.98/64.09/39.53
    folder = shared / "predictions" / "qd_detr_val"
    rows = load_annotations(
        "qvhighlights", shared / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"
    )
    answers = in_order(rows, read_predictions(folder / "predictions.jsonl"))
    found = qvhighlights(rows, answers, mode="strict")
    names = ("Fair", "Good", "VeryGood")
    assert [found[f"HL-min-{each}"]["HL-mAP"] for each in names] == [74.98, 64.09, 39.53]


@pytest.mark.parametrize(
    ("windows", "truth", "official", "strict"),
    [
        pytest.param([(100, 100, 1)], [(5, 5)], (100, 0), (0, 0), id="zero-length-on-both-sides"),
        pytest.param([(15, 5, 1)], [(5, 15)], (100, 0), (0, 0), id="inverted-prediction"),
        pytest.param([(7, 7, 1)], [(5, 15)], (0, 0), (0, 0), id="zero-length-inside-a-moment"),
        pytest.param(
            [(50, 60, 0.1), (5, 15, 0.9)], [(5, 15)], (100, 0), (100, 100), id="best-listed-second"
        ),
        pytest.param(
            [*[(50, 60, 0.5)] * 10, (5, 15, 0.9)], [(5, 15)], (0, 0), (100, 100), id="eleventh"
        ),
        pytest.param(
            [(5, 15, 0.9), (5, 15, 0.8)], [(5, 15)], (100, 100), (100, 100), id="found-twice"
        ),
    ],
)
def test_quirks_of_moment_retrieval_are_kept_in_official_and_mended_in_strict(
    windows: Windows,
    truth: list[tuple[float, float]],
    official: tuple[float, float],
    strict: tuple[float, float],
) -> None:
    for mode, expected in (("official", official), ("strict", strict)):
        scores = one(windows, truth, mode)  # type: ignore[arg-type]
        assert (mean_ap(scores), recall(scores)) == expected, mode


def test_a_query_without_windows_stops_official_and_is_a_miss_in_strict() -> None:
    rows = [annotation(1), annotation(2)]
    answers = [prediction(1), prediction(2, windows=())]
    with pytest.raises(UsageError, match=r"1 queries have no predicted window \(first: 2\)"):
        qvhighlights(rows, answers)
    scores = qvhighlights(rows, answers, mode="strict")
    assert (mean_ap(scores), recall(scores)) == (50, 50)


def test_empty_windows_are_left_out_of_the_official_mean_of_average_precision() -> None:
    from training.metrics.moments import average_precision, ranked
    from training.metrics.ragged import Ragged

    truth = Ragged.of([[(0, 10)], [(0, 10)]], (2,))
    predicted = Ragged.of([[(0, 10, 1)], []], (3,))
    thresholds = np.asarray([0.5])
    ap, counts = average_precision(ranked(predicted, "official"), truth, thresholds, "official")
    assert counts.tolist() == [True, False]
    assert ap[0] == 1


@pytest.mark.parametrize(
    ("length", "name"), [(10, "short"), (10.1, "middle"), (30, "middle"), (30.1, "long")]
)
def test_the_upper_end_of_a_length_range_belongs_to_it(length: float, name: str) -> None:
    scores = one([(0, length, 1)], [(0, length)])
    counted = [
        each for each in ("short", "middle", "long") if scores[each]["MR-R1"]["0.5"] is not None
    ]
    assert counted == [name]


def test_short_saliency_is_filled_with_zeros_in_official_and_never_ranked_in_strict() -> None:
    # three clips, of which the first two are scored, both negative: 0.0 outranks them
    ratings = [[4.0], [0.0], [0.0]]
    assert highlights([-1, -2], ratings)["HL-min-Fair"]["HL-mAP"] == 50
    assert highlights([-1, -2], ratings, "strict")["HL-min-Fair"]["HL-mAP"] == 100


def test_long_saliency_is_cut_for_precision_but_not_for_the_official_hit() -> None:
    ratings = [[4.0], [0.0]]
    official, strict = (highlights([2, 1, 9], ratings, mode) for mode in ("official", "strict"))
    assert official["HL-min-Fair"] == {"HL-mAP": 100, "HL-Hit1": 0}
    assert strict["HL-min-Fair"] == {"HL-mAP": 100, "HL-Hit1": 100}


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [
        pytest.param([[0.0]] * 4, 0, id="nothing-positive"),
        pytest.param([[4.0]] * 4, 100, id="all-positive"),
        pytest.param([[4.0], [0.0], [0.0], [0.0]], 25, id="constant-scores"),
    ],
)
def test_degenerate_rankings_score_as_in_the_reference(
    ratings: list[list[float]], expected: float
) -> None:
    assert highlights([0.5] * 4, ratings)["HL-min-Fair"]["HL-mAP"] == expected


def test_a_clip_is_positive_from_the_rating_of_its_name_on() -> None:
    scores = highlights([3, 2, 1], [[3.0], [0.0], [0.0]])
    hits = {name: scores[f"HL-min-{name}"]["HL-Hit1"] for name in ("Fair", "Good", "VeryGood")}
    assert hits == {"Fair": 100, "Good": 100, "VeryGood": 0}


def test_hit_at_one_needs_any_annotator_and_precision_asks_each() -> None:
    scores = highlights([3, 2, 1], [[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])["HL-min-Fair"]
    assert scores == {"HL-mAP": 75, "HL-Hit1": 100}


def test_extended_adds_the_keys_of_cg_detr_and_changes_no_other() -> None:
    plain = one([(0, 8, 1)], [(0, 10)])
    rows, answers = [annotation(windows=[(0, 10)])], [prediction(windows=[(0, 8, 1)])]
    extended = qvhighlights(rows, answers, extended=True)
    assert extended["brief"] == {
        **plain["brief"],
        "MR-full-R1@0.3": 100,
        "MR-full-mIoU": 80,
    }
    assert extended["full"]["MR-mIoU"] == 80
    assert extended["full"]["MR-mAP"] == plain["full"]["MR-mAP"]


def test_highlight_keys_are_absent_without_saliency_and_refused_for_a_part() -> None:
    assert not any("HL" in key for key in one([(0, 10, 1)], [(0, 10)])["brief"])
    rows = [annotation(i, clip_ids=(0,), saliency=((4.0,),)) for i in (1, 2)]
    answers = [prediction(1, saliency=(1.0,)), prediction(2)]
    with pytest.raises(UsageError, match=r"1 of 2 predictions have no saliency scores"):
        qvhighlights(rows, answers)


def test_ground_truth_that_cannot_be_scored_is_named() -> None:
    with pytest.raises(UsageError, match="1 of 1 queries have no ground-truth moment"):
        qvhighlights([annotation(windows=())], [prediction()])
    row = annotation(duration_s=4.0, clip_ids=(2,), saliency=((4.0,),))
    with pytest.raises(UsageError, match=r"clip 2 is rated, but a video of 4\.0 seconds"):
        qvhighlights([row], [prediction(saliency=(1.0, 1.0))])


@pytest.fixture(scope="module")
def plain(root: Path) -> Any:
    """The one-query-at-a-time evaluator of the benchmark."""
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        import plain_evaluator
    finally:
        sys.path.pop(0)
    return plain_evaluator.plain_qvhighlights


@pytest.mark.parametrize("seed", range(30))
def test_random_cases_equal_the_evaluator_that_loops_over_queries(plain: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, answers = [], []
    for qid in range(12):
        clips = int(rng.integers(3, 76))
        # whole seconds: equal IoUs, equal scores, empty and inverted windows all occur
        truth = np.sort(rng.integers(0, 2 * clips + 1, (rng.integers(1, 9), 2)), axis=1)
        windows = rng.integers(0, 2 * clips + 1, (rng.integers(1, 14), 2))
        rated = rng.choice(clips, size=rng.integers(1, clips), replace=False)
        rows.append(
            annotation(
                qid,
                [(float(a), float(b)) for a, b in truth],
                2.0 * clips,
                clip_ids=tuple(map(int, rated)),
                saliency=tuple(map(tuple, rng.integers(0, 5, (len(rated), 3)).astype(float))),
            )
        )
        scores = rng.integers(0, 6, len(windows)) / 5
        saliency = rng.integers(-8, 8, max(1, clips + rng.integers(-2, 3))) / 4
        answers.append(
            prediction(
                qid,
                [(float(a), float(b), float(s)) for (a, b), s in zip(windows, scores, strict=True)],
                tuple(map(float, saliency)),
            )
        )
    found, expected = qvhighlights(rows, answers), plain(rows, answers)
    for key, values in expected.items():
        group, _, metric = key.partition("/")
        assert (found[group][metric] if metric else found[group]) == values


def test_every_dataset_with_metrics_is_known_by_name() -> None:
    assert "qvhighlights" in METRICS
    with pytest.raises(
        UsageError, match="unknown dataset with metrics 'qvhighlight'; did you mean"
    ):
        METRICS.get("qvhighlight")


def test_clips_that_strict_never_ranks_share_the_last_place_whatever_the_other_grids() -> None:
    # one of three clips is scored, a positive one is not: found last, at precision 1/3
    short = annotation(1, duration_s=6.0, clip_ids=(1,), saliency=((4.0,),))
    long = annotation(2, duration_s=12.0, clip_ids=(0,), saliency=((4.0,),))
    answers = [prediction(1, saliency=(-1.0,)), prediction(2, saliency=(1.0, 0, 0, 0, 0, 0))]
    found = qvhighlights([short, long], answers, mode="strict")
    assert found["HL-min-Fair"]["HL-mAP"] == 66.67
