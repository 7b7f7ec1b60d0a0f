"""The study as a picture: Fig. 1 (a–c) and Fig. 2 of the paper, with the controls in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from data.charts import HEIGHT, WIDTH, Line, line_chart
from training.feasibility.study import Outcome, Setting

__all__ = ["figure"]

_STYLE = (
    "text{fill:#222;font:11px sans-serif}.title{font-weight:600;font-size:12px}"
    ".axis{text-anchor:end;fill:#666}.axis.tick{text-anchor:middle}.grid{stroke:#ddd}"
    ".series{fill:none;stroke-width:2}.s0{stroke:#1f77b4}.s1{stroke:#d62728}"
)


def figure(outcomes: Sequence[Outcome]) -> str:
    """An SVG with one chart for each set of layers and each control: the shares that improved and
    deteriorated over α where p is least, and over p where α is the middle one.

    Means over seeds. What has only one α, or one p, has no chart over it.
    """
    kinds = dict.fromkeys((each.setting.control, each.setting.layers) for each in outcomes)
    rows = []
    for control, layers in kinds:
        own = [e for e in outcomes if (e.setting.control, e.setting.layers) == (control, layers)]
        name = _named(control, layers)
        p = min(each.setting.p for each in own)
        alphas = sorted({each.setting.alpha for each in own})
        alpha = alphas[len(alphas) // 2]
        charts = [
            _chart(f"{name}, p = {p:g}", [e for e in own if e.setting.p == p], "α", _alpha),
            _chart(f"{name}, α = {alpha:g}", [e for e in own if e.setting.alpha == alpha], "p", _p),
        ]
        rows.append([chart for chart in charts if chart])
    placed = [
        _placed(chart, column * (WIDTH + 20), row * (HEIGHT + 20))
        for row, charts in enumerate(rows)
        for column, chart in enumerate(charts)
    ]
    wide, tall = 2 * (WIDTH + 20), max(len(rows), 1) * (HEIGHT + 20)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" '
        f'height="{tall}" role="img"><title>Triplets that improved and deteriorated</title>'
        f"<style>{_STYLE}</style>{''.join(placed)}</svg>"
    )


def _named(control: str, layers: Sequence[int]) -> str:
    numbers = ", ".join(map(str, layers))
    return {"none": f"layers {numbers}"}.get(control, f"{control} ({numbers})")


def _placed(chart: str, left: int, top: int) -> str:
    sized = chart.replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', 1)
    return f'<g transform="translate({left} {top})">{sized}</g>'


def _alpha(setting: Setting) -> float:
    return setting.alpha


def _p(setting: Setting) -> float:
    return setting.p


def _chart(
    title: str, outcomes: Sequence[Outcome], label: str, of: Callable[[Setting], float]
) -> str:
    places = sorted({of(each.setting) for each in outcomes})
    if len(places) < 2:
        return ""

    def line(name: str, share: Callable[[Outcome], float | None]) -> Line:
        points = []
        for place in places:
            values = [share(each) for each in outcomes if of(each.setting) == place]
            known = [value for value in values if value is not None]
            if known:
                points.append((place, 100 * fmean(known)))
        return Line(name, points)

    lines = [
        line("improved %", lambda each: each.improved_share),
        line("deteriorated %", lambda each: each.deteriorated_share),
    ]
    return line_chart(title, lines, "share of triplets", label, x_max=places[-1])
