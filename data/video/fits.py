"""Frames as pictures of vision-language models: what PIL makes of them, to the last grey level.

The public code of those models resizes with PIL: bicubic with antialiasing, first along the width
and then along the height, each time to whole grey levels. swscale, torch and OpenCV give others,
and so does Pillow 13 where the other order is cheaper; here it is always this one.
PIL does the work here, too, but along the width only where the frame is: what is added above and
below a frame is one colour before that step, and the same colour after it.

In mode "fast", only the part of the picture that is kept, or can see a tall frame, is resized;
numbers of PIL's filter then start elsewhere and are rounded otherwise, by one or two grey levels in
a few pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.video.checks import require
from data.video.types import Fit, View

__all__ = ["fit_picture", "within_size"]

Pixels = NDArray[np.uint8]

_REACH = 2.0
"""Half the width of the bicubic filter, in pixels of the smaller picture."""


def fit_picture(pixels: Pixels, view: View, size: tuple[int, int] | None = None) -> Pixels:
    """The picture that a model sees.

    Args:
        pixels: upright RGB frame at its own size, (H, W, 3).
        view: of a `fit` other than "scaled".
        size: width and height for "within", where an earlier frame of the video decided them.
    """
    return _FITS[view.fit](pixels, view, size)


def within_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a picture made smaller until its long side is at most `side`."""
    long = max(width, height)
    if long <= side:
        return width, height
    return max(1, round(width * side / long)), max(1, round(height * side / long))


def _padded(pixels: Pixels, view: View, size: tuple[int, int] | None) -> Pixels:
    """On a square of the background: LLaVA's `expand2square`, then `CLIPImageProcessor`."""
    del size
    height, width = pixels.shape[:2]
    picture, side = _image(pixels), view.short_side
    if width > height:
        # The first of PIL's two steps; the rows that are still missing would not change in it.
        picture = _resized(picture, side, height)
        picture = _on(picture, (side, width), view.background)
    elif width < height and view.mode == "fast":
        return _band(picture, view)
    elif width < height:
        picture = _on(picture, (height, height), view.background)
    return np.asarray(_resized(picture, side, side))


def _band(picture: Any, view: View) -> Pixels:
    """A tall frame `_padded`, of which only the columns that can see the frame are resized."""
    (width, height), side = picture.size, view.short_side
    scale, start = height / side, (height - width) // 2
    reach = _REACH * max(scale, 1.0) + 1
    first = max(0, math.floor((start - reach) / scale))
    last = min(side, math.ceil((start + width + reach) / scale))
    # In pixels of the square: what the filter needs for these columns.
    begin = max(0, math.floor(first * scale - reach))
    end = min(height, math.ceil(last * scale + reach))
    band = _on(picture, (end - begin, height), view.background, (start - begin, 0))
    box = (first * scale - begin, 0.0, last * scale - begin, float(height))
    seen = _resized(band, last - first, side, box)
    return np.asarray(_on(seen, (side, side), view.background, (first, 0)))


def _on(
    picture: Any,
    size: tuple[int, int],
    background: tuple[int, int, int],
    at: tuple[int, int] | None = None,
) -> Any:
    """The picture on a larger one of the background, at the centre if no place is said."""
    larger = _image_module().new("RGB", size, background)
    centre = (size[0] - picture.width) // 2, (size[1] - picture.height) // 2
    larger.paste(picture, centre if at is None else at)
    return larger


def _cropped(pixels: Pixels, view: View, size: tuple[int, int] | None) -> Pixels:
    """The square at the centre of the short side resized: torchvision's `Resize`, `CenterCrop`."""
    del size
    height, width = pixels.shape[:2]
    side = view.short_side
    short = min(width, height)
    wide, tall = int(side * width / short), int(side * height / short)
    # torchvision rounds halves to even, as Python does.
    left, top = round((wide - side) / 2.0), round((tall - side) / 2.0)
    if view.mode == "fast":
        across, down = width / wide, height / tall
        box = (left * across, top * down, (left + side) * across, (top + side) * down)
        return np.asarray(_resized(_image(pixels), side, side, box))
    resized = np.asarray(_resized(_image(pixels), wide, tall))
    return resized[top : top + side, left : left + side]


def _stretched(pixels: Pixels, view: View, size: tuple[int, int] | None) -> Pixels:
    """The whole frame as a square: torchvision's `Resize` to two sides."""
    del size
    return np.asarray(_resized(_image(pixels), view.short_side, view.short_side))


def _within(pixels: Pixels, view: View, size: tuple[int, int] | None) -> Pixels:
    """Smaller, never larger; the size of a video's pictures is that of its first frame."""
    height, width = pixels.shape[:2]
    wanted = size or within_size(width, height, view.short_side)
    return pixels if wanted == (width, height) else np.asarray(_resized(_image(pixels), *wanted))


def _image_module() -> Any:
    return require("PIL.Image")


def _image(pixels: Pixels) -> Any:
    return _image_module().fromarray(np.ascontiguousarray(pixels))


def _resized(
    picture: Any, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Any:
    """Along the width, then along the height, as PIL always did before Pillow 13, which takes the
    cheaper order and so gives other grey levels.

    Args:
        picture: of PIL.
        width: of the result.
        height: of the result.
        box: what of the picture is resized, (left, top, right, bottom); None: all of it.
    """
    bicubic = _image_module().Resampling.BICUBIC
    left, top, right, bottom = box or (0.0, 0.0, float(picture.width), float(picture.height))
    reach = _REACH * max((bottom - top) / height, 1.0) + 1
    first, last = max(0, math.floor(top - reach)), min(picture.height, math.ceil(bottom + reach))
    if (first, last) != (0, picture.height):
        picture = picture.crop((0, first, picture.width, last))
    picture = picture.resize((width, last - first), bicubic, (left, 0.0, right, last - first))
    return picture.resize((width, height), bicubic, (0.0, top - first, width, bottom - first))


_FITS: dict[Fit, Callable[[Pixels, View, tuple[int, int] | None], Pixels]] = {
    "padded": _padded,
    "cropped": _cropped,
    "stretched": _stretched,
    "within": _within,
}
