"""moment_detr's evaluator: published scores, every quirk of the reference, and its mended form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.annotations import load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics import METRICS, Mode, Scores
from training.metrics.moments import average_precision, ranked
from training.metrics.ragged import Ragged
from training.predictions import Prediction, in_order, read_predictions

Windows = list[tuple[float, float, float]]

# standalone_eval/eval.py of wjun0830/CGDETR at its HEAD, run on qd_detr_val
CG_DETR_QD = {
    ("brief", "MR-full-mIoU"): 57.59,
    ("brief", "MR-full-R1@0.3"): 74.77,
    ("full", "MR-mIoU"): 57.59,
    ("long", "MR-mIoU"): 58.4,
    ("middle", "MR-mIoU"): 53.9,
    ("short", "MR-mIoU"): 13.9,
    ("short", "MR-R1", "0.3"): 16.55,
    ("short", "MR-R1", "0.45"): 9.79,
}

# eval/eval.py of showlab/UniVTG at its HEAD, run on qd_detr_val
UNIVTG_QD = {
    ("brief", "MR-short-mIoU"): 13.9,
    ("full", "MR-R5", "0.3"): 93.48,
    ("full", "MR-R5", "0.5"): 80.9,
    ("full", "MR-R5", "0.7"): 60.65,
    ("full", "MR-R5", "0.95"): 18.39,
    ("short", "MR-R5", "0.3"): 58.97,
    ("short", "MR-R5", "0.8"): 18.88,
}


def mr_hd(
    rows: Sequence[Annotation],
    answers: Sequence[Prediction],
    mode: Mode = "official",
    metrics: str = "mr_hd",
) -> Scores:
    return METRICS.get(metrics)(rows, answers, clip_len_s=2.0, mode=mode).scores()


def published(shared: Path, name: str) -> tuple[list[Annotation], list[Prediction]]:
    rows = load_annotations(
        "qvhighlights", shared / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"
    )
    folder = shared / "predictions" / name
    return rows, in_order(rows, read_predictions(folder / "predictions.jsonl"))


def leaves(scores: Scores, *above: str) -> dict[tuple[str, ...], float | None]:
    """Every number by its place in the nesting."""
    found: dict[tuple[str, ...], float | None] = {}
    for key, value in scores.items():
        found |= leaves(value, *above, key) if isinstance(value, dict) else {(*above, key): value}
    return found


def annotation(
    qid: int = 1, windows: Any = ((0.0, 10.0),), duration_s: float = 150.0, **more: Any
) -> Annotation:
    return Annotation(qid, "q", "v", duration_s, tuple(windows), **more)


def prediction(
    qid: int = 1, windows: Any = ((0.0, 10.0, 1.0),), saliency: Any = None
) -> Prediction:
    return Prediction(qid, "q", "v", tuple(windows), saliency)


def one(windows: Windows, truth: list[tuple[float, float]], mode: Mode = "official") -> Scores:
    return mr_hd([annotation(windows=truth)], [prediction(windows=windows)], mode=mode)


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
    return mr_hd([row], [prediction(saliency=tuple(scores))], mode=mode)


@pytest.mark.parametrize("name", ["qd_detr_val", "moment_detr_val"])
def test_published_predictions_have_the_published_scores_on_every_key(
    shared: Path, name: str
) -> None:
    rows, answers = published(shared, name)
    expected = leaves(json.loads((shared / "predictions" / name / "expected.json").read_text()))
    found = leaves(mr_hd(rows, answers))
    assert len(expected) == 104
    assert {key: found[key] for key in expected} == expected


def test_one_file_has_the_keys_of_cg_detr_and_univtg_too(shared: Path) -> None:
    # CG-DETR's and UniVTG's own evaluators (eval.py of both), run on these predictions
    found = leaves(mr_hd(*published(shared, "qd_detr_val")))
    expected = CG_DETR_QD | UNIVTG_QD
    assert {key: found[key] for key in expected} == expected


def test_strict_padding_moves_published_highlight_scores_as_the_specs_say(shared: Path) -> None:
    # specs/evaluator_reference.md §6: 74.93/64.03/39.49 become 74.98/64.09/39.53
    found = mr_hd(*published(shared, "qd_detr_val"), mode="strict")
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
        mr_hd(rows, answers)
    scores = mr_hd(rows, answers, mode="strict")
    assert (mean_ap(scores), recall(scores)) == (50, 50)


def test_empty_windows_are_left_out_of_the_official_mean_of_average_precision() -> None:
    truth = Ragged.of([[(0, 10)], [(0, 10)]], (2,))
    predicted = Ragged.of([[(0, 10, 1)], []], (3,))
    thresholds = np.asarray([0.5])
    ap, counts = average_precision(ranked(predicted, "official"), truth, thresholds, "official")
    assert counts.tolist() == [True, False]
    assert ap[0] == 1


@pytest.mark.parametrize(
    ("length", "name"), [(10, "short"), (10.1, "middle"), (30, "middle"), (30.1, "long")]
)
@pytest.mark.parametrize("mode", ["official", "strict"])
def test_the_upper_end_of_a_length_range_belongs_to_it(
    length: float, name: str, mode: Mode
) -> None:
    scores = one([(0, length, 1)], [(0, length)], mode)
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
@pytest.mark.parametrize("mode", ["official", "strict"])
def test_degenerate_rankings_score_as_in_the_reference(
    ratings: list[list[float]], expected: float, mode: Mode
) -> None:
    assert highlights([0.5] * 4, ratings, mode)["HL-min-Fair"]["HL-mAP"] == expected


def test_a_clip_is_positive_from_the_rating_of_its_name_on() -> None:
    scores = highlights([3, 2, 1], [[3.0], [0.0], [0.0]])
    hits = {name: scores[f"HL-min-{name}"]["HL-Hit1"] for name in ("Fair", "Good", "VeryGood")}
    assert hits == {"Fair": 100, "Good": 100, "VeryGood": 0}


def test_hit_at_one_needs_any_annotator_and_precision_asks_each() -> None:
    scores = highlights([3, 2, 1], [[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])["HL-min-Fair"]
    assert scores == {"HL-mAP": 75, "HL-Hit1": 100}


def test_highlight_keys_are_absent_without_saliency_and_refused_for_a_part() -> None:
    assert not any("HL" in key for key in one([(0, 10, 1)], [(0, 10)])["brief"])
    rows = [annotation(i, clip_ids=(0,), saliency=((4.0,),)) for i in (1, 2)]
    answers = [prediction(1, saliency=(1.0,)), prediction(2)]
    with pytest.raises(UsageError, match=r"1 of 2 predictions have no saliency scores"):
        mr_hd(rows, answers)


def test_ground_truth_that_cannot_be_scored_is_named() -> None:
    with pytest.raises(UsageError, match="1 of 1 queries have no ground-truth moment"):
        mr_hd([annotation(windows=())], [prediction()])
    row = annotation(duration_s=4.0, clip_ids=(2,), saliency=((4.0,),))
    with pytest.raises(UsageError, match=r"clip 2 is rated, but a video of 4\.0 seconds"):
        mr_hd([row], [prediction(saliency=(1.0, 1.0))])


def test_clips_that_strict_never_ranks_share_the_last_place_whatever_the_other_grids() -> None:
    # one of three clips is scored, a positive one is not: found last, at precision 1/3
    short = annotation(1, duration_s=6.0, clip_ids=(1,), saliency=((4.0,),))
    long = annotation(2, duration_s=12.0, clip_ids=(0,), saliency=((4.0,),))
    answers = [prediction(1, saliency=(-1.0,)), prediction(2, saliency=(1.0, 0, 0, 0, 0, 0))]
    found = mr_hd([short, long], answers, mode="strict")
    assert found["HL-min-Fair"]["HL-mAP"] == 66.67


@pytest.mark.parametrize("mode", ["official", "strict"])
def test_recall_at_five_takes_the_best_pair_of_five_windows_and_any_moment(mode: Mode) -> None:
    wrong = [(50.0, 60.0, 0.9 - i / 10) for i in range(4)]
    truth = [(0.0, 10.0), (20.0, 30.0)]
    fifth = one([*wrong, (20, 28, 0.4)], truth, mode)["full"]
    assert fifth["MR-R5"]["0.8"] == 100
    assert fifth["MR-R5"]["0.85"] == 0
    assert fifth["MR-R1"]["0.3"] == 0
    sixth = one([*wrong, (50, 60, 0.4), (20, 28, 0.3)], truth, mode)["full"]
    assert sixth["MR-R5"]["0.3"] == 0


def test_recall_at_five_reads_the_list_in_official_and_the_scores_in_strict() -> None:
    windows = [*[(50.0, 60.0, 0.1)] * 5, (0.0, 10.0, 0.9)]
    official, strict = (one(windows, [(0, 10)], mode)["full"] for mode in ("official", "strict"))
    assert (official["MR-R5"]["0.5"], strict["MR-R5"]["0.5"]) == (0, 100)


def test_windows_without_extent_are_no_hit_of_recall_at_five() -> None:
    # UniVTG writes 0 where the IoU of two such windows is 0/0
    assert one([(100, 100, 1)], [(5, 5)])["full"]["MR-R5"]["0.3"] == 0


def test_mean_iou_is_the_mean_over_queries_of_the_first_window() -> None:
    rows = [annotation(1), annotation(2, windows=[(20, 40)])]
    answers = [prediction(1, [(0, 8, 1)]), prediction(2, [(0, 8, 1), (20, 40, 0.5)])]
    scores = mr_hd(rows, answers)
    assert scores["brief"]["MR-full-mIoU"] == 40
    assert scores["brief"]["MR-short-mIoU"] == 80
    assert scores["brief"]["MR-middle-mIoU"] == 0
    assert scores["brief"]["MR-long-mIoU"] is None


def test_the_long_moments_of_univtg_have_no_upper_end_and_its_names_are_marked() -> None:
    rows, answers = [annotation(windows=[(0, 200)])], [prediction(windows=[(0, 200, 1)])]
    assert mr_hd(rows, answers)["long"]["MR-R1"]["0.5"] is None
    found = mr_hd(rows, answers, metrics="mr_hd_univtg")
    assert found["brief"]["MR-long-mAP"] == 100
    assert found["brief"]["MR-full-R5@0.3-key"] == 100
    # a range that holds no moment is measured on all queries there
    assert found["brief"]["MR-short-mAP"] == 100


def test_other_evaluators_leave_out_moments_that_are_outside_of_their_full_range() -> None:
    rows = [annotation(1), annotation(2, windows=[(5, 5)]), annotation(3, windows=[(0, 40)])]
    answers = [prediction(1), prediction(2, [(50, 60, 1)]), prediction(3, [(50, 60, 1)])]
    at = {
        name: mr_hd(rows, answers, metrics=name)["full"]["MR-R1"]["0.5"]
        for name in ("mr_hd", "mr_hd_lighthouse", "mr_hd_eatr_charades")
    }
    assert at == {"mr_hd": 33.33, "mr_hd_lighthouse": 50, "mr_hd_eatr_charades": 100}
    assert set(mr_hd(rows, answers, metrics="mr_hd_lighthouse")) == {"brief", "full"}


def test_bam_detr_calls_moments_of_up_to_20_s_short_on_activitynet() -> None:
    rows, answers = [annotation(windows=[(0, 15)])], [prediction(windows=[(0, 15, 1)])]
    found = mr_hd(rows, answers, metrics="mr_hd_bam_detr_activitynet")
    assert (found["brief"]["MR-short-mAP"], found["brief"]["MR-middle-mAP"]) == (100, None)


def test_predictions_that_are_no_numbers_are_refused_because_nan_passes_every_threshold() -> None:
    for windows in ([(0, float("nan"), 1)], [(0, float("inf"), 1)], [(0, 1, float("nan"))]):
        with pytest.raises(UsageError, match=r"predicted windows of 1 queries are not finite"):
            mr_hd([annotation()], [prediction(windows=windows)])
    with pytest.raises(UsageError, match=r"predicted saliency scores of 1 queries are not finite"):
        highlights([float("nan")], [[4.0]])


def test_an_empty_list_of_saliency_stops_official_and_is_a_miss_in_strict() -> None:
    with pytest.raises(UsageError, match="1 queries have an empty list of saliency scores"):
        highlights([], [[4.0], [0.0]])
    assert highlights([], [[4.0], [0.0]], "strict")["HL-min-Fair"]["HL-Hit1"] == 0


def test_a_duration_in_another_unit_is_refused_before_memory_is_spent() -> None:
    row = annotation(duration_s=1e12, clip_ids=(0,), saliency=((4.0,),))
    with pytest.raises(UsageError, match=r"a duration of 2 to 2,000,000 seconds"):
        mr_hd([row], [prediction(saliency=(1.0,))])


def test_ranking_a_few_queries_at_a_time_changes_nothing(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, answers = published(shared, "qd_detr_val")
    rows, answers = rows[:200], answers[:200]
    at_once = mr_hd(rows, answers)
    monkeypatch.setattr("training.metrics.mr_hd.CELLS", 75 * 7)
    assert mr_hd(rows, answers) == at_once


def test_a_share_of_each_query_has_the_name_of_the_score_that_it_is_a_part_of() -> None:
    rows = [annotation(1), annotation(2, windows=[(20, 40)])]
    answers = [prediction(1, [(0, 8, 1)]), prediction(2, [(0, 8, 1), (20, 40, 0.5)])]
    first, second = METRICS.get("mr_hd")(rows, answers, clip_len_s=2.0).per_query()
    assert {key: first[key] for key in ("qid", "vid", "query")} == {
        "qid": 1,
        "vid": "v",
        "query": "q",
    }
    assert first["MR-full-mIoU"] == 0.8
    assert first["MR-short-mIoU"] == 0.8
    assert first["MR-middle-mAP"] is None
    # IoU 0.8 reaches seven of the ten thresholds; the second query finds its moment at rank two
    assert first["MR-full-mAP"] == pytest.approx(0.7)
    assert second["MR-full-mAP"] == pytest.approx(0.5)


def test_an_unknown_evaluator_is_told_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown metric 'mrhd'; did you mean 'mr_hd'"):
        METRICS.get("mrhd")
