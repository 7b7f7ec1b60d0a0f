"""The random networks of the embedded default must show what is in a picture (DESIGN §8).

Nearest neighbours by cosine among drawings of one shape; the drawings are not those that the
networks were calibrated on.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.backbones import create
from models.calibration import draw_shape

COLOURS = np.array([(200, 30, 60), (60, 160, 40), (30, 60, 200), (230, 200, 60)], dtype=np.uint8)
SHAPES = ("circle", "triangle", "bar")
DIRECTIONS = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])


def drawings(count: int, frames: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One shape per clip on a dull background; labels are (colour, shape, direction)."""
    random = np.random.Generator(np.random.PCG64(seed))
    labels = np.stack([random.integers(n, size=count) for n in (4, 3, 5)], axis=1)
    video = np.empty((count, frames, 64, 64, 3), dtype=np.uint8)
    for clip, (colour, shape, direction) in zip(video, labels, strict=True):
        clip[:] = random.integers(30, 180)
        start, radius = random.uniform(0.35, 0.65, 2), random.uniform(9, 14)
        for index, picture in enumerate(clip):
            along = 0.4 * (index / max(frames - 1, 1) - 0.5)
            x, y = 64 * (start + DIRECTIONS[direction] * along)
            draw_shape(picture, SHAPES[shape], COLOURS[colour], (x, y), radius)
    return video, labels


def accuracies(name: str, count: int, frames: int) -> dict[str, float]:
    """Share of drawings whose nearest neighbour has the same label, for every kind of label."""
    video, labels = drawings(count, frames, seed=99)
    backbone = create(name, preset="tiny")
    features = np.concatenate(
        [backbone.encode(each) for each in np.array_split(video, count // 16)]
    )
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similar = features @ features.T
    np.fill_diagonal(similar, -1)
    same = labels[similar.argmax(axis=1)] == labels
    return dict(zip(("colour", "shape", "direction"), same.mean(axis=0).tolist(), strict=True))


# Chance is 0.25 for colour, 0.33 for shape, 0.2 for direction. Each bound is about three standard
# errors below what was measured.
@pytest.mark.parametrize(
    ("name", "count", "frames", "at_least"),
    [
        ("clip", 240, 1, {"colour": 0.9, "shape": 0.45}),
        ("slowfast", 64, 32, {"colour": 0.4, "shape": 0.4}),
        ("i3d", 96, 16, {"colour": 0.4, "direction": 0.4}),
    ],
)
def test_neighbours_of_a_drawing_are_drawings_of_the_same_thing(
    name: str, count: int, frames: int, at_least: dict[str, float]
) -> None:
    found = accuracies(name, count, frames)
    assert all(found[label] >= bound for label, bound in at_least.items()), found
