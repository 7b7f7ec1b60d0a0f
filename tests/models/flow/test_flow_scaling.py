from __future__ import annotations

import pytest
import torch

from data.errors import UsageError
from models.flow import SCALINGS

FLOW = torch.tensor([-30.0, -20.0, -1.0, 0.0, 0.05, 1.0, 20.0, 30.0])


def test_deepmind_clips_at_20_pixels_and_divides() -> None:
    expected = torch.tensor([-1.0, -1.0, -0.05, 0.0, 0.0025, 0.05, 1.0, 1.0])
    torch.testing.assert_close(SCALINGS.get("deepmind")(FLOW), expected)


def test_v_iashin_goes_by_256_levels() -> None:
    """Clamp, ToUInt8, ScaleTo1_1 of v-iashin/video_features, models/transforms.py, by hand."""
    # 128 + 6.375 f: -20 -> 0.5 -> 0 (to even), -1 -> 121.625 -> 122, 0.05 -> 128.3 -> 128,
    # 1 -> 134.375 -> 134, 20 -> 255.5 -> 256 (to even)
    levels = torch.tensor([0.0, 0.0, 122.0, 128.0, 128.0, 134.0, 256.0, 256.0])
    torch.testing.assert_close(SCALINGS.get("v-iashin")(FLOW), 2 * levels / 255 - 1)


def test_an_unknown_scaling_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'deepmind'"):
        SCALINGS.get("deepmin")
