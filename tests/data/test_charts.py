"""The SVG pictures of the report."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from data.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    Span,
    Track,
    _ticks,
    line_chart,
    timeline,
)


def test_a_line_chart_is_well_formed_and_has_one_curve_per_line() -> None:
    chart = line_chart("Loss", [Line("a", [(0, 3.0), (1, 2.0)]), Line("b", [(0, 1.0)])], "loss")
    tree = ElementTree.fromstring(str(chart))
    assert len(tree.findall("polyline")) == 2


def points(chart: str) -> list[tuple[float, float]]:
    """Where the first curve is drawn, in pixels from the upper left corner."""
    curve = ElementTree.fromstring(str(chart)).find("polyline")
    assert curve is not None
    pairs = (pair.split(",") for pair in curve.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_larger_values_are_further_up_and_the_axis_begins_at_zero() -> None:
    (left, low), (_, high) = points(line_chart("Loss", [Line("a", [(0, 5.0), (1, 10.0)])], "loss"))
    bottom, top = HEIGHT - BOTTOM, TOP
    assert (left, high) == (LEFT, top)
    assert low == pytest.approx((bottom + top) / 2)


def test_a_curve_of_zeros_lies_on_the_axis() -> None:
    assert points(line_chart("Loss", [Line("a", [(0, 0.0), (1, 0.0)])], "loss"))[1] == (
        WIDTH - RIGHT,
        HEIGHT - BOTTOM,
    )


def test_the_axis_ends_at_least_where_asked() -> None:
    line, width = [Line("a", [(0, 1.0), (2, 1.0)])], WIDTH - LEFT - RIGHT
    for x_max, share in ((0.0, 1.0), (8.0, 0.25), (1.0, 1.0)):
        assert points(line_chart("Loss", line, "loss", x_max=x_max))[1][0] == pytest.approx(
            LEFT + share * width, abs=0.1
        )
    # without an end one epoch, with one even less
    short = [Line("a", [(0, 1.0), (0.1, 1.0)])]
    assert points(line_chart("p", short, "p", x_max=0.2))[1][0] == pytest.approx(LEFT + width / 2)
    assert points(line_chart("p", short, "p"))[1][0] == pytest.approx(LEFT + width / 10, abs=0.1)


def test_a_line_chart_without_points_says_so() -> None:
    assert "nothing was recorded" in line_chart("Loss", [Line("a", [])], "loss")


def test_names_from_outside_cannot_inject_markup() -> None:
    picture = timeline(10.0, [Track("<script>", "truth", [Span(1, 2, hint="<b>")])])
    assert "<script>" not in picture
    assert ElementTree.fromstring(str(picture)) is not None


def test_spans_are_placed_in_proportion_and_cut_at_the_end_of_the_video() -> None:
    picture = timeline(10.0, [Track("t", "truth", [Span(5, 30)])])
    rects = ElementTree.fromstring(str(picture)).findall("rect")
    lane, span = rects[0].attrib, rects[1].attrib
    assert float(span["width"]) == pytest.approx(float(lane["width"]) / 2, abs=0.2)


def test_scores_become_one_bar_per_clip_and_constant_scores_do_not_divide_by_zero() -> None:
    picture = timeline(4.0, [Track("s", "saliency", scores=[1.0, 1.0, 1.0, 1.0])])
    assert len(ElementTree.fromstring(str(picture)).findall("rect")) == 1 + 4


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 24), (-0.3, 87.5), (0, 1e-4), (0, 40)])
def test_ticks_are_few_and_inside_the_range(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
