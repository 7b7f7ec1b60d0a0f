from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data.errors import UsageError
from models.calibration import draw_shape
from models.captioners import CaptionRequest, create
from models.captioners.pixel import describe

RED, BLUE = np.array([220, 40, 40], np.uint8), np.array([50, 80, 230], np.uint8)


def picture(*shapes: tuple[str, NDArray[np.uint8], float, float, float]) -> NDArray[np.uint8]:
    """96 x 96 on dark grey; shapes as (shape, colour, x, y, radius) in shares of the picture."""
    made = np.full((96, 96, 3), 70, dtype=np.uint8)
    for shape, colour, x, y, radius in shapes:
        draw_shape(made, shape, colour, (96 * x, 96 * y), 96 * radius)
    return made


def of(*pictures: NDArray[np.uint8]) -> str:
    return describe(np.stack(pictures))


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "bar"])
def test_colour_shape_and_place_are_named(shape: str) -> None:
    still = picture((shape, RED, 0.2, 0.5, 0.15))
    assert of(still, still) == (
        f"A red {shape} is on the left, staying still. The background is dark grey."
    )


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [
        (0.5, 0.5, "in the centre"),
        (0.8, 0.5, "on the right"),
        (0.5, 0.2, "at the top"),
        (0.2, 0.8, "at the bottom left"),
    ],
)
def test_places_are_thirds_of_the_picture(x: float, y: float, place: str) -> None:
    assert f"is {place}," in of(picture(("circle", BLUE, x, y, 0.12)))


@pytest.mark.parametrize(
    ("dx", "dy", "growth", "motion"),
    [
        (0.1, 0.02, 1, "moving right"),
        (-0.1, 0, 1, "moving left"),
        (0, 0.1, 1, "moving down"),
        (0, -0.1, 1, "moving up"),
        (0, 0, 1.3, "growing"),
        (0, 0, 0.7, "shrinking"),
        (0, 0, 1, "staying still"),
    ],
)
def test_motion_is_told_from_two_frames(dx: float, dy: float, growth: float, motion: str) -> None:
    before = picture(("circle", RED, 0.5, 0.5, 0.15))
    after = picture(("circle", RED, 0.5 + dx, 0.5 + dy, 0.15 * growth))
    assert f", {motion}." in of(before, after)


def test_a_shape_that_was_not_there_appears_and_an_empty_picture_is_described() -> None:
    empty, full = picture(), picture(("circle", RED, 0.5, 0.5, 0.15))
    assert "appearing" in of(empty, full)
    assert of(full, empty) == "Nothing is to be seen on the dark grey background."


def test_the_larger_of_two_shapes_is_named_first() -> None:
    both = picture(("square", BLUE, 0.75, 0.75, 0.18), ("circle", RED, 0.25, 0.25, 0.12))
    text = of(both, both)
    assert text.index("blue square") < text.index("red circle")


def test_a_busy_picture_is_described_by_its_colours_and_light() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    frames = random.integers(0, 256, (2, 60, 100, 3)).astype(np.uint8)
    text = describe(frames)
    assert text.startswith("A detailed picture, mostly ")
    assert text.endswith("of medium brightness. There is movement.")
    assert describe(frames[[0, 0]]).endswith("Little moves.")


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (3, 3), (17, 9)])
def test_no_size_of_picture_makes_it_fail(size: tuple[int, int]) -> None:
    random = np.random.Generator(np.random.PCG64(1))
    for _ in range(5):
        assert describe(random.integers(0, 256, (2, *size, 3)).astype(np.uint8)).endswith(".")


def test_results_carry_status_and_counts() -> None:
    frames = np.stack([picture(("circle", RED, 0.2, 0.5, 0.15))] * 2)
    (result,) = create("pixel").caption([CaptionRequest(frames, "Describe it.", 1.0, "v:0")])
    assert (result.status, result.finish_reason, result.flags) == ("ok", "stop", ())
    assert result.new_tokens == len(result.text.split())


def test_weights_for_a_captioner_without_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="has no weights"):
        create("pixel", "some.safetensors")
