"""Decoded frames to upright RGB pixels through FFmpeg's own filters.

A graph `buffer -> [turn] -> scale -> format=rgb24 -> crop` gives exactly the bytes of
`ffmpeg -vf scale=W:H,crop=S:S:x:y -pix_fmt rgb24`, the decode path of the public CLIP and
SlowFast features; `frame.reformat`, PIL and torch do not (specs/feature_extractors.md §2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.video.checks import require
from data.video.select import Picture
from data.video.types import View

__all__ = ["Converter", "Geometry", "quarter_turns", "upright_size"]

_TURNS: dict[int, tuple[tuple[str, str], ...]] = {
    0: (),
    1: (("transpose", "cclock"),),
    2: (("hflip", ""), ("vflip", "")),
    3: (("transpose", "clock"),),
}
"""Filters that turn a frame upright, by counter-clockwise quarter turns: those of ffmpeg's
automatic rotation."""

_MAX_GRAPHS = 16
"""Graphs kept at once: a stream that changes its format more often rebuilds them."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of one conversion: scaled to `width` x `height`, then the square at (x, y) if any."""

    width: int
    height: int
    crop: tuple[int, int, int] | None

    @classmethod
    def of(cls, width: int, height: int, view: View) -> Geometry:
        """The geometry of `view` for an upright picture of `width` x `height`."""
        short = view.short_side
        if width < height:
            scaled = short, int(height * short / width)
        else:
            scaled = int(width * short / height), short
        offsets = int((scaled[0] - short) / 2), int((scaled[1] - short) / 2)
        return cls(*scaled, (short, *offsets) if view.crop else None)


def quarter_turns(rotation: int) -> int:
    """Counter-clockwise quarter turns that bring a frame with this display rotation upright.

    Args:
        rotation: degrees as `VideoFrame.rotation` gives them; other than multiples of 90 are
            rounded to the nearest.
    """
    return round(rotation / 90) % 4


def upright_size(width: int, height: int, rotation: int) -> tuple[int, int]:
    """Width and height after the frame was turned upright."""
    return (height, width) if quarter_turns(rotation) % 2 else (width, height)


class Converter:
    """Converts the frames of one video. One graph per view and input format is built and kept.

    The output size of a view is that of the first frame, also when a stream changes its
    resolution, so that the frames of a window always stack.
    """

    def __init__(self) -> None:
        self._av = require("av")
        self._graphs: dict[tuple[Any, ...], Any] = {}
        self._geometries: dict[View, Geometry] = {}

    def picture(self, frame: Any) -> Picture:
        """The frame (`av.VideoFrame`) as something that is converted on demand."""
        return partial(self._convert, frame)

    def rgb_picture(self, pixels: NDArray[np.uint8]) -> Picture:
        """Upright RGB pixels, shape (H, W, 3), of another decoder as a picture."""
        return lambda view: self._convert(self._av.VideoFrame.from_ndarray(pixels, "rgb24"), view)

    def _convert(self, frame: Any, view: View) -> NDArray[np.uint8]:
        graph = self._graph(frame, view)
        graph.vpush(frame)
        pixels: NDArray[np.uint8] = graph.vpull().to_ndarray()
        return pixels

    def _graph(self, frame: Any, view: View) -> Any:
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
            f":time_base=1/1000:pixel_aspect=1/1"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        )
        turns = quarter_turns(frame.rotation)
        key = (view, source, turns)
        if key not in self._graphs:
            if len(self._graphs) >= _MAX_GRAPHS:
                self._graphs.clear()
            size = upright_size(frame.width, frame.height, frame.rotation)
            self._graphs[key] = self._build(source, turns, self._geometry(*size, view))
        return self._graphs[key]

    def _geometry(self, width: int, height: int, view: View) -> Geometry:
        geometry = Geometry.of(width, height, view)
        if view.crop:
            return geometry
        return self._geometries.setdefault(view, geometry)

    def _build(self, source: str, turns: int, geometry: Geometry) -> Any:
        # Only the graph is returned: PyAV 18 crashes when a filter context outlives its graph.
        graph = self._av.filter.Graph()
        steps = [("buffer", source), *_TURNS[turns]]
        steps += [
            ("scale", f"{geometry.width}:{geometry.height}:flags=bicubic"),
            ("format", "rgb24"),
        ]
        if geometry.crop is not None:
            side, x, y = geometry.crop
            steps.append(("crop", f"{side}:{side}:{x}:{y}"))
        steps.append(("buffersink", ""))
        nodes = [graph.add(name, args or None) for name, args in steps]
        graph.link_nodes(*nodes).configure()
        return graph
