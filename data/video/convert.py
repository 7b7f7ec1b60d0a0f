"""Decoded frames to upright RGB pixels through FFmpeg's own filters.

A graph `buffer -> [turn] -> scale -> format=rgb24 -> crop` gives exactly the bytes of
`ffmpeg -vf scale=W:H,crop=S:S:x:y -pix_fmt rgb24`, the decode path of the public CLIP and
SlowFast features; `frame.reformat`, PIL and torch do not (specs/feature_extractors.md §2.0).

Mode "fast" gives the same picture in about a third of the time: only the part of the frame that the
crop keeps is scaled, by averaging areas, and colours are computed by the routine for BGR, which has
vector instructions where that for RGB has none; swapping the channels back costs next to nothing.

Views of vision-language models (`View.fit`) are converted at the size of the frame, as
`ffmpeg -pix_fmt rgb24` does, and resized by PIL (`data.video.fits`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.video.checks import require
from data.video.fits import fit_picture, within_size
from data.video.select import Picture
from data.video.types import Mode, View

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
    """Sizes of one conversion: scaled to `width` x `height`, then the square at (x, y) if any.

    `region`, if any, is cut out before scaling: (width, height, x, y) of the upright frame.
    `fine_colours` computes colours for each pixel of the scaled picture, not for each pair: swscale
    does so wherever the width is odd, so a region of such a picture must, too.
    """

    width: int
    height: int
    crop: tuple[int, int, int] | None
    region: tuple[int, int, int, int] | None = None
    fine_colours: bool = False

    @classmethod
    def of(cls, width: int, height: int, view: View) -> Geometry:
        """The geometry of `view` for an upright picture of `width` x `height`."""
        short = view.short_side
        if width < height:
            scaled = short, int(height * short / width)
        else:
            scaled = int(width * short / height), short
        offsets = int((scaled[0] - short) / 2), int((scaled[1] - short) / 2)
        whole = cls(*scaled, (short, *offsets) if view.crop else None)
        return whole._cut(width, height) if view.mode == "fast" else whole

    def _cut(self, width: int, height: int) -> Geometry:
        """The same pixels from the smallest region that scales as the whole frame does."""
        if self.crop is None:
            return self
        side, x, y = self.crop
        if x > 0:
            start, length, begin, extent = _aligned(width, self.width, x, side)
            region = length, height, start, 0
            fine = self.width % 2 == 1
            return Geometry(extent, self.height, (side, x - begin, y), region, fine)
        if y > 0:
            start, length, begin, extent = _aligned(height, self.height, y, side)
            region = width, length, 0, start
            return Geometry(self.width, extent, (side, x, y - begin), region)
        return self


_MARGIN = 24
"""Pixels of the scaled picture that a region may exceed the crop by, on each side."""

_REACH = 2
"""Pixels that the filter needs beyond the crop."""

_CLOSE = 0.06
"""Pixels of the frame that make no difference between two regions; half a grey level of noise."""


def _aligned(source: int, scaled: int, offset: int, side: int) -> tuple[int, int, int, int]:
    """The region that is cut out along the long side before scaling.

    Colours have half the resolution, in the frame and in what is scaled, so all four numbers are
    even (but for the ends of the frame). Such a region seldom begins and ends exactly where pixels
    of the scaled picture do; the one that is closest, then smallest, is taken.

    Args:
        source: length of the frame.
        scaled: length of the whole frame after scaling.
        offset: where the crop begins in the scaled frame.
        side: length of the crop.

    Returns:
        start and length in the frame, start and length in the scaled frame.
    """
    scale = source / scaled

    def even(at: int) -> int:
        return source if at == scaled else min(2 * round(at * scale / 2), source)

    def miss(at: int) -> int:
        return math.ceil(abs(even(at) - at * scale) / _CLOSE)

    begins = range(offset % 2 + offset - _MARGIN, offset - _REACH + 1, 2)
    last = offset + side
    ends = range(last % 2 + last + _REACH, last + _MARGIN + 1, 2)
    candidates = [
        (max(miss(begin), miss(end)), end - begin, begin, end)
        for begin in sorted({max(0, each) for each in begins})
        for end in sorted({min(scaled, each) for each in ends})
    ]
    _, extent, begin, end = min(candidates)
    return even(begin), even(end) - even(begin), begin, extent


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
        self._sizes: dict[View, tuple[int, int]] = {}

    def picture(self, frame: Any) -> Picture:
        """The frame (`av.VideoFrame`) as something that is converted on demand."""
        return partial(self._convert, frame)

    def rgb_picture(self, pixels: NDArray[np.uint8]) -> Picture:
        """Upright RGB pixels, shape (H, W, 3), of another decoder as a picture."""

        def picture(view: View) -> NDArray[np.uint8]:
            if view.fit != "scaled":
                return self._fitted(pixels, view)
            return self._convert(self._av.VideoFrame.from_ndarray(pixels, "rgb24"), view)

        return picture

    def _convert(self, frame: Any, view: View) -> NDArray[np.uint8]:
        graph = self._graph(frame, view)
        graph.vpush(frame)
        pixels: NDArray[np.uint8] = graph.vpull().to_ndarray()
        return pixels if view.fit == "scaled" else self._fitted(pixels, view)

    def _fitted(self, pixels: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
        size = within_size(pixels.shape[1], pixels.shape[0], view.short_side)
        return fit_picture(pixels, view, self._sizes.setdefault(view, size))

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
            if view.fit != "scaled":
                steps = _steps(turns, Geometry(*size, None), "exact")
            else:
                steps = _steps(turns, self._geometry(*size, view), view.mode)
            self._graphs[key] = self._build(source, steps)
        return self._graphs[key]

    def _geometry(self, width: int, height: int, view: View) -> Geometry:
        geometry = Geometry.of(width, height, view)
        if view.crop:
            return geometry
        return self._geometries.setdefault(view, geometry)

    def _build(self, source: str, steps: Sequence[tuple[str, str]]) -> Any:
        # Only the graph is returned: PyAV 18 crashes when a filter context outlives its graph.
        graph = self._av.filter.Graph()
        if hasattr(graph, "threads"):  # older PyAV leaves it to FFmpeg
            # One core per decoding child: else each graph keeps as many threads as there are cores.
            graph.threads = 1
        nodes = [
            graph.add(name, args or None)
            for name, args in [("buffer", source), *steps, ("buffersink", "")]
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def _steps(turns: int, geometry: Geometry, mode: Mode) -> list[tuple[str, str]]:
    """The filters from a frame to the pixels of a view."""
    steps = list(_TURNS[turns])
    if geometry.region is not None:
        steps.append(("crop", ":".join(str(each) for each in (*geometry.region, "exact=1"))))
    scaler, colours = _SCALERS[mode]
    flags = scaler + "+full_chroma_int" * geometry.fine_colours
    steps.append(("scale", f"{geometry.width}:{geometry.height}:flags={flags}"))
    steps.append(("format", colours))
    if geometry.crop is not None:
        side, x, y = geometry.crop
        steps.append(("crop", f"{side}:{side}:{x}:{y}"))
    if colours != "rgb24":
        steps += [("scale", ""), ("format", "rgb24")]
    return steps


_SCALERS: dict[Mode, tuple[str, str]] = {"exact": ("bicubic", "rgb24"), "fast": ("area", "bgr24")}
"""Filter of swscale and the pixel format that it writes."""
