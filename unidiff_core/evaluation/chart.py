"""Charts: lines with intervals on two axes, as SVG in the page, light and dark as the page is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from markupsafe import Markup

from unidiff_core.foundation.page import render

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 210, 46, 14, 10, 24
MOST = 240
"""Points of a line; of more, stretches are drawn as their mean and range."""
FEW = 30
"""Points of a line, at most, that are marked one by one."""
DECADES = 2.0
"""Powers of ten that positive values span before their axis is logarithmic."""
COLOURS = 6


@dataclass(frozen=True)
class Point:
    """A value, with the ends of its interval or range if there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    name: str = ""
    """Shown beside it."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    """Of the page's colours for lines, of which there are `COLOURS`; after the last comes the first again."""
    is_dashed: bool = False


@dataclass(frozen=True)
class _Axis:
    """Numbers as places from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a number is."""
        low, high, value = (math.log10(x) if self.is_log else x for x in (self.low, self.high, value))
        return round(self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of round numbers."""
        return [(self.at(x), short(x)) for x in (_decades if self.is_log else _round_numbers)(self.low, self.high)]


@dataclass(frozen=True)
class _Drawn:
    """A line as the template draws it."""

    name: str
    colour: int
    is_dashed: bool
    paths: list[str] = field(default_factory=list)
    areas: list[str] = field(default_factory=list)
    bars: list[tuple[float, float, float]] = field(default_factory=list)
    dots: list[tuple[float, float, str, str]] = field(default_factory=list)


def chart(
    title: str, lines: Sequence[Line], *, x_names: Sequence[str] = (), x_title: str = "", is_log: bool | None = None
) -> Markup:
    """A figure of one or several lines.

    Values that are not finite are gaps; how many there are is said under the title.

    Args:
        title: what is shown.
        lines: with a point at least, all of them together.
        x_names: texts for x = 0, 1, … in place of numbers.
        x_title: what runs from left to right.
        is_log: whether the y axis is logarithmic; if its values span more than two powers of ten, when not given.
    """
    finite = [point for line in lines for point in line.points if math.isfinite(point.y)]
    gaps = sum(len(line.points) for line in lines) - len(finite)
    ends = [end for p in finite for end in (p.y, p.low, p.high) if end is not None and math.isfinite(end)] or [0.0]
    if is_log is None:
        is_log = min(ends) > 0 and math.log10(max(ends) / min(ends)) > DECADES
    bottom, top = _padded(min(ends), max(ends), is_log=is_log)
    y = _Axis(bottom, top, HEIGHT - BOTTOM, TOP, is_log)
    left, right = min((p.x for p in finite), default=0.0), max((p.x for p in finite), default=1.0)
    inset = 14 if x_names or any(point.name for point in finite) else 0
    x = _Axis(left, right, LEFT + inset, WIDTH - RIGHT - 2 * inset)
    x_ticks = [(x.at(i), name) for i, name in enumerate(x_names)] if x_names else x.ticks
    size = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    drawn = [_drawn(line, x, y) for line in lines]
    return render(
        "chart.html.j2", title=title, lines=drawn, size=size, x_ticks=x_ticks, y_ticks=y.ticks, x_title=x_title,
        is_log=is_log, gaps=gaps,
    )  # fmt: skip


def short(value: float) -> str:
    """A number for a chart: four digits, thousands as k, millions as M."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def thinned(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """As many points at most: the mean of each stretch, with its range."""
    if len(points) <= most:
        return list(points)
    rows = [points[i * len(points) // most : (i + 1) * len(points) // most] for i in range(most)]
    return [_joined(row) for row in rows]


def _joined(row: Sequence[Point]) -> Point:
    values = [point.y for point in row if math.isfinite(point.y)]
    if not values:
        return Point(row[0].x, math.nan)
    mean = math.fsum(values) / len(values)
    return Point(math.fsum(p.x for p in row) / len(row), mean, min(values), max(values))


def _drawn(line: Line, x: _Axis, y: _Axis) -> _Drawn:
    drawn = _Drawn(line.name, line.colour % COLOURS, line.is_dashed)
    marks = len(line.points) <= FEW
    for is_finite, row in groupby(thinned(line.points), key=lambda point: math.isfinite(point.y)):
        points = list(row)
        if not is_finite:
            continue
        drawn.paths.append(_path((x.at(p.x), y.at(p.y)) for p in points))
        ranged = [(x.at(p.x), y.at(p.low), y.at(p.high)) for p in points if p.low is not None and p.high is not None]
        if marks:
            drawn.bars.extend(ranged)
        elif ranged:
            drawn.areas.append(
                _path([(a, high) for a, _, high in ranged] + [(a, low) for a, low, _ in reversed(ranged)])
            )
        if marks or len(points) == 1:
            drawn.dots.extend((x.at(p.x), y.at(p.y), p.name, _said(p)) for p in points)
    return drawn


def _said(point: Point) -> str:
    """What a person reads who points at it."""
    interval = "" if point.low is None or point.high is None else f" ({short(point.low)} to {short(point.high)})"
    return f"{short(point.y)}{interval}"


def _path(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{a:g},{b:g}" for a, b in places)


def _padded(low: float, high: float, *, is_log: bool) -> tuple[float, float]:
    """Ends of an axis on which no line touches the frame."""
    if is_log:
        return low / 1.2, high * 1.2
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0 else low - room), high + room


def _round_numbers(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about as many as `count`."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.75 * rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten: six of them at most."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**i for i in range(first, last + 1, max(1, (last - first) // 6 + 1))]
