"""A short film of grey frames, as an honest user has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.video import Video

av = pytest.importorskip("av")

__all__ = ["film"]


def film(
    path: Path,
    *,
    name: str = "a",
    frames: int = 10,
    fps: int = 10,
    size: int = 64,
    container: str | None = None,
) -> Video:
    """MPEG-4."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            picture = np.full((size, size, 3), 20 * (index % 10), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return Video(name, path)
