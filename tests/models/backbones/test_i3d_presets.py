"""Where the windows of I3D lie, and the rows that they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from data.grid import Grid
from models.backbones import create
from models.backbones.windows import CentredWindows, StrideWindows, Windows

VSLNET = StrideWindows(24.0, 24, 2)


def frames_asked_for(windows: Windows, duration_s: float, clip_len_s: float) -> Any:
    """Indices of frames after resampling, one line per window."""
    grid = Grid(duration_s, clip_len_s)
    times = windows.times(grid.starts_s, clip_len_s, duration_s)
    return np.round(times * windows.rate_fps - 0.5).astype(int)


def vslnet_windows(total: int, stride: int = 24) -> list[tuple[int, int]]:
    """The loop of 26hzhang/VSLNet 3793c625f2e2, prepare/extract_charades.py."""
    windows = []
    for start in range(0, total, stride):
        end = min(total - 1, start + stride)
        if end - start < stride:
            start = max(0, end - stride)
        windows.append((start, end))
    return windows


@pytest.mark.parametrize("duration_s", [1.05, 1.5, 2.0, 2.02, 2.6, 3.0, 30.3, 31.04, 59.999, 7.25])
@pytest.mark.parametrize(("rows", "clip_len_s"), [(2, 0.5), (1, 1.0)])
def test_the_rows_of_the_grid_are_the_first_rows_of_vslnet(
    duration_s: float, rows: int, clip_len_s: float
) -> None:
    asked = frames_asked_for(StrideWindows(24.0, 24, rows), duration_s, clip_len_s)
    public = vslnet_windows(int(np.floor(duration_s * 24 + 0.5)))
    count = Grid(duration_s, clip_len_s).n
    assert len(asked) == -(-count // rows) <= len(public)
    for line, (start, end) in zip(asked, public, strict=False):
        assert line.tolist() == list(range(start, end))


def test_a_video_shorter_than_a_window_gets_one_from_its_first_frame() -> None:
    assert frames_asked_for(VSLNET, 0.4, 0.5).tolist() == [list(range(24))]
    assert frames_asked_for(VSLNET, 0.01, 0.5).shape == (1, 24)


@pytest.mark.parametrize("preset", ["full", "grid"])
def test_the_grid_preset_has_one_window_about_the_centre_of_each_clip(preset: str) -> None:
    backbone = create("i3d", preset=preset, divisor=8)
    assert backbone.params() == create("i3d", divisor=8).params()
    times = backbone.clip_times(np.array([0.0, 4.0]), 2.0)
    np.testing.assert_allclose(times[1], (np.arange(100, 150) + 0.5) / 25)
    short = backbone.clip_times(np.array([0.0]), 0.5)  # frames -2..13 about frame 6.25
    np.testing.assert_allclose(short[0], (np.maximum(np.arange(-2, 14), 0) + 0.5) / 25)


def test_a_window_of_vslnet_gives_the_two_features_over_time_in_order() -> None:
    backbone = create("i3d", preset="vslnet", divisor=8, size=64, short_side=64)
    random = np.random.Generator(np.random.PCG64(3))
    frames = random.integers(0, 256, (2, 24, 64, 64, 3)).astype(np.uint8)
    rows = backbone.encode(frames)
    assert rows.shape == (2, 2, 128)
    mean = create(
        "i3d", preset="vslnet", rows_per_window=1, divisor=8, size=64, short_side=64
    ).encode(frames)
    np.testing.assert_allclose(rows.mean(axis=1), mean, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        maps = backbone.net.pooled(backbone.preprocess(torch.from_numpy(frames)))
    np.testing.assert_array_equal(rows[:, 1], maps[:, :, 1].mean((2, 3)))
    assert not np.allclose(rows[:, 0], rows[:, 1], atol=1e-3)


def test_a_batch_of_another_length_is_told_from_the_rows() -> None:
    net = create("i3d", preset="vslnet", divisor=8).net
    with pytest.raises(ValueError, match="16 frames give 1 features over time, not 2 rows"):
        net(torch.zeros(1, 3, 16, 32, 32))


@pytest.mark.parametrize("clip_len_s", [1.0, 2.0, 0.25])
def test_clips_of_another_length_are_refused_with_the_ways_out(clip_len_s: float) -> None:
    with pytest.raises(
        UsageError, match=r"2 rows each make clips of 0\.5 s.*clip_len_s: 0\.5.*preset: grid"
    ):
        VSLNET.times(np.zeros(1), clip_len_s, 9.0)


def test_windows_one_after_the_other_need_the_length_of_the_video() -> None:
    with pytest.raises(ValueError, match="need the duration"):
        VSLNET.times(np.zeros(1), 0.5, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"windows": "centered"}, "unknown windows 'centered'; did you mean 'centred'"),
        ({"window_frames": 8}, "window_frames 8; at least 9"),
        ({"rate_fps": 0.0}, "rate_fps 0.0; give frames per second"),
        ({"windows": "stride", "window_frames": 24, "rows_per_window": 3}, "allowed: 1 or 2"),
        ({"window_frames": 24, "rows_per_window": 2}, "'centred' give one row each"),
    ],
)
def test_windows_without_meaning_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        create("i3d", divisor=8, **options)


def test_the_recipe_of_a_backbone_says_which_windows() -> None:
    params = create("i3d", preset="vslnet", divisor=8).params()
    told = {key: params[key] for key in ("windows", "rate_fps", "frames", "rows")}
    assert told == {"windows": "stride", "rate_fps": 24.0, "frames": 24, "rows": 2}
    assert CentredWindows().params()["windows"] == "centred"
