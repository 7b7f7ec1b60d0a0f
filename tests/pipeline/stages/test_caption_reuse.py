"""What counts as hardly different."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from data.store.types import ItemKey
from pipeline.stages.caption_reuse import Glance, ReuseOptions, Reuser, input_hash

KEY = ItemKey("v", "0" * 64)


def noise(seed: int, height: int = 90, width: int = 160, k: int = 1) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (k, height, width, 3), dtype=np.uint8)


def flat(*colour: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (1, 90, 160, 3)).copy()


def literal_dhash(frame: NDArray[np.uint8]) -> list[bool]:
    """As it is described: 9 x 8 areas in grey, each compared with its right neighbour."""
    height, width = frame.shape[:2]
    bits = []
    for row in range(8):
        strip = frame[row * height // 8 : (row + 1) * height // 8]
        cells = [strip[:, i * width // 9 : (i + 1) * width // 9] for i in range(9)]
        grey = [
            0.299 * cell[..., 0].mean() + 0.587 * cell[..., 1].mean() + 0.114 * cell[..., 2].mean()
            for cell in cells
        ]
        bits += [left > right for left, right in pairwise(grey)]
    return bits


@pytest.mark.parametrize(("height", "width"), [(90, 160), (336, 336), (161, 97), (9, 9)])
def test_the_hash_is_the_difference_hash_of_nine_by_eight_areas(height: int, width: int) -> None:
    frames = noise(height, height, width, k=2)
    bits = Glance.of(frames).bits
    assert bits.tolist() == [literal_dhash(frame) for frame in frames]


def test_pictures_smaller_than_the_areas_can_be_compared() -> None:
    glance = Glance.of(noise(1, 4, 5))
    assert (glance.bits_from(glance), glance.change_from(glance)) == (0, 0)


def test_black_and_white_have_the_same_hash_and_are_told_apart_by_colour() -> None:
    black, white = Glance.of(flat(0, 0, 0)), Glance.of(flat(255, 255, 255))
    assert black.bits_from(white) == 0
    assert black.change_from(white) == 255


def test_of_several_frames_the_one_that_differs_most_counts() -> None:
    one = np.concatenate([noise(1), noise(2)])
    other = np.concatenate([noise(1), noise(3)])
    difference = np.sum(np.array(literal_dhash(noise(2)[0])) != literal_dhash(noise(3)[0]))
    assert Glance.of(one).bits_from(Glance.of(other)) == difference > 0


@pytest.mark.parametrize(
    ("options", "served"),
    [
        ({"kind": "near"}, True),
        ({"kind": "exact"}, False),
        ({"kind": "off"}, False),
        ({"kind": "near", "most_change": 2}, False),
        ({"kind": "near", "longest_s": 0.5}, False),
    ],
)
def test_a_slightly_brighter_picture_is_near_and_not_equal(
    options: dict[str, object], served: bool
) -> None:
    reuser = Reuser(ReuseOptions.model_validate(options))
    frames = noise(1) // 2
    for unit, shown in enumerate((frames, frames + 3)):
        found = reuser.source_of(KEY, unit, float(unit), shown, input_hash(shown))
    assert (found is not None) == served


def test_bits_that_differ_are_counted_against_the_limit() -> None:
    frames = np.full((1, 80, 90, 3), 100, dtype=np.uint8)
    changed = frames.copy()
    changed[:, :10, :10] += 8  # brighter than its right neighbour: one bit
    near = ReuseOptions(kind="near", most_bits=0, most_change=255)
    for most, served in ((0, False), (1, True)):
        reuser = Reuser(near.model_copy(update={"most_bits": most}))
        reuser.source_of(KEY, 0, 0.0, frames, input_hash(frames))
        found = reuser.source_of(KEY, 1, 1.0, changed, input_hash(changed))
        assert (found is not None) == served
        assert found is None or (found.unit, found.bits) == (0, 1)


def test_the_hash_of_an_input_tells_shapes_apart_and_not_memory_layouts() -> None:
    frames = noise(1, 6, 4)
    assert input_hash(frames) == input_hash(np.asfortranarray(frames))
    assert input_hash(frames) != input_hash(frames.reshape(1, 4, 6, 3))
    assert len(input_hash(frames)) == 32
