"""`stretched`: the whole frame as a square, as torchvision's `Resize((side, side))` does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data.video.convert import Converter
from data.video.types import View


@pytest.mark.parametrize(("width", "height"), [(96, 54), (54, 96), (64, 64), (17, 40)])
def test_a_frame_is_resized_to_both_sides_whatever_its_shape(width: int, height: int) -> None:
    random = np.random.Generator(np.random.PCG64(0))
    pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    # Along the width first, as every Pillow before 13 did in one call (tests/golden/pictures).
    bicubic = Image.Resampling.BICUBIC
    wanted = Image.fromarray(pixels).resize((32, height), bicubic).resize((32, 32), bicubic)
    picture = Converter().rgb_picture(pixels)(View(32, False, "exact", "stretched"))
    np.testing.assert_array_equal(picture, np.asarray(wanted))


def test_nothing_of_the_frame_is_cut_off() -> None:
    """A frame that is red on its outer columns still is, which `cropped` would not show."""
    pixels = np.zeros((32, 128, 3), dtype=np.uint8)
    pixels[:, :16, 0] = pixels[:, -16:, 0] = 255
    converter = Converter().rgb_picture(pixels)
    stretched = converter(View(32, False, "exact", "stretched"))
    assert stretched[:, 0, 0].min() == stretched[:, -1, 0].min() == 255
    assert converter(View(32, False, "exact", "cropped"))[..., 0].max() == 0
