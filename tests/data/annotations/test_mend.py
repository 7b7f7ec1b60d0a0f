from __future__ import annotations

from data.annotations import Annotation
from data.annotations.mend import Change, mended


def _row(qid: int, *windows: tuple[float, float], duration_s: float | None = 10.0) -> Annotation:
    return Annotation(qid, "a dog", "v", duration_s, windows)


def test_a_moment_that_ends_before_it_starts_is_swapped() -> None:
    [row], report = mended([_row(1, (8.0, 2.0), (0.0, 1.0))])
    assert row.windows == ((2.0, 8.0), (0.0, 1.0))
    assert report.changes == (Change(1, "swapped", (8.0, 2.0), (2.0, 8.0)),)


def test_ends_are_moved_into_the_video() -> None:
    [row], report = mended([_row(1, (-1.0, 4.0), (6.0, 11.5), (12.0, -3.0))])
    assert row.windows == ((0.0, 4.0), (6.0, 10.0), (0.0, 10.0))
    assert report.count("clamped") == 3
    assert report.count("swapped") == 1


def test_empty_moments_and_those_past_the_end_are_dropped() -> None:
    [row], report = mended(
        [_row(1, (4.0, 4.0), (10.0, 12.0), (11.0, 12.0), (-2.0, 0.0), (1.0, 2.0))]
    )
    assert row.windows == ((1.0, 2.0),)
    assert [(each.what, each.before, each.after) for each in report.changes] == [
        ("dropped", (4.0, 4.0), None),
        ("dropped", (10.0, 12.0), None),
        ("dropped", (11.0, 12.0), None),
        ("dropped", (-2.0, 0.0), None),
    ]


def test_a_query_without_a_moment_left_is_left_out_and_told() -> None:
    rows = [_row(1, (0.0, 5.0)), _row(2, (11.0, 12.0), (3.0, 3.0)), _row(3, (0.0, 10.0))]
    kept, report = mended(rows)
    assert kept == [rows[0], rows[2]]
    assert report.changes[-1] == Change(2, "left_out")
    assert report.sentences() == [
        "2 of 4 moments are empty or begin after the end of their video: they are dropped (qid 2)",
        "1 of 3 queries have no other moment and are left out (qid 2)",
    ]


def test_without_a_duration_nothing_is_moved_and_the_user_is_told() -> None:
    rows = [_row(i, (3.0, 1.0), (500.0, 900.0), duration_s=None) for i in range(7)]
    kept, report = mended(rows)
    assert kept[0].windows == ((1.0, 3.0), (500.0, 900.0))
    assert report.sentences() == [
        "7 of 14 moments end before they start: start and end are swapped (qid 0, 1, 2, 3, 4, …)",
        "7 of 7 queries do not say how long their video is: nobody checks whether their moments "
        "lie in it",
    ]


def test_queries_without_moments_and_good_ones_are_the_same_objects() -> None:
    rows = [
        Annotation(1, "q", "v", 10.0),
        Annotation(2, "q", "v", 10.0, (), (0,), ((1.0,),)),
        Annotation(3, "q", "v", None, None, (9,), ((1.0,),)),
        _row(4, (0.0, 10.0)),
    ]
    kept, report = mended(rows)
    assert all(one is other for one, other in zip(kept, rows, strict=True))
    assert report.sentences() == []
    assert (report.queries, report.windows) == (4, 1)


def test_mending_twice_changes_nothing_more() -> None:
    rows = [_row(1, (8.0, 2.0), (-4.0, 30.0)), _row(2, (1.0, 1.0), (9.0, 11.0))]
    once, _ = mended(rows)
    twice, report = mended(once)
    assert twice == once
    assert report.changes == ()


def test_the_report_has_every_change_and_counts_them() -> None:
    _, report = mended([_row(1, (12.0, 2.0)), _row(2, (3.0, 3.0))])
    assert report.changes == (
        Change(1, "swapped", (12.0, 2.0), (2.0, 12.0)),
        Change(1, "clamped", (2.0, 12.0), (2.0, 10.0)),
        Change(2, "dropped", (3.0, 3.0)),
        Change(2, "left_out"),
    )
    assert report.counts == {"swapped": 1, "clamped": 1, "dropped": 1, "left_out": 1}
    _, nothing = mended([_row(1, (0.0, 10.0))])
    assert nothing.counts == {"swapped": 0, "clamped": 0, "dropped": 0, "left_out": 0}
