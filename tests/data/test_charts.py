"""The SVG pictures of the report."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from data.charts import Line, Span, Track, _ticks, line_chart, timeline


def test_a_line_chart_is_well_formed_and_has_one_curve_per_line() -> None:
    chart = line_chart("Loss", [Line("a", [(0, 3.0), (1, 2.0)]), Line("b", [(0, 1.0)])], "loss")
    tree = ElementTree.fromstring(str(chart))
    assert len(tree.findall("polyline")) == 2


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
