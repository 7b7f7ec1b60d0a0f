"""Pictures whose motion is known: a texture of waves that shifts, turns and grows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 96, 128
_WAVES = ((0.21, 0.05, 0.3), (-0.08, 0.17, 1.1), (0.13, -0.24, 2.0), (0.05, 0.31, 0.7))
_COLOURS = ((0.9, 1.0, 0.8), (1.0, 0.7, 0.9), (0.8, 0.9, 1.0), (1.0, 1.0, 0.6))


def motion(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Displacement in pixels per frame of what is at (x, y)."""
    return 1.5 + 0.01 * (y - HEIGHT / 2), -0.75 + 0.012 * (x - WIDTH / 2)


def frames(count: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """uint8 RGB (count, height, width, 3)."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    made = []
    for _ in range(count):
        colours = 0.0
        for (across, down, phase), colour in zip(_WAVES, _COLOURS, strict=True):
            colours = colours + np.sin(across * x + down * y + phase)[..., None] * colour
        made.append(np.clip(128 + 28 * colours, 0, 255).round().astype(np.uint8))
        # The next picture shows at (x, y) what is here one displacement earlier.
        by_x, by_y = motion(x, y)
        x, y = x - by_x, y - by_y
    return np.stack(made)
