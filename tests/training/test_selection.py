"""Which queries of a store a run works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_store import Annotations, write_store

from data.annotations.types import Annotation
from data.errors import UsageError
from data.store import Store
from training.selection import chosen, is_held_out, rows_of

ROWS = [
    Annotation(1, "a", "v1", extra={"domain": "BK", "news": {"VERB": ["walk"]}}),
    Annotation(2, "b", "v2", extra={"domain": "VU", "news": {"NOUN": ["hat"], "VERB": ["sit"]}}),
    Annotation(3, "c", "v3", extra={"domain": "VU", "tags": ["x", "y"], "round": 2}),
]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [1, 2, 3]),
        ({"domain": "VU"}, [2, 3]),
        ({"domain": ["BK", "VU"]}, [1, 2, 3]),
        ({"domain": "VU", "round": 2}, [3]),
        ({"news": "VERB"}, [1, 2]),
        ({"tags": "y"}, [3]),
    ],
)
def test_rows_are_chosen_by_their_other_fields(where: dict[str, Any], expected: list[int]) -> None:
    assert [row.qid for row in chosen(ROWS, where, "data.where", "val")] == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"domian": "BK"},
            r"data\.where: no row of split 'val' has a field 'domian'; did you mean 'domain'\?",
        ),
        ({"domain": "bk"}, r"data\.where: .*domain = 'bk'; there are: BK, VU"),
        ({"domain": ["VU", "XX"]}, r"domain = 'XX'; there are: BK, VU"),
        ({"domain": "BK", "round": 2}, r"no row of split 'val' has all of \{'domain': 'BK'"),
    ],
)
def test_what_no_row_has_is_refused_with_what_there_is(where: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(ROWS, where, "data.where", "val")


def test_the_held_out_videos_and_the_others_are_all_of_the_training_split(
    store: Store, splits: Annotations
) -> None:
    held = rows_of(store, "held_out", "train", 0.3, {}, "data.where")
    rest = rows_of(store, "train", "train", 0.3, {}, "data.where")
    assert {row.video_id for row in held}.isdisjoint(row.video_id for row in rest)
    assert sorted(row.video_id for row in [*held, *rest]) == sorted(
        row.video_id for row in splits["train"]
    )
    assert rows_of(store, "val", "train", 0.3, {}, "data.where") == splits["val"]


def test_a_larger_share_holds_out_the_same_videos_and_more() -> None:
    ids = [f"video-{i}" for i in range(4000)]
    some, more = ({id for id in ids if is_held_out(id, share)} for share in (0.1, 0.2))
    assert some < more
    # 0.1 ± 5 standard deviations of 4,000 draws
    assert abs(len(some) / len(ids) - 0.1) < 5 * (0.1 * 0.9 / len(ids)) ** 0.5


def test_nothing_held_out_is_an_error_that_says_how(store: Store) -> None:
    for missing in ("held_out", "valid"):
        with pytest.raises(
            UsageError,
            match=rf"'{missing}' is no split of .*allowed: .*train, val\. Name one of them "
            r".*or take some videos of 'train' with data\.hold_out=0\.1",
        ):
            rows_of(store, missing, "train", 0.0, {}, "data.where")
    with pytest.raises(UsageError, match=r"^data\.train: 'trian' is no .*did you mean 'train'"):
        rows_of(store, "trian", "trian", 0.0, {}, "data.where")
    with pytest.raises(UsageError, match=r"data\.hold_out=1e-09 leaves no video in 'held_out'"):
        rows_of(store, "held_out", "train", 1e-9, {}, "data.where")


def test_a_split_that_is_called_held_out_is_not_hidden(tmp_path: Path, splits: Annotations) -> None:
    store = write_store(tmp_path / "store", {"train": splits["train"], "held_out": splits["val"]})
    assert rows_of(store, "held_out", "train", 0.0, {}, "data.where") == splits["val"]
    with pytest.raises(UsageError, match=r"has a split 'held_out' of its own"):
        rows_of(store, "held_out", "train", 0.3, {}, "data.where")


def test_rows_without_fields_of_their_own_cannot_be_chosen_by_any(store: Store) -> None:
    with pytest.raises(UsageError, match=r"has a field 'domain'; its rows have no fields of their"):
        rows_of(store, "val", "train", 0.0, {"domain": "BK"}, "eval.where")
