"""The files of the datasets themselves: as many videos and queries as published.

Numbers: specs/tea_lmr_cqval_splits.md §5.1 and specs/peers_formats_metrics.md §3.1.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data.annotations import load_annotations
from data.annotations.mend import mended

FILES = [
    ("charades_sta", "charades_sta/charades_sta_train.txt", 5338, 12408),
    ("charades_sta", "charades_sta/charades_sta_test.txt", 1334, 3720),
    ("charades_sta", "charades_sta/charades_train_release.jsonl", 5336, 12404),
    ("charades_sta", "charades_sta/charades_test_release.jsonl", 1334, 3720),
    ("activitynet_captions", "activitynet_captions/val_1.json", 4917, 17505),
    ("activitynet_captions", "activitynet_captions/activitynet_val_release.jsonl", 4917, 17505),
    ("tacos", "tacos/tacos_train_release.jsonl", 75, 9790),
    ("tacos", "tacos/tacos_val_release.jsonl", 27, 4436),
    ("tacos", "tacos/tacos_test_release.jsonl", 25, 4001),
    ("tvsum", "tvsum/tvsum_train_release.jsonl", 40, 40),
    ("tvsum", "tvsum/tvsum_val_release.jsonl", 10, 10),
    ("youtube_highlights", "youtube_highlights/youtube_highlight_train_release.jsonl", 233, 233),
    ("youtube_highlights", "youtube_highlights/youtube_highlight_val_release.jsonl", 152, 152),
    ("charades_cd", "charades_cd/charades_train.json", 4564, 11071),
    ("charades_cd", "charades_cd/charades_val.json", 333, 859),
    ("charades_cd", "charades_cd/charades_test_iid.json", 333, 823),
    ("charades_cd", "charades_cd/charades_test_ood.json", 1442, 3375),
    ("charades_cg", "charades_cg/train.json", 3555, 8281),
    ("charades_cg", "charades_cg/novel_word.json", 580, 695),
    ("charades_cg", "charades_cg/novel_composition.json", 2480, 3442),
    ("charades_cg", "charades_cg/test_trivial.json", 1689, 3096),
]


@pytest.mark.parametrize(("dataset", "file", "videos", "queries"), FILES)
def test_a_real_file_has_the_published_numbers(
    dataset: str, file: str, videos: int, queries: int, shared: Path
) -> None:
    rows = load_annotations(dataset, shared / "annotations" / file)
    assert (len({row.video_id for row in rows}), len(rows)) == (videos, queries)
    assert all(row.duration_s for row in rows)


def test_the_text_and_the_rows_of_charades_sta_say_the_same(shared: Path) -> None:
    folder = shared / "annotations/charades_sta"
    text = load_annotations("charades_sta", folder / "charades_sta_test.txt")
    rows = load_annotations("charades_sta", folder / "charades_test_release.jsonl")
    # The rows were cut at the end of the video, and numbered from 12404.
    usable, report = mended(text)
    assert [row.qid for row in rows] == list(range(12404, 12404 + 3720))
    assert report.count("clamped") == 562
    assert [(row.query, row.video_id, row.duration_s, row.windows) for row in usable] == [
        (row.query, row.video_id, row.duration_s, row.windows) for row in rows
    ]


def test_moments_of_charades_sta_reach_out_of_2364_videos(shared: Path) -> None:
    # specs/tea_lmr_cqval_splits.md §2.1: 2,364 of 16,128 pairs
    folder = shared / "annotations/charades_sta"
    counts = [
        mended(load_annotations("charades_sta", folder / f"charades_sta_{split}.txt"))[1]
        for split in ("train", "test")
    ]
    assert sum(each.queries for each in counts) == 16128
    assert sum(each.count("clamped") for each in counts) == 2364


def test_three_queries_of_charades_cd_begin_after_their_video(shared: Path) -> None:
    # specs/tea_lmr_cqval_splits.md §2.1
    found = []
    for split in ("train", "val", "test_iid", "test_ood"):
        path = shared / f"annotations/charades_cd/charades_{split}.json"
        rows, report = mended(load_annotations("charades_cd", path))
        assert len(rows) == report.queries - report.count("left_out")
        found += [change.qid for change in report.changes if change.what == "left_out"]
    assert found == ["LEOL6_0", "AKKWU_0", "AKKWU_1"]


def test_empty_windows_of_nlq_are_dropped_and_counted(shared: Path) -> None:
    path = shared / "annotations/faulty/nlq_val_with_zero_length_windows.jsonl"
    rows, report = mended(load_annotations("custom", path))
    # specs/peers_formats_metrics.md §3.1: 341 of 3,874
    assert report.count("dropped") == report.count("left_out") == 341
    assert len(rows) == 3874 - 341


@pytest.mark.parametrize("split", ["train", "val"])
def test_qvhighlights_needs_no_mending(split: str, shared: Path) -> None:
    path = shared / f"annotations/qvhighlights/highlight_{split}_release.jsonl"
    rows = load_annotations("qvhighlights", path)
    same, report = mended(rows)
    assert all(one is other for one, other in zip(same, rows, strict=True))
    assert report.sentences() == []


def test_tvsum_has_four_videos_of_each_domain_for_training_and_twenty_annotators(
    shared: Path,
) -> None:
    for split, videos in (("train", 4), ("val", 1)):
        rows = load_annotations("tvsum", shared / f"annotations/tvsum/tvsum_{split}_release.jsonl")
        assert set(Counter(row.extra["domain"] for row in rows).values()) == {videos}
        for row in rows:
            assert row.clip_ids == tuple(range(row.extra["stated_duration"]))
            assert row.duration_s == 2.0 * len(row.clip_ids)
            assert {len(scores) for scores in row.saliency or ()} == {20}
            assert {score for scores in row.saliency or () for score in scores} <= {1, 2, 3, 4, 5}


def test_youtube_highlights_has_the_published_numbers_of_videos_by_domain(shared: Path) -> None:
    folder = shared / "annotations/youtube_highlights"
    names = ("skiing", "surfing", "dog", "gymnastics", "skating", "parkour")
    published = {"train": (67, 53, 39, 33, 23, 18), "val": (50, 42, 16, 23, 10, 11)}
    for split, counts in published.items():
        path = folder / f"youtube_highlight_{split}_release.jsonl"
        rows = load_annotations("youtube_highlights", path)
        assert Counter(row.extra["domain"] for row in rows) == dict(zip(names, counts, strict=True))
        for row in rows:
            assert row.windows is None
            assert row.clip_spans_s is not None
            assert len(row.clip_spans_s) == len(row.saliency or ())
            # Clips have about 100 frames; the last ones of a video may be cut.
            frames = [(end - start) * row.extra["fps"] for start, end in row.clip_spans_s]
            assert 41 <= round(min(frames), 6) <= round(max(frames), 6) <= 138
    assert all((1.0,) in (row.saliency or ()) for row in rows)  # in every video of validation


def test_novelties_of_charades_cg_stay_with_their_query(shared: Path) -> None:
    folder = shared / "annotations/charades_cg"
    words = load_annotations("charades_cg", folder / "novel_word.json")
    kinds: Counter[str] = Counter(part for row in words for part in row.extra["news"])
    # specs/tea_lmr_cqval_splits.md §5.3: queries with a new word of each part of speech, and pairs
    assert (kinds["NOUN"], kinds["VERB"], kinds["ADV"], kinds["ADJ"]) == (475, 120, 50, 50)
    compositions = load_annotations("charades_cg", folder / "novel_composition.json")
    pairs: Counter[str] = Counter(
        kind for row in compositions for kind, found in row.extra["novels"].items() for _ in found
    )
    assert pairs == {"v-adv": 2105, "v-n": 2055, "p-n": 1182, "n-n": 80, "a-n": 23}
