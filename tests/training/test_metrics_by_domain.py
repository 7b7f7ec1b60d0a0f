"""TVSum's and YouTube Highlights' scores: the numbers of the specification, and every odd case.

That they equal a word-for-word version is tested in `test_metric_properties_of_other_datasets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.annotations import load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics import METRICS, Mode
from training.predictions import Prediction


def video(
    labels: Sequence[Sequence[float]], domain: str | None = "BK", qid: str = "v"
) -> Annotation:
    """A video with the ratings of each clip."""
    return Annotation(
        qid,
        "q",
        qid,
        2.0 * len(labels),
        clip_ids=tuple(range(len(labels))),
        saliency=tuple(tuple(row) for row in labels),
        extra={} if domain is None else {"domain": domain},
    )


def answer(*scores: float, qid: str = "v") -> Prediction:
    return Prediction(qid, "q", qid, (), scores)


def score(metric: str, *pairs: tuple[Annotation, Prediction], mode: Mode = "official") -> Any:
    rows, answers = zip(*pairs, strict=True)
    return METRICS.get(metric)(rows, answers, clip_len_s=2.0, mode=mode).scores()


def one(metric: str, row: Annotation, given: Prediction, mode: Mode = "official") -> float:
    return float(score(metric, (row, given), mode=mode)["brief"]["mAP"])


def test_the_mean_of_the_annotators_of_tvsum_scores_what_the_specification_says(
    shared: Path,
) -> None:
    rows = load_annotations("tvsum", shared / "annotations/tvsum/tvsum_val_release.jsonl")
    answers = [answer(*(sum(clip) / 20 for clip in row.saliency or ())) for row in rows]
    brief = score("tvsum_top5", *zip(rows, answers, strict=True))["brief"]
    # specs/evaluator_reference.md §5: ties by clip order
    expected = {
        "BK": 0.910, "BT": 0.843, "DS": 0.776, "FM": 0.747, "GA": 0.924,
        "MS": 0.778, "PK": 0.866, "PR": 0.824, "VT": 0.854, "VU": 0.911,
    }  # fmt: skip
    assert {name: round(brief[f"{name}-mAP"], 3) for name in expected} == expected
    assert round(brief["mAP"], 3) == 0.843


@pytest.mark.parametrize("mode", ["official", "strict"])
def test_the_labels_of_youtube_highlights_score_1_in_every_domain(mode: Mode, shared: Path) -> None:
    path = shared / "annotations/youtube_highlights/youtube_highlight_val_release.jsonl"
    rows = load_annotations("youtube_highlights", path)
    answers = [answer(*(clip[0] for clip in row.saliency or ())) for row in rows]
    brief = score("youtube_map", *zip(rows, answers, strict=True), mode=mode)["brief"]
    # specs/evaluator_reference.md §5: oracle = 1.000 in all six domains
    assert brief.pop("mAP") == 1.0
    assert len(brief) == 6
    assert set(brief.values()) == {1.0}


def test_area_under_the_curve_is_by_trapezoids() -> None:
    # places 1 and 3 are right: 1/2 · (1 + 1)/2 + 1/2 · (1/2 + 2/3)/2
    row = video([[1], [0], [1], [0]])
    assert one("youtube_map", row, answer(4, 3, 2, 1)) == 0.79167


def test_only_the_first_five_and_their_own_positives_count_in_tvsum() -> None:
    row = video([[5]] + [[1]] * 4 + [[5]] * 3)
    assert one("tvsum_top5", row, answer(8, 7, 6, 5, 4, 3, 2, 1)) == 1.0
    # the only hit is at place 5: (0 + 1/5)/2
    assert one("tvsum_top5", video([[1]] * 4 + [[5]]), answer(5, 4, 3, 2, 1)) == 0.1
    assert (
        one("youtube_map", video([[1]] + [[0]] * 5 + [[1]] * 2), answer(8, 7, 6, 5, 4, 3, 2, 1)) < 1
    )


def test_the_median_of_an_even_number_is_the_lower_middle_one() -> None:
    # the median of 1, 2, 3, 4 is 2: 3 and 4 are positive, and 3 would not be above 2.5 rounded up
    row = video([[1], [2], [3], [4]])
    assert one("tvsum_top5", row, answer(1, 2, 4, 3)) == 1.0
    assert one("tvsum_top5", row, answer(4, 3, 2, 1)) == pytest.approx(
        # hits at places 3 and 4: 1/2 · (0 + 1/3)/2 + 1/2 · (1/3 + 1/2)/2
        0.29167
    )


def test_annotators_count_alike_and_so_do_the_videos_of_a_domain_and_the_domains() -> None:
    good, bad = [[5, 1], [1, 5]], [[1, 1], [5, 5]]
    found = score(
        "tvsum_top5",
        (video(good, "BK", "a"), answer(2, 1, qid="a")),
        (video(bad, "BK", "b"), answer(2, 1, qid="b")),
        (video([[5, 5], [1, 1]], "DS", "c"), answer(2, 1, qid="c")),
    )
    # a hit at place 2 only: (0 + 1/2)/2 = 0.25; a: (1 + 0.25)/2, b: 0.25, c: 1
    assert found == {
        "brief": {"mAP": 0.71875, "BK-mAP": 0.4375, "DS-mAP": 1.0},
        "BK": {"mAP": 0.4375},
        "DS": {"mAP": 1.0},
        "AVG": {"mAP": 0.71875},
    }


def test_the_share_of_a_video_is_the_mean_of_its_annotators() -> None:
    row, given = video([[5, 1], [1, 5]]), answer(2, 1)
    [own] = METRICS.get("tvsum_top5")([row], [given], clip_len_s=2.0).per_query()
    assert own["mAP"] == 0.625  # (1 + 0.25)/2, as above


def test_without_domains_there_is_one_number() -> None:
    # five decimals; places 1 and 3 are right, as above
    found = score("youtube_map", (video([[1], [0], [1], [0]], None), answer(4, 3, 2, 1)))
    assert found == {"brief": {"mAP": 0.79167}, "AVG": {"mAP": 0.79167}}


def test_clips_without_a_score_do_not_exist_officially_and_rank_last_in_strict() -> None:
    row = video([[1], [0], [1]])
    assert one("youtube_map", row, answer(2, 1)) == 1.0
    # places 1 and 3 are right, as above
    assert one("youtube_map", row, answer(2, 1), "strict") == 0.79167


def test_scores_without_a_clip_are_cut_officially_and_refused_in_strict() -> None:
    row = video([[1], [0]])
    assert one("youtube_map", row, answer(2, 1, 9)) == 1.0
    with pytest.raises(UsageError, match=r"query v: 3 scores for 2 labelled clips \(1 queries"):
        one("youtube_map", row, answer(2, 1, 9), "strict")


def test_equal_scores_keep_the_order_of_clips_officially_and_win_nothing_in_strict() -> None:
    for metric in ("youtube_map", "tvsum_top5"):
        assert one(metric, video([[1], [0]]), answer(1, 1)) == 1.0
        assert one(metric, video([[0], [1]]), answer(1, 1)) == 0.25
        assert one(metric, video([[1], [0]]), answer(1, 1), "strict") == 0.25


def test_where_nothing_is_positive_official_counts_0_and_strict_does_not_count() -> None:
    nothing, something = video([[0], [0]], "a", "a"), video([[1], [0]], "a", "b")
    pairs = ((nothing, answer(2, 1, qid="a")), (something, answer(2, 1, qid="b")))
    for metric in ("youtube_map", "tvsum_top5"):
        assert score(metric, *pairs)["brief"] == {"mAP": 0.5, "a-mAP": 0.5}
        assert score(metric, *pairs, mode="strict")["brief"] == {"mAP": 1.0, "a-mAP": 1.0}
        assert score(metric, pairs[0], mode="strict")["brief"] == {"mAP": None, "a-mAP": None}


def test_the_mean_of_the_domains_is_no_number_if_one_of_them_has_none() -> None:
    nothing, something = video([[0], [0]], "a", "a"), video([[1], [0]], "b", "b")
    pairs = ((nothing, answer(2, 1, qid="a")), (something, answer(2, 1, qid="b")))
    for metric in ("youtube_map", "tvsum_top5"):
        brief = score(metric, *pairs, mode="strict")["brief"]
        assert brief == {"mAP": None, "a-mAP": None, "b-mAP": 1.0}


def test_in_strict_an_annotator_who_rated_all_clips_alike_is_not_heard() -> None:
    row = video([[3, 5], [3, 1]])
    assert one("tvsum_top5", row, answer(2, 1)) == 0.5
    assert one("tvsum_top5", row, answer(2, 1), "strict") == 1.0


def test_in_strict_places_after_the_end_of_a_shorter_video_are_no_ratings() -> None:
    alike, longer = video([[3], [3]], "a", "a"), video([[1], [5], [1]], "a", "b")
    pairs = ((alike, answer(2, 1, qid="a")), (longer, answer(1, 3, 2, qid="b")))
    assert score("tvsum_top5", *pairs, mode="strict")["brief"] == {"mAP": 1.0, "a-mAP": 1.0}


@pytest.mark.parametrize("metric", ["tvsum_top5", "youtube_map"])
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(video([[1]]), Prediction("v", "q", "v", ((0, 1, 1),)))], "1 of 1 predictions have no s"),
        (
            [(Annotation("v", "q", "v"), answer(1))],
            "query v: this metric needs labels of the clips",
        ),
        (
            [(Annotation("v", "q", "v", clip_ids=(3, 5), saliency=((1,), (0,))), answer(1, 2))],
            "query v: this metric ranks all clips of a video, but only 2 of 6 or more",
        ),
        (
            [(video([[1]]), answer(1)), (video([[1]], None, "w"), answer(1, qid="w"))],
            "query w: 'domain' is None",
        ),
        ([(video([[1]], "brief"), answer(1))], "other than 'brief' and 'AVG'"),
        (
            [(video([[1]]), answer(1)), (video([[1, 2]], "BK", "w"), answer(1, qid="w"))],
            r"same number of annotators, found \[1, 2\]",
        ),
        (
            [(video([[1]]), answer(float("nan")))],
            "predicted saliency scores of 1 queries are not f",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    metric: str, pairs: list[tuple[Annotation, Prediction]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        score(metric, *pairs)
