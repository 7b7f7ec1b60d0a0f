"""Weights and sounds from names, the same for the public network and for ours. NumPy only."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 32_000
LENGTHS = {"two_seconds": 64_000, "odd": 35_987, "shortest": 9_920}
"""Sounds of the golden by name: samples of each; all are batches of two."""

CONSTANTS = (
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
)
"""Tensors that are no weights: they stay as the public code makes them."""


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    """Every float tensor but the constants: `offset + amplitude * u`, u uniform in [-1, 1)."""
    filled = {}
    for name, shape in shapes.items():
        if name in CONSTANTS or name.endswith("num_batches_tracked"):
            continue
        stream = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        offset, amplitude = _scale(name, shape)
        uniform = 2 * stream.random(tuple(shape), dtype=np.float32) - 1
        filled[name] = (np.float32(offset) + np.float32(amplitude) * uniform).astype(np.float32)
    return filled


def _scale(name: str, shape: Sequence[int]) -> tuple[float, float]:
    if name.startswith("bn0.running"):
        return (-30.0, 5.0) if name.endswith("mean") else (400.0, 100.0)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return 1.0, 0.2
    if len(shape) == 1:
        return 0.1, 0.1
    return 0.0, float((6 / np.prod(shape[1:])) ** 0.5)


def sound(name: str) -> NDArray[np.float32]:
    """A batch of two sounds in [-1, 1]: a swept chord, and one with silence and clicks."""
    time_s = np.arange(LENGTHS[name]) / RATE_HZ
    chord = sum(
        0.2 * np.sin(2 * np.pi * (hertz + 300 * time_s) * time_s) for hertz in (110, 997, 6421)
    )
    pulses = 0.8 * np.sin(2 * np.pi * 440 * time_s) * ((time_s * 5) % 1 < 0.2)
    pulses[:: RATE_HZ // 7] = 1.0
    return np.stack([chord, pulses]).astype(np.float32)
