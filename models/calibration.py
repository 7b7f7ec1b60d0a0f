"""Constants that make an untrained network useful, measured on drawings that need no file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.identity import digest
from models.weights import Weights

__all__ = [
    "CALIBRATION_CLIPS",
    "Standardise",
    "calibrated_weights",
    "draw_shape",
    "example_sentences",
    "moving_shapes",
    "sounds",
]

_COLOURS = np.array(
    [
        (220, 40, 40),
        (40, 180, 60),
        (50, 80, 220),
        (235, 210, 40),
        (240, 140, 30),
        (150, 60, 190),
        (40, 200, 210),
        (240, 240, 240),
    ],
    dtype=np.uint8,
)
_SHAPES = ("circle", "square", "triangle", "bar")
_SOUNDS = ("tone", "sweep", "beats", "harmonics", "noise", "bursts")

CALIBRATION_CLIPS = 48
"""Drawings that constants are measured on."""

_SCALE_BITS = 4
_MEAN_STEPS = 16


class Standardise(nn.Module):
    """`(x - mean) * scale` per dimension, never trained.

    Args:
        mean: (D,) float32.
        scale: (D,) float32.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @classmethod
    def measured(cls, features: Tensor) -> Standardise:
        """The affine that gives `features` (n, D) about zero mean and unit variance.

        A dimension that hardly varies is left small instead of being blown up into noise. Constants
        are rounded coarsely (scale to 4 bits, mean to 1/16 of a standard deviation), far above the
        noise of float32 sums, so that another number of threads gives the same ones.
        """
        std = features.double().std(dim=0)
        scale = _rounded(1 / torch.maximum(std, 1e-3 * std.max()))
        step = 1 / (scale * _MEAN_STEPS)
        mean = torch.round(features.double().mean(dim=0) / step) * step
        return cls(mean.float(), scale.float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return (x - self.mean) * self.scale


def _rounded(values: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 2**_SCALE_BITS) / 2**_SCALE_BITS, exponent)


def calibrated_weights(weights: Weights, *measured_on: Any) -> Weights:
    """`weights` of a network whose outputs were calibrated.

    The hash names how the constants came about instead of their values: these follow from it, but
    may differ in a last bit between processors, which must not look like another network.

    Args:
        weights: of the network itself.
        measured_on: plain values that determine what the constants were measured on.
    """
    rule = ["standardise", 1, CALIBRATION_CLIPS, _SCALE_BITS, _MEAN_STEPS, *measured_on]
    return replace(weights, sha256=digest([weights.sha256, rule]))


def moving_shapes(seed: int, clips: int, frames: int, size: int) -> NDArray[np.uint8]:
    """Clips of one to three coloured shapes that move or rest on a dull background.

    Args:
        seed: which drawings.
        clips: number of clips.
        frames: frames of each.
        size: edge of the pictures in pixels.

    Returns:
        uint8 RGB, shape (clips, frames, size, size, 3).
    """
    random = np.random.Generator(np.random.PCG64(seed))
    video = np.empty((clips, frames, size, size, 3), dtype=np.uint8)
    for clip in video:
        clip[:] = random.integers(15, 205) + random.integers(-15, 16, 3)
        for _ in range(random.integers(1, 4)):
            colour = _COLOURS[random.integers(len(_COLOURS))]
            shape = _SHAPES[random.integers(len(_SHAPES))]
            radius = random.uniform(0.1, 0.22) * size
            start, speed = random.uniform(0.2, 0.8, 2), random.uniform(-0.4, 0.4, 2)
            speed = speed * (random.random() < 0.6)
            for index, picture in enumerate(clip):
                x, y = (start + speed * (index / max(frames - 1, 1) - 0.5)) * size
                draw_shape(picture, shape, colour, (x, y), radius)
    return video


def sounds(seed: int, clips: int, samples: int, rate_hz: int) -> NDArray[np.float32]:
    """One to three tones, sweeps, beats or noises at a time, over a faint noise.

    Args:
        seed: which sounds.
        clips: number of clips.
        samples: samples of each.
        rate_hz: samples per second.

    Returns:
        float32 in [-1, 1], shape (clips, samples).
    """
    random = np.random.Generator(np.random.PCG64(seed))
    time_s = np.arange(samples) / rate_hz
    made = np.empty((clips, samples), dtype=np.float32)
    for clip in made:
        sound = 10 ** random.uniform(-4, -2.5) * random.uniform(-1, 1, samples)
        for _ in range(random.integers(1, 4)):
            kind = _SOUNDS[random.integers(len(_SOUNDS))]
            sound += 10 ** random.uniform(-2, -0.4) * _sound(random, kind, time_s)
        clip[:] = sound / max(1.0, float(np.abs(sound).max()))
    return made


def _sound(
    random: np.random.Generator, kind: str, time_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """One sound in [-1, 1]."""
    pitch_hz = 80 * 100 ** random.random()
    rate_hz = random.uniform(1, 8)
    sweep = random.uniform(-0.5, 1.0) * pitch_hz if kind == "sweep" else 0.0
    tone = np.sin(2 * np.pi * (pitch_hz + sweep * time_s / 2) * time_s)
    beat = (time_s * rate_hz) % 1 < 0.3
    made: NDArray[np.float64] = {
        "tone": tone,
        "sweep": tone,
        "beats": tone * beat,
        "harmonics": np.tanh(4 * tone),
        "noise": random.uniform(-1, 1, len(time_s)),
        "bursts": random.uniform(-1, 1, len(time_s)) * beat,
    }[kind]
    return made


def draw_shape(
    picture: NDArray[np.uint8],
    shape: str,
    colour: NDArray[np.uint8],
    centre: tuple[float, float],
    radius: float,
) -> None:
    """Paint one shape into `picture` (H, W, 3), in place.

    Args:
        picture: uint8 RGB.
        shape: circle, square, triangle or bar.
        colour: uint8 (3,).
        centre: x, y in pixels.
        radius: half the extent in pixels.
    """
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - centre[0]) / radius, (y - centre[1]) / radius
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.9,
        "triangle": (y <= 0.9) & (abs(x) <= (y + 1) / 2),
        "bar": (abs(x) <= 1.1) & (abs(y) <= 0.35),
    }[shape]
    picture[inside] = colour


_WORDS = (
    ("a", "the", "one", "another"),
    ("red", "green", "blue", "yellow", "orange", "purple", "white", "dark", "small", "old"),
    ("circle", "square", "triangle", "star", "man", "woman", "dog", "car", "door", "picture"),
    ("moves", "stays", "is", "appears", "walks", "opens", "grows", "turns"),
    ("left", "right", "up", "down", "still", "away", "slowly", "again"),
)


def example_sentences(seed: int) -> list[str]:
    """Seeded plain sentences, e.g. "the red dog moves left"."""
    random = np.random.Generator(np.random.PCG64(seed))
    return [
        " ".join(words[random.integers(len(words))] for words in _WORDS)
        for _ in range(4 * CALIBRATION_CLIPS)
    ]
