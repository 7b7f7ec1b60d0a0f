"""The captioner of the embedded default: says what can be measured in the pixels.

It finds the background, connected regions of one colour on it, their shape and place, and, from an
earlier frame, how they moved. It has no weights, knows no objects, and ignores the prompt. On a
picture without a plain background it names the main colours, the brightness and whether there is
movement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError
from models.captioners.base import CAPTIONERS, Captioner, CaptionRequest, CaptionResult, Sight
from models.captioners.guards import caption_flags

if TYPE_CHECKING:
    from models.weights import Checkpoint

__all__ = ["Pixel", "describe"]

_PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (235, 215, 50),
    "green": (40, 170, 60),
    "cyan": (60, 210, 220),
    "blue": (50, 80, 230),
    "purple": (150, 60, 200),
    "pink": (245, 130, 190),
    "navy": (20, 30, 60),
    "brown": (80, 55, 40),
    "beige": (205, 192, 165),
    "black": (14, 14, 16),
    "dark grey": (70, 70, 70),
    "grey": (128, 128, 128),
    "light grey": (200, 200, 200),
    "white": (248, 248, 248),
}
_NAMES = tuple(_PALETTE)
_CELLS = 12
_CONTRAST = 18.0  # CIELAB distance that sets a shape off from the background
_PLAIN = 0.35  # share of the picture that a plain background covers at least
_MOST_REGIONS = 6
_SMALLEST = 0.0025
_MOVED = 0.02  # widths of the picture
_GROWN = 1.1
_CHANGED = 6.0  # mean grey levels between two frames of a busy picture


@dataclass(frozen=True)
class _Region:
    """A connected region of one colour; x, y from 0 (left, top) to 1; area as share."""

    colour: str
    shape: str
    x: float
    y: float
    area: float


@CAPTIONERS.register("pixel")
class Pixel(Captioner):
    """Describes colours, shapes, places and motion; deterministic, without weights.

    Args:
        seed: taken and not used: nothing is random.
        device: taken and not used: it runs on the CPU.
    """

    name = "pixel"
    has_weights = False
    follows_prompt = False

    def __init__(
        self, checkpoint: Checkpoint | None = None, *, seed: int = 0, device: str = "cpu"
    ) -> None:
        del seed, device
        if checkpoint is not None:
            raise UsageError("captioner pixel has no weights; leave its checkpoint out")
        self.sight = Sight(frames=2, side=96)

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return {"captioner": "pixel", "version": 1, "side": self.sight.side}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        """See `Captioner.caption`."""
        return [self._one(request) for request in requests]

    def _one(self, request: CaptionRequest) -> CaptionResult:
        text = describe(request.frames)
        flags = caption_flags(text)
        return CaptionResult(
            text, "flagged" if flags else "ok", flags=flags, new_tokens=len(text.split())
        )


def describe(frames: NDArray[np.uint8]) -> str:
    """One to a few sentences about the last of `frames` (k, H, W, 3) and how it came about."""
    before, now = frames[0], frames[-1]
    background, regions = _regions(now)
    if background is None:
        return _describe_busy(before, now)
    earlier = _regions(before)[1] if len(frames) > 1 else regions
    sentences = [_sentence(region, earlier) for region in regions]
    if not sentences:
        return f"Nothing is to be seen on the {background} background."
    return " ".join([*sentences, f"The background is {background}."])


def _sentence(region: _Region, earlier: Sequence[_Region]) -> str:
    article = "An" if region.colour[0] in "aeiou" else "A"
    what = f"{article} {region.colour} {region.shape} is {_place(region.x, region.y)}"
    return f"{what}, {_motion(region, earlier)}."


def _place(x: float, y: float) -> str:
    column = ("left", "", "right")[min(int(3 * x), 2)]
    row = ("top", "", "bottom")[min(int(3 * y), 2)]
    if not column and not row:
        return "in the centre"
    return f"at the {row} {column}".rstrip() if row else f"on the {column}"


def _motion(region: _Region, earlier: Sequence[_Region]) -> str:
    same = [each for each in earlier if each.colour == region.colour]
    if not same:
        return "appearing"
    source = min(same, key=lambda each: abs(each.x - region.x) + abs(each.y - region.y))
    dx, dy = region.x - source.x, region.y - source.y
    if max(abs(dx), abs(dy)) > _MOVED:
        if abs(dx) >= abs(dy):
            return "moving right" if dx > 0 else "moving left"
        return "moving down" if dy > 0 else "moving up"
    if region.area > _GROWN * source.area:
        return "growing"
    return "shrinking" if source.area > _GROWN * region.area else "staying still"


def _describe_busy(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> str:
    counts = np.bincount(_nearest_colour(_lab(now)).ravel(), minlength=len(_NAMES))
    first, second = (_NAMES[index] for index in np.argsort(-counts, kind="stable")[:2])
    level = float(now.mean())
    brightness = "dark" if level < 85 else "bright" if level > 170 else "of medium brightness"
    change = float(np.abs(now.astype(np.int16) - before).mean())
    movement = "There is movement." if change > _CHANGED else "Little moves."
    return f"A detailed picture, mostly {first} and {second}, {brightness}. {movement}"


def _regions(picture: NDArray[np.uint8]) -> tuple[str | None, list[_Region]]:
    """Background colour and the regions on it, largest first; None for a busy picture."""
    lab = _lab(picture)
    names = _nearest_colour(lab)
    background = int(np.bincount(names.ravel()).argmax())
    tone = np.median(lab[names == background], axis=0)
    plain = np.linalg.norm(lab - tone, axis=-1) < _CONTRAST
    labels = np.where(plain, 0, names + 1)
    pieces = _pieces(labels)
    if plain.mean() < _PLAIN or len(pieces) > _MOST_REGIONS:
        return None, []
    regions = [_measured(mask, colour, picture.shape) for mask, colour in pieces]
    return _NAMES[background], sorted(regions, key=lambda each: (-each.area, each.colour, each.x))


def _measured(mask: NDArray[np.bool_], colour: int, shape: tuple[int, ...]) -> _Region:
    rows, columns = np.nonzero(mask)
    height, width = shape[:2]
    return _Region(
        _NAMES[colour],
        _shape_of(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]),
        float((columns.mean() + 0.5) / width),
        float((rows.mean() + 0.5) / height),
        float(mask.mean()),
    )


def _pieces(labels: NDArray[np.int64]) -> list[tuple[NDArray[np.bool_], int]]:
    """Connected pieces of one label as (mask, palette index), without thin edges between two."""
    core = np.zeros_like(labels)
    inner = labels[1:-1, 1:-1]
    alike = inner > 0
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        height, width = inner.shape
        alike &= labels[rows : rows + height, columns : columns + width] == inner
    core[1:-1, 1:-1] = np.where(alike, inner, 0)
    roots = _components(core)
    ids, counts = np.unique(roots[core > 0], return_counts=True)
    large = ids[counts >= _SMALLEST * labels.size]
    return [
        (_grown(roots == each, labels > 0), int(core.ravel()[each]) - 1) for each in large.tolist()
    ]


def _grown(mask: NDArray[np.bool_], within: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`mask` and its four neighbours: the rim that `_pieces` took away."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown & within


def _components(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For every pixel the index of the first pixel of its connected piece of equal label."""
    index = np.arange(labels.size).reshape(labels.shape)
    across = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)
    down = (labels[1:] == labels[:-1]) & (labels[1:] > 0)
    one = np.concatenate([index[:, :-1][across], index[:-1][down]])
    other = np.concatenate([index[:, 1:][across], index[1:][down]])
    root = index.ravel().copy()
    while (root[one] != root[other]).any():
        low = np.minimum(root[one], root[other])
        np.minimum.at(root, np.maximum(root[one], root[other]), low)
        while (root[root] != root).any():
            root = root[root]
    return root.reshape(labels.shape)


def _shape_of(mask: NDArray[np.bool_]) -> str:
    """Name of the shape whose outline overlaps `mask` (cut to its extent) best."""
    height, width = mask.shape
    if max(height, width) > 1.6 * min(height, width):
        return "bar"
    rows = (np.arange(_CELLS) + 0.5) * height / _CELLS
    columns = (np.arange(_CELLS) + 0.5) * width / _CELLS
    cells = mask[rows.astype(int)][:, columns.astype(int)]
    overlap = {
        name: (cells & outline).sum() / (cells | outline).sum()
        for name, outline in _OUTLINES.items()
    }
    best = max(overlap, key=lambda name: overlap[name])
    return best if overlap[best] > 0.6 else "shape"


def _outlines() -> dict[str, NDArray[np.bool_]]:
    """Shapes that fill their extent, on `_CELLS` x `_CELLS` cells."""
    line = (np.arange(_CELLS) + 0.5) / _CELLS * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    # The extent of a five-pointed star reaches from -1 to 0.81 below its centre and to 0.95 beside.
    star_x, star_y = x * 0.95, (y + 1) * 0.905 - 1
    turn = (np.arctan2(star_x, -star_y) / (2 * np.pi / 5) + 0.5) % 1 - 0.5
    return {
        "circle": x**2 + y**2 <= 1,
        "square": np.full_like(x, True, dtype=bool),
        "triangle": abs(x) <= (y + 1) / 2,
        "star": np.hypot(star_x, star_y) <= 1 - 1.2 * abs(turn),
        "cross": np.minimum(abs(x), abs(y)) <= 0.34,
    }


_OUTLINES = _outlines()


def _linear_light() -> NDArray[np.float32]:
    level = np.arange(256) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype("f4")


_LINEAR = _linear_light()
# sRGB primaries to XYZ, relative to the white of D65.
_XYZ = np.array(
    [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]],
    dtype=np.float32,
)


def _lab(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """sRGB to CIELAB, shape (..., 3)."""
    xyz = _LINEAR[picture] @ _XYZ.T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    lab: NDArray[np.float32] = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    return lab


def _nearest_colour(lab: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index into `_NAMES` of the palette colour that is nearest in CIELAB."""
    # The distance without the pixel's own square, which is the same for every colour.
    score = (_PALETTE_LAB**2).sum(axis=-1) - 2 * lab @ _PALETTE_LAB.T
    nearest: NDArray[np.int64] = score.argmin(axis=-1)
    return nearest


_PALETTE_LAB = _lab(np.array(list(_PALETTE.values()), dtype=np.uint8))
