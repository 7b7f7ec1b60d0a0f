"""Small SVG pictures without a charting library: line charts and the timeline of one query."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Line", "Span", "Track", "line_chart", "timeline"]

Across = Callable[[float], float]

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 42, 30
LABEL_WIDTH, TRACK_HEIGHT, TRACK_GAP = 150, 20, 7


@dataclass(frozen=True)
class Line:
    """One curve: `points` are (x, y) with finite y."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Span:
    """A `[start, end]` in seconds, with an opacity between 0 and 1 and a text for the pointer."""

    start_s: float
    end_s: float
    opacity: float = 1.0
    hint: str = ""


@dataclass(frozen=True)
class Track:
    """One row of a timeline: spans, marks (instants) or a score per clip.

    `kind` is the CSS class that colours it: truth, prediction, event, saliency. `places_s` is where
    the clips of `scores` are (a clip more in either is left out); where they overlap, the highest
    bar is seen. Without, they share the video evenly.
    """

    name: str
    kind: str
    spans: Sequence[Span] = ()
    marks_s: Sequence[float] = ()
    scores: Sequence[float] = ()
    places_s: Sequence[tuple[float, float]] = ()


def line_chart(
    title: str, lines: Sequence[Line], y_label: str, x_label: str = "epoch", x_max: float = 0.0
) -> str:
    """Curves with a legend; an empty chart says so.

    Args:
        title: above the chart.
        lines: at most four look different.
        y_label: what goes up, for readers of the alternative text.
        x_label: what goes right.
        x_max: where the axis ends at least; 0: one epoch.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return f'<p class="empty">{html.escape(title)}: nothing was recorded</p>'
    x_max = max(x_max or 1.0, *(x for x, _ in points))
    low, high = _nice_range([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / x_max
        down = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))
        return across, down

    parts = [f'<text class="title" x="{LEFT}" y="15">{html.escape(title)}</text>']
    parts += [_y_tick(place(0, value)[1], value) for value in _ticks(low, high)]
    parts += [_x_tick(place(value, low)[0], value) for value in _ticks(0, x_max)]
    for index, line in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line.points)
        parts.append(f'<polyline class="series s{index % 4}" points="{path}"/>')
        parts.append(_legend(index, line.name))
    parts.append(
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}">{html.escape(x_label)}</text>'
    )
    label = html.escape(f"{title}: {y_label} per {x_label}")
    body = "".join(parts)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{label}</title>{body}</svg>"
    )


def timeline(duration_s: float, tracks: Sequence[Track], width: int = 900) -> str:
    """Rows of spans, marks and scores over `[0, duration_s]`, which is not empty."""
    height = len(tracks) * (TRACK_HEIGHT + TRACK_GAP) + 18
    scale = (width - LABEL_WIDTH - 10) / duration_s

    def across(time_s: float) -> float:
        return LABEL_WIDTH + min(max(time_s, 0.0), duration_s) * scale

    parts = []
    for index, track in enumerate(tracks):
        top = index * (TRACK_HEIGHT + TRACK_GAP)
        parts.append(f'<text class="label" x="0" y="{top + 14}">{html.escape(track.name)}</text>')
        parts.append(
            f'<rect class="lane" x="{LABEL_WIDTH}" y="{top}" '
            f'width="{duration_s * scale:.1f}" height="{TRACK_HEIGHT}"/>'
        )
        parts += [_span(across, top, span, track.kind) for span in track.spans]
        parts += [_mark(across(mark), top, track.kind) for mark in track.marks_s]
        parts += _bars(track, duration_s, across, top) if track.scores else []
    parts += [
        f'<text class="axis tick" x="{across(value):.1f}" y="{height - 3}">{value:g} s</text>'
        for value in _ticks(0, duration_s)
    ]
    body = "".join(parts)
    return f'<svg class="timeline" viewBox="0 0 {width} {height}" role="img">{body}</svg>'


def _span(across: Across, top: int, span: Span, kind: str) -> str:
    left, right = across(span.start_s), across(span.end_s)
    hint = html.escape(span.hint or f"{span.start_s:.1f} to {span.end_s:.1f} s")
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{top + 2}" width="{max(right - left, 1):.1f}" '
        f'height="{TRACK_HEIGHT - 4}" rx="2" fill-opacity="{span.opacity:.2f}">'
        f"<title>{hint}</title></rect>"
    )


def _mark(at: float, top: int, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + TRACK_HEIGHT}"/>'
    )


def _bars(track: Track, duration_s: float, across: Across, top: int) -> list[str]:
    low, high = min(track.scores), max(track.scores)
    step = duration_s / len(track.scores)
    even = [(i * step, (i + 1) * step) for i in range(len(track.scores))]
    bars = []
    for score, (start, end) in zip(track.scores, track.places_s or even, strict=False):
        share = (score - low) / (high - low) if high > low else 0.0
        tall = 1 + share * (TRACK_HEIGHT - 2)
        left, right = across(start), across(end)
        bars.append(
            f'<rect class="{track.kind}" x="{left:.1f}" y="{top + TRACK_HEIGHT - tall:.1f}" '
            f'width="{max(right - left - 0.5, 0.5):.1f}" height="{tall:.1f}"/>'
        )
    return bars


def _y_tick(down: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>'
        f'<text class="axis" x="{LEFT - 5}" y="{down + 4:.1f}">{value:g}</text>'
    )


def _x_tick(across: float, value: float) -> str:
    return f'<text class="axis tick" x="{across:.1f}" y="{HEIGHT - 14}">{value:g}</text>'


def _legend(index: int, name: str) -> str:
    left, y = LEFT + 150 * index, 30
    return (
        f'<line class="series s{index % 4}" x1="{left}" x2="{left + 16}" y1="{y}" y2="{y}"/>'
        f'<text class="legend" x="{left + 22}" y="{y + 4}">{html.escape(name)}</text>'
    )


def _nice_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(values)
    return (low, high if high > low else low + 1.0)


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    while (high - low) / step > 6:
        step *= 2 if (high - low) / step <= 12 else 5
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]
