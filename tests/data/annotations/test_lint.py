"""Every check has a small file that triggers it and nothing else; clean files trigger none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.annotations import DATASETS, Annotation
from data.annotations.faults import CHECKS
from data.annotations.findings import KINDS, Finding, Sheet
from data.annotations.leakage import LEAKS, Seen, leaks
from data.annotations.lint import lint, lint_together, read_sheet, sheet_of

CLEAN = Annotation(
    qid=1,
    query="A red ball rolls.",
    video_id="v",
    duration_s=24.0,
    windows=((2.0, 6.0), (10.0, 12.0)),
    clip_ids=(1, 2, 5),
    saliency=((4.0, 3.0, 2.0), (1.0, 0.0, 1.0), (0.0, 0.0, 2.0)),
)
MOMENTS = replace(CLEAN, clip_ids=None, saliency=None)


def _rows(*rows: Annotation) -> list[Annotation]:
    """Rows with qids and videos of their own, if they say nothing else."""
    return [
        replace(row, qid=10 + i, video_id=f"{row.video_id}{i}") if row.video_id == "v" else row
        for i, row in enumerate(rows)
    ]


def _found(*rows: Annotation, dataset: str = "qvhighlights", **more: Any) -> list[Finding]:
    return lint(sheet_of(_rows(*rows), "val", DATASETS.get(dataset), 2.0, **more))


def _moment(*windows: tuple[float, float], **changes: Any) -> Annotation:
    return replace(MOMENTS, windows=windows, **changes)


def _scored(clips: int, **changes: Any) -> Annotation:
    scores = tuple((1.0, 2.0, 3.0) for _ in range(clips))
    given = {"windows": None, "clip_ids": tuple(range(clips)), "saliency": scores}
    return replace(CLEAN, **(given | changes))


# kind of fault: rows that have it, and how many faults that makes
FAULTY: dict[str, tuple[list[Annotation], int]] = {
    "query-empty": ([CLEAN, *[replace(CLEAN, query=q) for q in (" ", "\u200b", "-.", "犬")]], 3),
    "qid-twice": (
        [replace(CLEAN, video_id="a"), replace(CLEAN, video_id="b"), replace(CLEAN, qid="1")],
        1,
    ),
    "row-twice": (
        [replace(CLEAN, video_id="a"), *[replace(CLEAN, video_id="a", qid=q) for q in (2, 3)]],
        2,
    ),
    "truth-mixed": ([CLEAN, CLEAN, MOMENTS], 1),
    "window-units": ([_moment((240, 600), (0, 30)), _moment((12, 100)), _moment((2.5, 4))], 2),
    "window-reversed": ([_moment((6, 2), (2, 6))], 1),
    "window-empty": ([_moment((4, 4), (2, 6)), _moment((5, 5))], 2),
    "window-outside": ([_moment((24, 24.5)), _moment((-2, 0))], 2),
    "window-negative": ([_moment((-0.5, 6))], 1),
    "window-past-end": ([_moment((20, 26.5))], 1),
    "window-over-end": ([_moment((20, 26)), _moment((20, 24.011))], 2),
    "window-twice": ([_moment((2, 6), (8, 10), (2, 6))], 1),
    "saliency-length": ([CLEAN, CLEAN, replace(CLEAN, saliency=((1, 1), (1, 1), (1, 1)))], 1),
    "saliency-range": (
        [CLEAN, replace(CLEAN, saliency=((5, 1, 1), (-1, 1, 1), (1, 1, 1)))],
        1,
    ),
    "clips-outside": ([_scored(3, clip_ids=(0, 1, 12))], 1),
    "clips-disagree": (
        [replace(CLEAN, clip_ids=(1, 2, 6)), replace(CLEAN, windows=((2.0, 8.0), (10.0, 12.0)))],
        2,
    ),
    "duration-is-clips": ([_scored(24)], 1),
    "duration-was-clips": ([_scored(12, extra={"stated_duration": 12})], 1),
    "duration-units": ([_moment((100, 150), duration_s=24_000.0) for _ in range(10)], 10),
    "duration-differs": (
        [replace(CLEAN, video_id="a", qid=q, query=str(q)) for q in (1, 2)]
        + [replace(CLEAN, video_id="a", qid=3, duration_s=26.0)],
        1,
    ),
    "duration-off-grid": ([replace(CLEAN, duration_s=25.0)], 1),
    "duration-past-clips": ([_scored(12), _scored(11), _scored(10)], 1),
    "duration-measured": ([CLEAN, replace(CLEAN, duration_s=30.0)], 1),
}
MEASURED = {"duration-measured": {"v0": 23.9, "v1": 24.0}}


@pytest.mark.parametrize("kind", FAULTY)
def test_each_fault_is_found_and_nothing_else(kind: str) -> None:
    rows, count = FAULTY[kind]
    found = _found(*rows, lengths_s=MEASURED.get(kind, {}))
    assert [(each.kind.name, len(each.spots)) for each in found] == [(kind, count)]
    assert all(each.detail for each in found[0].spots)


def test_every_kind_of_fault_has_its_example_here() -> None:
    leaks = {kind.name for kind in LEAKS}
    assert set(KINDS) == set(FAULTY) | leaks | {"wrong-form"}


def test_a_clean_file_has_no_finding() -> None:
    assert _found(CLEAN, CLEAN, CLEAN, lengths_s={"v0": 24.9}) == []
    assert _found(replace(MOMENTS, duration_s=None), replace(MOMENTS, duration_s=None)) == []
    assert lint(sheet_of([], "empty", DATASETS.get("custom"), 2.0)) == []


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"windows": ((6.0, 2.0),)}, "window-reversed"),
        ({"windows": ((4.0, 4.0),)}, "window-empty"),
        ({"windows": ((-4.0, 6.0),)}, "window-negative"),
        ({"windows": ((2.0, 60.0),)}, "window-past-end"),
        ({"windows": ((40.0, 60.0),)}, "window-outside"),
        ({"clip_ids": (1, 2, 90)}, "clips-outside"),
    ],
)
def test_a_wrong_moment_or_clip_is_told_once_although_the_other_disagrees(
    changes: dict[str, Any], kind: str
) -> None:
    assert [each.kind.name for each in _found(CLEAN, replace(CLEAN, **changes))] == [kind]


def test_moments_of_billions_of_clips_are_counted_without_writing_them_out() -> None:
    windows = ((2.0, 2e29), (1e10, 2e12), (4.0, 6.0))
    huge = replace(CLEAN, windows=windows, duration_s=None)
    [found] = [each for each in _found(huge) if each.kind.name == "clips-disagree"]
    # clips 1 to 1e29 - 1, of which 1, 2 and 5 are scored
    assert found.spots[0].detail.startswith(f"{int(1e29) - 4} clips of its moments have no score")
    assert found.spots[0].detail.endswith("the first is 3")


_SPAN = st.tuples(st.integers(0, 18), st.integers(1, 8)).map(lambda it: (it[0], it[0] + it[1]))
_SPANS = st.lists(_SPAN, min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(_SPANS, st.lists(st.integers(0, 12), unique=True, min_size=1))
def test_scored_clips_and_moments_are_compared_clip_by_clip(
    windows: list[tuple[int, int]], clips: list[int]
) -> None:
    row = replace(
        CLEAN,
        duration_s=None,
        windows=tuple((float(start), float(end)) for start, end in windows),
        clip_ids=tuple(clips),
        saliency=tuple((float(clip % 3),) for clip in clips),
    )
    inside = {c for a, b in windows for c in range(-4, 20) if a <= 2 * c and 2 * c + 2 <= b}
    touched = {c for a, b in windows for c in range(-4, 20) if a < 2 * c + 2 and 2 * c < b}
    lacking = inside - set(clips)
    astray = {clip for clip in clips if clip % 3} - touched
    found = [each for each in _found(row) if each.kind.name == "clips-disagree"]
    assert bool(found) == bool(lacking | astray)
    if found:
        detail = found[0].spots[0].detail
        assert (f"{len(lacking)} clips of its moments have no score" in detail) == bool(lacking)
        assert (f"{len(astray)} clips with a score are in no moment" in detail) == bool(astray)
        assert detail.endswith(f"the first is {min(lacking | astray)}")


def test_an_end_a_hundredth_of_a_second_late_is_rounding() -> None:
    # five rows of ActivityNet Captions val_1 end 0.01 s after their video
    assert _found(_moment((20.0, 24.01))) == []


def test_the_unit_of_strange_moments_is_named() -> None:
    frames = _found(_moment((30, 600)), _moment((120, 300)))
    assert "numbers of frames?" in frames[0].spots[0].detail
    milliseconds = _found(_moment((3000, 20_000)))
    assert "milliseconds?" in milliseconds[0].spots[0].detail
    fractions = _found(*[_moment((0.25, 0.5 + i / 100)) for i in range(10)])
    assert [(each.kind.name, len(each.spots)) for each in fractions] == [("window-units", 10)]
    assert "fractions of the video?" in fractions[0].spots[0].detail


def test_nine_rows_with_short_moments_are_no_fractions() -> None:
    assert _found(*[_moment((0.0, 1.0 - i / 10)) for i in range(9)]) == []


def test_early_moments_of_ten_videos_of_a_few_seconds_are_no_fractions() -> None:
    rows = [_moment((0.25, 0.5 + i / 100), duration_s=4.0) for i in range(10)]
    assert _found(*rows) == []


def test_a_stated_duration_that_is_the_one_read_is_no_fault() -> None:
    assert _found(_scored(12, extra={"stated_duration": 24.0})) == []


def test_one_row_far_outside_among_good_ones_is_no_other_unit() -> None:
    found = _found(_moment((2, 6)), _moment((2, 8)), _moment((100, 110)))
    assert [each.kind.name for each in found] == ["window-outside"]


def test_clips_with_places_of_their_own_are_compared_with_the_duration() -> None:
    row = _scored(2, duration_s=4.9, clip_spans_s=((0.0, 3.3), (1.7, 5.0)))
    assert _found(row, dataset="custom") == []
    outside = replace(row, clip_spans_s=((0.0, 3.3), (4.9, 6.0)))
    found = _found(outside, dataset="custom")
    assert [each.kind.name for each in found] == ["clips-outside"]


def test_scores_have_the_range_of_their_dataset() -> None:
    row = replace(_scored(12), saliency=((5.0,),) * 12)
    assert _found(row, dataset="tvsum") == []
    assert _found(row, dataset="custom") == []
    low = replace(row, saliency=((0.0,),) * 12)
    assert [each.kind.name for each in _found(low, dataset="tvsum")] == ["saliency-range"]


# --- files


ROW: dict[str, Any] = {
    "qid": 1,
    "query": "A red ball rolls.",
    "duration": 24,
    "vid": "v",
    "relevant_windows": [[2, 6]],
}


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def _read(path: Path) -> list[Finding]:
    custom = DATASETS.get("custom")
    return lint(read_sheet(custom.records(path), str(path), custom, 2.0))


def test_reading_goes_on_after_rows_of_wrong_form_and_each_is_told_with_its_line(
    tmp_path: Path,
) -> None:
    good = json.dumps(ROW)
    path = _file(
        tmp_path,
        good,
        json.dumps(ROW | {"qid": 2, "query": ""}),
        json.dumps(ROW | {"qid": 3, "relevant_windows": [[0, "x"]]}),
        json.dumps(ROW | {"qid": 4, "relevant_windows": [[8, 8]]}),
        json.dumps(ROW | {"qid": 5, "duration": -1}),
        good[:30],
    )
    found = {each.kind.name: each for each in _read(path)}
    assert set(found) == {"wrong-form", "window-empty"}
    lines = [each.where for each in found["wrong-form"].spots]
    assert lines == [f"{path}, line {n}" for n in (2, 3, 5, 6)]
    assert "'query' must be a sentence" in found["wrong-form"].spots[0].detail
    assert "is not JSON" in found["wrong-form"].spots[-1].detail
    assert found["window-empty"].spots[0].where == f"{path}, line 4"


def test_saliency_of_the_wrong_length_is_told_with_its_line(tmp_path: Path) -> None:
    row = ROW | {"relevant_clip_ids": [1, 2], "saliency_scores": [[1, 1, 1], [1, 1]]}
    path = _file(tmp_path, json.dumps(ROW), json.dumps(row | {"qid": 2}))
    [found] = _read(path)
    assert found.kind.name == "wrong-form"
    assert "the same number of scores for each of the 2 clips" in found.spots[0].detail


# --- leaks


def _shared(scored: list[Annotation], trained: list[Annotation], dataset: str) -> list[Finding]:
    known = DATASETS.get(dataset)
    seen = Seen.of((("train", row) for row in trained), known.source_of)
    return leaks(sheet_of(scored, "test", known, 2.0), seen, "train")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("leak-row", {"qid": 7}),
        ("leak-row", {"query": "a RED ball rolls"}),
        ("leak-row", {"query": "a red_ball — rolls…"}),
        ("leak-query", {"windows": ((2.0, 6.0),)}),
        ("leak-video", {"query": "A ball."}),
        ("leak-source", {"video_id": "yt_60.0_210.0"}),
    ],
)
def test_a_shared_row_is_told_under_the_strongest_kind(kind: str, changes: Any) -> None:
    row = replace(MOMENTS, video_id="yt_0.0_150.0")
    own = replace(row, video_id="other_0.0_150.0")
    [found] = _shared([own, replace(row, **changes)], [row], "qvhighlights")
    assert (found.kind.name, found.kind.level, len(found.spots)) == (kind, "error", 1)
    assert found.against == "train"
    assert found.spots[0].where == "test, row 2"
    assert found.spots[0].detail == "seen in train"


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("caf\u00e9", "CAFE\u0301!", "leak-row"),  # one sign or two: NFC, NFD
        ("ﬁsh", "fish", "leak-row"),  # a ligature
        ("Straße", "STRASSE", "leak-row"),
        ("कि", "का", "leak-video"),  # vowel signs are no punctuation
        ("?", "!", "leak-video"),
    ],
)
def test_words_are_compared_however_their_letters_are_written(
    one: str, other: str, kind: str
) -> None:
    rows = [replace(MOMENTS, query=query) for query in (one, other)]
    [found] = _shared(rows[:1], rows[1:], "custom")
    assert found.kind.name == kind


def test_other_recordings_share_nothing() -> None:
    rows = [replace(MOMENTS, video_id=name) for name in ("yt_0.0_150.0", "yt_60.0_210.0")]
    assert _shared(rows[:1], rows[1:], "custom") == []
    # numbers at the end of one's own names are no times
    own = [replace(MOMENTS, video_id=name) for name in ("kitchen_1_2", "kitchen_1_3")]
    assert _shared(own[:1], own[1:], "qvhighlights") == []


def test_files_are_compared_with_those_before_them_and_with_the_others() -> None:
    custom = DATASETS.get("custom")
    sheets = [sheet_of([replace(MOMENTS, qid=name)], name, custom, 2.0) for name in "abc"]
    found = lint_together(sheets[:2], sheets[2:])
    assert [(each.file, each.against) for each in found] == [("a", "c"), ("b", "c"), ("b", "a")]


def test_a_row_that_was_seen_twice_is_told_with_its_first_place() -> None:
    source_of = DATASETS.get("custom").source_of
    leak = Seen.of([("line 1", MOMENTS), ("line 2", MOMENTS)], source_of).leak(MOMENTS, source_of)
    assert leak is not None
    assert (leak[0].name, leak[1]) == ("leak-row", "line 1")


def test_what_was_seen_survives_json() -> None:
    source_of = DATASETS.get("qvhighlights").source_of
    row = replace(MOMENTS, video_id="yt_0.0_150.0")
    seen = Seen.of([("here", row)], source_of)
    again = Seen.from_json(json.loads(json.dumps(seen.to_json())), "there")
    leak = again.leak(row, source_of)
    assert leak is not None
    assert (leak[0].name, leak[1]) == ("leak-row", "there")
    assert again.to_json() == seen.to_json()


_ANNOTATIONS = st.builds(
    Annotation,
    qid=st.integers(0, 3),
    query=st.sampled_from(["a ball", "A ball.", "two", "?"]),
    video_id=st.sampled_from(["x_0.0_9.0", "x_9.0_18.0", "y"]),
    duration_s=st.none() | st.floats(0.1, 1e6),
    windows=st.none()
    | st.lists(st.tuples(*[st.floats(-1e6, 1e6, allow_nan=False)] * 2), max_size=3).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_ANNOTATIONS, max_size=14), st.lists(_ANNOTATIONS, max_size=6))
def test_nothing_stops_the_checks_and_rows_and_windows_are_told_once(
    rows: list[Annotation], trained: list[Annotation]
) -> None:
    known = DATASETS.get("qvhighlights")
    sheets = [sheet_of(rows, "val", known, 2.0), sheet_of(trained, "train", known, 2.0)]
    found = lint_together(sheets[:1], sheets[1:])
    leaked = [spot.where for each in found if each.against for spot in each.spots]
    assert len(set(leaked)) == len(leaked)
    videos = {known.source_of(row.video_id) for row in trained}
    assert len(leaked) == sum(known.source_of(row.video_id) in videos for row in rows)
    bad = [each for each in found if each.kind.name.startswith("window-")]
    told = sum(len(each.spots) for each in bad if each.kind.name != "window-twice")
    assert told <= sum(len(row.windows or ()) for row in rows)
    json.dumps([each.to_json() for each in found])


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(8)))
def test_the_order_of_rows_changes_no_count(order: list[int]) -> None:
    rows = [
        *_rows(CLEAN, CLEAN, MOMENTS, _moment((3, 1))),
        *[replace(CLEAN, video_id="a", qid=q) for q in (1, 1, 2, 3)],
    ]
    count: Callable[[list[Annotation]], dict[str, int]] = lambda some: {  # noqa: E731
        each.kind.name: len(each.spots)
        for each in lint(sheet_of(some, "val", DATASETS.get("custom"), 2.0))
    }
    assert count([rows[i] for i in order]) == count(rows)


# --- real files


def _real(shared: Path, *names: tuple[str, str]) -> list[Sheet]:
    return [_sheet(shared, *each) for each in names]


@cache
def _sheet(shared: Path, dataset: str, name: str) -> Sheet:
    known, path = DATASETS.get(dataset), shared / "annotations" / name
    return read_sheet(known.records(path), name, known, known.clip_len_at(path))


def _counts(findings: list[Finding]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(each.file, each.kind.name): (len(each.spots), each.videos) for each in findings}


TRAIN, TEST = (
    ("charades_sta", f"charades_sta/charades_{name}_release.jsonl") for name in ("train", "test")
)
LEAKY = ("charades_sta", "faulty/charades_train_with_146_test_rows.jsonl")


def test_clean_public_files_have_no_finding(shared: Path) -> None:
    names = ("train_release", "val_release", "test_with_gt")
    highlights = [("qvhighlights", f"qvhighlights/highlight_{name}.jsonl") for name in names]
    assert lint_together(_real(shared, *highlights)) == []
    blind = ("qvhighlights", "qvhighlights/highlight_test_release.jsonl")
    assert lint_together(_real(shared, blind)) == []
    assert lint_together(_real(shared, TRAIN, TEST)) == []
    captions = ("activitynet_captions", "activitynet_captions/activitynet_val_release.jsonl")
    assert lint_together(_real(shared, captions)) == []
    youtube = [
        ("youtube_highlights", f"youtube_highlights/youtube_highlight_{name}_release.jsonl")
        for name in ("train", "val")
    ]
    assert lint_together(_real(shared, *youtube)) == []


def test_the_146_test_rows_in_a_public_train_file_are_found(shared: Path) -> None:
    # specs/peers_formats_metrics.md finding 5: 146 rows of 50 test videos
    found = lint_together(_real(shared, LEAKY), _real(shared, TEST))
    assert _counts(found) == {(LEAKY[1], "leak-row"): (146, 50)}
    assert found[0].spots[0].where.endswith("line 12405")  # the rows beyond the usual 12,404
    # of the other side: those 50 videos have two queries more
    found = lint_together(_real(shared, TEST), _real(shared, LEAKY))
    expected = {(TEST[1], "leak-row"): (146, 50), (TEST[1], "leak-video"): (2, 2)}
    assert _counts(found) == expected


def test_the_341_empty_moments_of_ego4d_are_found(shared: Path) -> None:
    name = "faulty/nlq_val_with_zero_length_windows.jsonl"
    found = lint_together(_real(shared, ("custom", name)))
    # 341: specs/peers_formats_metrics.md §3.1. Of 59 ends after the video, counted by a script over
    # the raw file, two are of empty moments and two within 0.01 s.
    counts = {kind: count for (_, kind), (count, _) in _counts(found).items()}
    assert counts == {"window-empty": 341, "window-over-end": 55}
    assert [each.kind.level for each in found] == ["error", "warning"]


def test_known_oddities_of_public_files_are_warnings(shared: Path) -> None:
    tacos = [("tacos", f"tacos/tacos_{name}_release.jsonl") for name in ("train", "val", "test")]
    found = lint_together(_real(shared, *tacos))
    # 567 for test: specs/peers_formats_metrics.md §3.1; the others by a script over the raw files
    assert [len(each.spots) for each in found] == [1201, 516, 567]
    assert {(each.kind.name, each.kind.level) for each in found} == {("row-twice", "warning")}
    tvsum = [("tvsum", f"tvsum/tvsum_{name}_release.jsonl") for name in ("train", "val")]
    found = lint_together(_real(shared, *tvsum))
    assert {(each.kind.name, each.kind.level) for each in found} == {
        ("duration-was-clips", "warning")
    }
    assert [len(each.spots) for each in found] == [40, 10]


def test_splits_made_anew_leak_the_test_split_of_the_first_dataset(shared: Path) -> None:
    anew = [("charades_cd", "charades_cd/charades_train.json")]
    anew += [("charades_cg", "charades_cg/train.json")]
    found = lint_together(_real(shared, anew[0]), _real(shared, TEST))
    leaked = [len(each.spots) for each in found if each.against]
    assert sum(leaked) == 2575  # specs/tea_lmr_cqval_splits.md §5.2
    found = lint_together(_real(shared, anew[1]), _real(shared, TEST))
    assert sum(len(each.spots) for each in found if each.against) == 1960  # same place


def test_all_checks_are_documented(root: Path) -> None:
    told = (root / "docs" / "lint.md").read_text()
    for name in KINDS:
        kind = KINDS.get(name)
        assert f"| `{name}` | {kind.level} |" in told
    assert len(CHECKS) == len(set(CHECKS))
