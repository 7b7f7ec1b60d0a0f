"""Small real films whose brightness says which second it is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

FPS = 10


def film(path: Path, levels: list[int]) -> None:
    """One second of each grey."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, level in enumerate(np.repeat(levels, FPS)):
            picture = np.full((48, 64, 3), level, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
