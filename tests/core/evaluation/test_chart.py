"""Charts: that lines and intervals stand where their numbers are, and that they are well-formed."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from unidiff_core.evaluation.chart import BOTTOM, HEIGHT, LEFT, MOST, TOP, WIDTH, Line, Point, chart, short, thinned

NAN = math.nan


def svg(*lines, **options):
    """The SVG of a chart, and its text."""
    page = str(chart("a <title>", lines, **options))
    return ElementTree.fromstring(page).find("svg"), page


def places(node):
    """Points of the lines."""
    rows = [row.get("points").split() for row in node.iter("polyline")]
    return [[tuple(map(float, pair.split(","))) for pair in row] for row in rows]


def rising(count=3):
    return [Point(float(i), 10.0 * i, 10.0 * i - 5, 10.0 * i + 5) for i in range(count)]


def test_points_are_in_proportion_within_the_frame():
    node, page = svg(Line("one", rising()))
    (row,) = places(node)
    assert [x for x, _ in row] == [LEFT, pytest.approx((LEFT + WIDTH - 14) / 2, abs=0.1), WIDTH - 14]
    assert row[0][1] - row[1][1] == pytest.approx(row[1][1] - row[2][1], abs=0.11)  # down is more in SVG
    assert all(TOP <= y <= HEIGHT - BOTTOM for _, y in row)
    bars = [line for line in node.iter("line") if line.get("class") is None]
    assert [float(bar.get("y1")) > y > float(bar.get("y2")) for bar, (_, y) in zip(bars, row, strict=True)] == [
        True
    ] * 3
    assert "a &lt;title&gt;" in page and [title.text for title in node.iter("title")][1] == "10 (5 to 15)"


def test_ticks_are_round_numbers_at_their_places():
    node, _ = svg(Line("one", [Point(0, 0.0), Point(4200, 1.0)]))
    ticks = {text.text: float(text.get("x")) for text in node.iter("text")}
    assert {"0", "1000", "4000", "0.2", "1"} <= set(ticks) and "4200" not in ticks
    assert ticks["1000"] == pytest.approx(LEFT + (WIDTH - 14 - LEFT) * 1000 / 4200, abs=0.1)


def test_an_axis_is_logarithmic_over_more_than_two_decades():
    node, page = svg(Line("one", [Point(0, 0.1), Point(1, 10.0), Point(2, 1000.0)]))
    (row,) = places(node)
    assert row[0][1] - row[1][1] == pytest.approx(row[1][1] - row[2][1], abs=0.11) and "logarithmic" in page
    assert "logarithmic" not in svg(Line("one", [Point(0, -0.1), Point(1, 1000.0)]))[1]
    assert "logarithmic" not in svg(Line("one", [Point(0, 0.1), Point(1, 1000.0)]), is_log=False)[1]


def test_what_is_not_finite_is_a_gap_and_counted():
    values = [1.0, 2.0, NAN, 3.0, math.inf, 2.0, 1.0]
    node, page = svg(Line("one", [Point(i, y) for i, y in enumerate(values)]))
    assert [len(row) for row in places(node)] == [2, 1, 2] and "2 not finite" in page
    nothing, page = svg(Line("one", [Point(0, NAN)]))
    assert not places(nothing) and "1 not finite" in page


def test_long_lines_are_means_with_their_range():
    points = [Point(i, (-1.0) ** i) for i in range(10 * MOST)]
    few = thinned(points)
    assert len(few) == MOST and {(p.y, p.low, p.high) for p in few} == {(0.0, -1.0, 1.0)}
    assert few[0].x == 4.5 and thinned(points[:MOST]) == points[:MOST]
    node, _ = svg(Line("one", points))
    assert len(places(node)[0]) == MOST and len(list(node.iter("polygon"))) == 1 and not list(node.iter("circle"))
    some_lost = [Point(i, NAN if i < 20 else 1.0) for i in range(10 * MOST)]
    assert math.isnan(thinned(some_lost)[0].y) and thinned(some_lost)[2].y == 1.0


def test_lines_are_told_apart_by_colour_dashes_and_a_legend():
    node, page = svg(Line("train", rising(), 0), Line("validation", rising(), 7, is_dashed=True))
    assert [group.get("class") for group in node.iter("g")] == ["c0", "c1 dashed"]
    assert page.count('class="legend"') == 1 and "validation</span>" in page
    assert 'class="legend"' not in svg(Line("train", rising()))[1]


def test_names_stand_in_place_of_numbers():
    node, page = svg(Line("one", rising(2)), x_names=["heun", "<ddpm>"], x_title="solver")
    assert {"heun", "<ddpm>"} <= {text.text for text in node.iter("text")} and "solver" in page


@pytest.mark.parametrize("points", [[Point(3, 2.0)], [Point(0, 0.0), Point(1, 0.0)], [Point(0, 5e-9), Point(1, 6e-9)]])
def test_lines_without_extent_are_drawn(points):
    node, _ = svg(Line("one", points))
    assert all(math.isfinite(number) for row in places(node) for place in row for number in place)


@pytest.mark.parametrize(
    ("value", "text"), [(0.002, "0.002"), (4200, "4200"), (12000, "12k"), (1.4e6, "1.4M"), (-25000, "-25k")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
