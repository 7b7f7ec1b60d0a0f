"""A picture of a video's pseudo-events: what was compared, the score, and how it was cut.

One SVG file per video that any browser shows, without a charting library: the self-similarity of
its clips, the boundary score, the events after each level of the tree, and true boundaries if there
are any, all over one axis of time.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from data.errors import UsageError, nearest, some
from data.store import Store
from data.store.files import atomic_write
from data.store.place import place_of
from data.store.types import Row
from pipeline.events.evaluate import Truth, read_truth
from pipeline.events.scorers import Similarity
from pipeline.events.stored import StoredClips

__all__ = ["Picture", "draw_videos", "figure", "similarity_image"]

_LEFT, _WIDE, _RIGHT = 110, 560, 14
_LANE, _GAP, _CURVE, _TITLE, _AXIS = 18, 5, 110, 30, 24
_PIXELS = 280
"""The matrix has at most so many pixels a side: each is the mean of a block of clips."""

_POINTS = 1120
"""The curve has at most so many points: each is the best score of a run of clips."""

_LEVELS = 8
"""Rows of the tree; the last one has all levels below, too."""

_STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-size:14px;font-weight:600}"
    ".axis{font-size:11px;fill:#666}.curve{fill:none;stroke:#1f5fa8;stroke-width:1.2}"
    ".cut{stroke:#c8442f;stroke-width:1;stroke-opacity:.75}.event{fill:none;stroke:#c8442f}"
    ".a{fill:#8fb4dc}.b{fill:#c9dbee}.true{stroke:#2a8a4a;stroke-width:2}"
    ".lane{fill:#f2f2f2}.paper{fill:#fff}"
)


@dataclass(frozen=True)
class Picture:
    """What is drawn of one video.

    Args:
        id: of the video.
        duration_s: its length.
        clip_len_s: of one clip.
        features: what was compared, shape (N, D).
        events: the arrays of its row of the stage `events`.
        method: how the events were found.
        raters: true boundaries in seconds, one list per annotator.
        similarity: how two clips were compared.
    """

    id: str
    duration_s: float
    clip_len_s: float
    features: NDArray[Any]
    events: Mapping[str, NDArray[Any]]
    method: str
    raters: Sequence[Sequence[float]] = ()
    similarity: Similarity = "cosine"

    def across(self, time_s: float) -> float:
        """Where an instant is on the axis of time."""
        return _LEFT + _WIDE * min(max(time_s / self.duration_s, 0.0), 1.0)


def draw_videos(
    store: Store, videos: Sequence[str], out: Path, boundaries: Path | None = None
) -> Iterator[Path]:
    """Write `out/VIDEO.svg` for each video.

    Args:
        store: holds `events` and the features that they were made of.
        videos: ids.
        out: folder, made if it is not there.
        boundaries: file of true boundaries (`read_truth`).

    Raises:
        UsageError: no events in the store, or none of such a video; a wrong file of boundaries.
    """
    truth = {} if boundaries is None else read_truth(boundaries)
    if truth and truth.keys().isdisjoint(videos):
        raise UsageError(
            f"{boundaries} has no boundaries of {some(videos)}; its ids: {some(sorted(truth), 3)}"
        )
    if "events" not in store.current:
        raise UsageError(f"{store.path} holds no events; make them: pipeline run --stage events")
    reader, clips_of = store.reader("events"), StoredClips(store)
    for video in videos:
        if video not in reader:
            raise UsageError(
                f"{store.path} holds no events of a video '{video}'; {nearest(video, reader.ids())}"
            )
    out.mkdir(parents=True, exist_ok=True)
    for video in dict.fromkeys(videos):
        picture = _picture(reader.row(video), clips_of, truth.get(video))
        file = out / f"{video}.svg"
        atomic_write(place_of(str(file)), figure(picture).encode())
        yield file


def _picture(row: Row, clips_of: StoredClips, truth: Truth | None) -> Picture:
    clips = clips_of(row.key.id, row.key.content)
    return Picture(
        row.key.id,
        clips.duration_s,
        clips.clip_len_s,
        clips.features,
        _arrays(row),
        str(clips_of.parameters.get("method", "")),
        () if truth is None else truth.raters,
        clips_of.parameters.get("similarity", "cosine"),
    )


def figure(picture: Picture) -> str:
    """The SVG file of one video."""
    y = _TITLE
    body = [_matrix(picture, y)]
    y += _WIDE + 2 * _GAP
    body.append(_curve(picture, y))
    y += _CURVE + 2 * _GAP
    for name, spans in _levels(picture):
        body.append(_level(picture, name, spans, y))
        y += _LANE + _GAP
    for number, rater in enumerate(picture.raters, start=1):
        name = "true" if len(picture.raters) == 1 else f"true ({number})"
        body.append(_rater(picture, name, rater, y))
        y += _LANE + _GAP
    body.append(_time_axis(picture, y))
    count = len(picture.events["spans_s"])
    title = f"{picture.id}: {count} {'event' if count == 1 else 'events'} ({picture.method})"
    wide, tall = _LEFT + _WIDE + _RIGHT, y + _AXIS
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" '
            'height="{tall}" role="img"><title>{title}</title><style>{style}</style>'
            '<rect class="paper" width="{wide}" height="{tall}"/>'
            '<text class="title" x="{left}" y="19">{title}</text>{body}</svg>\n'
        ).format(
            wide=wide,
            tall=tall,
            title=title,
            style=Markup(_STYLE),
            left=_LEFT,
            body=Markup("").join(body),
        )
    )


def similarity_image(
    features: NDArray[Any], most: int = _PIXELS, similarity: Similarity = "cosine"
) -> NDArray[np.uint8]:
    """Similarities of all pairs of clips as grey values, shape (P, P) with P = min(N, most).

    A pixel is the mean over a block of pairs, for `l2` the root of the mean square. Both follow
    from the means of the blocks' rows and squares: no matrix of all pairs is made, however long the
    video is. White is the most similar.
    """
    rows = features.astype(np.float64)
    if similarity == "cosine":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms == 0, 1.0, norms)
    else:
        rows = rows - rows.mean(axis=0)  # distances stay, and their squares lose fewer digits
    edges = _blocks(len(rows), most)
    means = np.add.reduceat(rows, edges[:-1], axis=0) / np.diff(edges)[:, None]
    products = means @ means.T
    if similarity == "cosine":
        return _grey(products)
    squares = np.add.reduceat(np.square(rows).sum(axis=1), edges[:-1]) / np.diff(edges)
    apart = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
    return _grey(-apart if similarity == "sqeuclidean" else -np.sqrt(apart))


def _grey(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """From the lowest as 0 to the highest as 255; 255 where all are equal."""
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.ones_like(values)
    return np.rint(255 * share).astype(np.uint8)


# --- parts of the picture


def _matrix(picture: Picture, y: float) -> Markup:
    image = base64.b64encode(
        _png(similarity_image(picture.features, similarity=picture.similarity))
    ).decode()
    squares = []
    for start, end in picture.events["spans_s"].tolist():
        left, right = picture.across(start), picture.across(end)
        squares.append(
            Markup('<rect class="event" x="{}" y="{}" width="{}" height="{}"/>').format(
                _px(left), _px(y + left - _LEFT), _px(right - left), _px(right - left)
            )
        )
    # The last clip may end after the video: the picture is cut where the axis ends.
    clips = len(picture.features)
    side = _px(_WIDE * clips * picture.clip_len_s / picture.duration_s)
    return Markup(
        '{label}<svg x="{left}" y="{y}" width="{wide}" height="{wide}">'
        '<image width="{side}" height="{side}" preserveAspectRatio="none" '
        'style="image-rendering:pixelated" href="data:image/png;base64,{image}"/></svg>{squares}'
    ).format(
        label=Markup("").join([_label("similarity", y + 12), _note(picture.similarity, y + 28)]),
        left=_LEFT,
        y=_px(y),
        wide=_WIDE,
        side=side,
        image=image,
        squares=Markup("").join(squares),
    )


def _curve(picture: Picture, y: float) -> Markup:
    scores = np.asarray(picture.events["scores"], np.float64)
    edges = _blocks(len(scores), _POINTS)
    best = np.maximum(np.maximum.reduceat(scores, edges[:-1]), 0.0)  # zero edges may be below
    middles = (edges[:-1] + edges[1:]) / 2 * picture.clip_len_s
    top = float(best.max())
    down = y + _CURVE * (1 - best / top) if top > 0 else np.full(len(best), y + _CURVE)
    points = " ".join(
        f"{_px(picture.across(float(at)))},{_px(value)}"
        for at, value in zip(middles, down, strict=True)
    )
    cuts = [_line("cut", picture.across(at), y, _CURVE) for at in _boundaries(picture)]
    return Markup('{}{}{}<polyline class="curve" points="{}"/>').format(
        _label("boundary score", y + 12),
        _note(f"up to {top:.3g}", y + 28),
        Markup("").join(cuts),
        points,
    )


def _levels(picture: Picture) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Rows of the tree: a name, and the events that are there after so many levels of cuts."""
    depths = picture.events["boundary_depth"]
    times = np.asarray(_boundaries(picture))
    deepest = int(depths.max(initial=0))
    for depth in range(min(deepest + 1, _LEVELS)):
        last = depth == _LEVELS - 1 or depth == deepest
        kept = times if last else times[depths <= depth]
        ends = [0.0, *kept.tolist(), picture.duration_s]
        name = "events" if last else f"after level {depth + 1}"
        yield name, list(pairwise(ends))


def _level(picture: Picture, name: str, spans: Sequence[tuple[float, float]], y: float) -> Markup:
    rows = [_label(name, y + 13)]
    for number, (start, end) in enumerate(spans):
        left, right = picture.across(start), picture.across(end)
        rows.append(
            Markup(
                '<rect class="{}" x="{}" y="{}" width="{}" height="{}">'
                "<title>{} to {} s</title></rect>"
            ).format(
                "ab"[number % 2],
                _px(left),
                _px(y),
                _px(right - left),
                _LANE,
                f"{start:.1f}",
                f"{end:.1f}",
            )
        )
    return Markup("").join(rows)


def _rater(picture: Picture, name: str, times_s: Sequence[float], y: float) -> Markup:
    lane = Markup('<rect class="lane" x="{}" y="{}" width="{}" height="{}"/>').format(
        _LEFT, _px(y), _WIDE, _LANE
    )
    marks = [_line("true", picture.across(at), y, _LANE) for at in times_s]
    return Markup("").join([_label(name, y + 13), lane, *marks])


def _time_axis(picture: Picture, y: float) -> Markup:
    step = _round_step(picture.duration_s / 7)
    count = int(picture.duration_s / step + 1e-9) + 1
    return Markup("").join(
        Markup('<text class="axis" text-anchor="middle" x="{}" y="{}">{} s</text>').format(
            _px(picture.across(number * step)), y + 12, f"{number * step:g}"
        )
        for number in range(count)
    )


def _label(name: str, y: float) -> Markup:
    return Markup('<text x="8" y="{}">{}</text>').format(_px(y), escape(name))


def _note(text: str, y: float) -> Markup:
    return Markup('<text class="axis" x="8" y="{}">{}</text>').format(_px(y), escape(text))


def _line(kind: str, x: float, y: float, tall: float) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        kind, _px(x), _px(x), _px(y), _px(y + tall)
    )


def _boundaries(picture: Picture) -> list[float]:
    return [float(time) for time in picture.events["boundaries_s"]]


def _arrays(row: Row) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(array) for name, array in row.arrays.items()}


def _blocks(count: int, most: int) -> NDArray[np.int64]:
    """Edges of at most `most` runs of nearly equal length, shape (runs + 1,)."""
    runs = min(count, most)
    return np.arange(runs + 1) * count // runs


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5, 10, … (times a power of ten) that is not below `step`."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(power * part for part in (1, 2, 5, 10) if power * part >= step * (1 - 1e-9)))


def _px(value: float) -> str:
    return f"{value:.1f}"


def _png(grey: NDArray[np.uint8]) -> bytes:
    """An 8-bit greyscale PNG file (ISO 15948) of an array (H, W)."""
    rows, columns = grey.shape
    unfiltered = np.concatenate([np.zeros((rows, 1), np.uint8), grey], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
