"""Putting items together until they fill a batch."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from data.store.types import ItemKey
from pipeline.shared_batches import together
from pipeline.stage import Item


def grouped(sizes: list[int], batch_size: int) -> list[list[int]]:
    items = [Item(ItemKey(str(n), "0" * 64)) for n in range(len(sizes))]
    groups = together(items, lambda item: sizes[int(item.key.id)], batch_size)
    return [[sizes[int(item.key.id)] for item in group] for group in groups]


def test_parts_that_fill_a_batch_go_alone_and_at_once() -> None:
    assert grouped([64, 64, 64, 6], 64) == [[64], [64], [64], [6]]


def test_short_videos_and_ends_of_long_ones_fill_batches_together() -> None:
    assert grouped([64, 6, 30, 34, 28, 30], 64) == [[64], [6, 30, 28], [34, 30]]


def test_videos_of_the_length_of_charades_fill_nine_tenths_of_a_batch_and_more() -> None:
    # 30.6 s on average, between 2 and 194 (specs/datasets: Charades-STA), one caption a second
    sizes = [(7 * n) % 57 + 3 for n in range(500)]
    groups = grouped(sizes, 64)
    assert sum(sizes) / (64 * len(groups)) > 0.95


@given(st.lists(st.integers(0, 100), max_size=200), st.integers(1, 70))
@settings(max_examples=200, deadline=None)
def test_each_item_is_in_one_group_and_no_group_is_more_than_a_batch(
    sizes: list[int], batch_size: int
) -> None:
    groups = grouped(sizes, batch_size)
    assert sorted(size for group in groups for size in group) == sorted(sizes)
    for group in groups:
        assert len(group) == 1 or sum(max(1, size) for size in group) <= batch_size
