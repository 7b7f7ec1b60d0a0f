from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models.retrieval.decode import Decoding, ranked, windows
from models.retrieval.types import Predictions


def predictions(*rows: tuple[float, float, float]) -> Predictions:
    """One sample of (start, end, probability) rows, in units of the grid."""
    logits = torch.tensor([[[math.log(p / (1 - p)), 0.0] for _, _, p in rows]])
    spans = torch.tensor([[[(s + e) / 2, e - s] for s, e, _ in rows]])
    return Predictions(logits, spans, torch.zeros(1, 1))


def rounded(found: tuple[tuple[float, float, float], ...]) -> list[tuple[float, float, float]]:
    return [tuple(round(x, 3) for x in row) for row in found]  # type: ignore[misc]


def test_windows_come_best_first_in_units_of_the_grid() -> None:
    found = ranked(predictions((0.1, 0.3, 0.2), (0.4, 0.9, 0.7)))
    torch.testing.assert_close(found, torch.tensor([[[0.4, 0.9, 0.7], [0.1, 0.3, 0.2]]]))


def test_equal_scores_keep_the_order_of_the_queries() -> None:
    found = ranked(predictions((0.1, 0.2, 0.5), (0.3, 0.4, 0.5), (0.5, 0.6, 0.5)))
    assert found[0, :, 0].tolist() == pytest.approx([0.1, 0.3, 0.5])


def test_the_grid_or_the_duration_is_the_unit() -> None:
    given = predictions((0.5, 1.0, 0.5))
    by_grid = windows(given, grid_s=20.0, duration_s=19.0)
    assert rounded(by_grid[0]) == [(10.0, 19.0, 0.5)]
    by_duration = windows(given, grid_s=20.0, duration_s=19.0, how=Decoding(unit="duration"))
    assert rounded(by_duration[0]) == [(9.5, 19.0, 0.5)]


def test_each_sample_has_its_own_grid() -> None:
    one = predictions((0.0, 0.5, 0.5))
    two = Predictions(one.logits.repeat(2, 1, 1), one.spans.repeat(2, 1, 1), one.saliency)
    found = windows(two, grid_s=[10.0, 30.0], duration_s=[10.0, 29.0])
    assert [sample[0][1] for sample in found] == pytest.approx([5.0, 15.0])


def test_windows_are_cut_to_the_video_unless_asked_not_to() -> None:
    given = predictions((-0.2, 1.2, 0.5))
    assert rounded(windows(given, grid_s=10.0)[0]) == [(0.0, 10.0, 0.5)]
    uncut = windows(given, grid_s=10.0, how=Decoding(clip=False))
    assert rounded(uncut[0]) == [(-2.0, 12.0, 0.5)]


def test_windows_are_cut_to_a_given_range_instead_of_the_duration() -> None:
    given = predictions((0.05, 1.4, 0.9))
    found = windows(given, grid_s=10.0, duration_s=9.0, how=Decoding(clip_s=(1.0, 11.0)))
    assert [window[:2] for window in found[0]] == [(1.0, 11.0)]


def test_released_decoding_keeps_four_decimals_then_rounds_halves_to_even_clips() -> None:
    # 0.499996 * 10 s is 5.0000 with four decimals: two and a half clips, so two
    given = predictions((0.1, 0.499996, 0.5), (0.3, 0.7, 0.4))
    found = windows(given, grid_s=10.0, clip_len_s=2.0, how=Decoding.released())
    assert rounded(found[0]) == [(0.0, 4.0, 0.5), (4.0, 8.0, 0.4)]


def test_the_fourth_decimal_is_that_of_the_product_in_single_precision() -> None:
    # the public code multiplies float32 tensors and prints them as f"{e:.4f}"
    end = 0.6832956671714783
    public = float(f"{torch.tensor(end) * 150:.4f}")
    assert public != round(end * 150, 4)
    (((_, found, _),),) = windows(
        predictions((0.0, end, 0.5)), grid_s=150.0, how=Decoding(decimals=4)
    )
    assert found == public


def test_a_window_that_rounding_moves_past_the_end_of_the_video_is_cut_again() -> None:
    # 25.5 s are twelve and three quarters of clips of 2 s, so that the last edge goes to 26 s
    given = predictions((0.3, 1.0, 0.9))
    released = Decoding.released()
    found = windows(given, grid_s=26.0, duration_s=25.5, clip_len_s=2.0, how=released)
    assert rounded(found[0]) == [(8.0, 25.5, 0.9)]
    public = replace(released, clip_s=(0.0, 150.0))  # `clip_ts` of the public code
    found = windows(given, grid_s=26.0, duration_s=25.5, clip_len_s=2.0, how=public)
    assert rounded(found[0]) == [(8.0, 26.0, 0.9)]


def test_rounding_needs_to_know_the_clip() -> None:
    with pytest.raises(ValueError, match="clip_len_s"):
        windows(predictions((0, 1, 0.5)), grid_s=1.0, how=Decoding(round_to_clip=True))


def test_suppression_drops_what_a_better_kept_window_covers() -> None:
    # the second is dropped by the first, so the third, which only the second covers, stays
    given = predictions((0.0, 0.4, 0.9), (0.1, 0.5, 0.8), (0.25, 0.65, 0.7), (0.8, 0.9, 0.1))
    found = windows(given, grid_s=1.0, how=Decoding(nms_iou=0.4))
    assert [row[2] for row in rounded(found[0])] == [0.9, 0.7, 0.1]
    everything = windows(given, grid_s=1.0)
    assert len(everything[0]) == 4


def test_a_window_that_a_better_one_overlaps_exactly_as_much_as_allowed_stays() -> None:
    # UniVTG's `temporal_nms` drops what overlaps more than its threshold; these two overlap 0.5
    given = predictions((0.0, 1.0, 0.9), (0.0, 0.5, 0.8))
    assert len(windows(given, grid_s=1.0, how=Decoding(nms_iou=0.5))[0]) == 2


def test_at_most_so_many_windows_are_kept() -> None:
    given = predictions((0.0, 0.4, 0.9), (0.1, 0.5, 0.8), (0.8, 0.9, 0.1))
    found = windows(given, grid_s=1.0, how=Decoding(nms_iou=0.4, keep=2))
    assert [row[2] for row in rounded(found[0])] == [0.9, 0.1]
