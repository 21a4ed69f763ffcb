"""Curves of sweeps: each metric over the values of an option, and quality against agreement, as SVG in the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from unidiff_core.evaluation.estimate import Estimate

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 260, 150, 44, 22, 18

Tables = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Estimate]]]]
"""Option → query → value as text → metrics."""


def curves(sweeps: Tables) -> list[str]:
    """A heading and figures for each option and query."""
    return [
        f"<h2><code>{escape(query)}</code> by {escape(option)}</h2>"
        f'<div class="curves">{"".join(_figures(option, table))}</div>'
        for option, queries in sweeps.items()
        for query, table in queries.items()
    ]


def _figures(option: str, table: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    values = list(table)
    names = [name for name in table[values[0]] if all(name in row for row in table.values())]
    shown = [name for name in names if not name.endswith("_floor")]
    figures = [_over(option, name, values, [table[value][name] for value in values]) for name in shown]
    pairs = [(x, y) for x in shown if x.rsplit(".")[-1] == "frechet" for y in shown if _is_agreement(y, shown)]
    return figures + [_against(x, y, table) for x, y in pairs]


def _is_agreement(name: str, names: Sequence[str]) -> bool:
    """Whether a metric is a label's share right: its judge's own share stands beside it, or it has frequencies."""
    return f"given_{name}" in names or f"{name}_tv" in names


def _over(option: str, name: str, values: Sequence[str], cells: Sequence[Estimate]) -> str:
    ends = [end for cell in cells for end in (cell.value, cell.low, cell.high) if end is not None]
    scale = _scale(min(ends), max(ends))
    step = (WIDTH - LEFT - 20) / max(len(values) - 1, 1)
    places = [LEFT + 10 + i * step for i in range(len(values))]
    points = " ".join(f"{x:.1f},{scale(cell.value):.1f}" for x, cell in zip(places, cells, strict=True))
    bars = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{scale(cell.low):.1f}" y2="{scale(cell.high):.1f}"/>'
        for x, cell in zip(places, cells, strict=True)
        if cell.low is not None and cell.high is not None
    )
    ticks = "".join(
        f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(value)}</text>'
        for x, value in zip(places, values, strict=True)
    )
    return _svg(f"{name} by {option}", name, min(ends), max(ends), f'{bars}<polyline points="{points}"/>{ticks}')


def _against(x: str, y: str, table: Mapping[str, Mapping[str, Estimate]]) -> str:
    rows = [(value, row[x].value, row[y].value) for value, row in table.items()]
    (left, right), (low, high) = ((min(column), max(column)) for column in list(zip(*rows, strict=True))[1:])
    scale, width = _scale(low, high), WIDTH - LEFT - 40
    places = [(LEFT + 10 + width * (a - left) / ((right - left) or 1), scale(b)) for _, a, b in rows]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/><text x="{a + 5:.1f}" y="{b - 5:.1f}">{escape(value)}</text>'
        for (value, _, _), (a, b) in zip(rows, places, strict=True)
    )
    ends = f'<text x="{LEFT}" y="{HEIGHT - 6}">{left:.3g}</text>'
    ends += f'<text x="{WIDTH - 4}" y="{HEIGHT - 6}" text-anchor="end">{right:.3g}</text>'
    return _svg(f"{y} against {x}", f"{y} against {x}", low, high, f'<polyline points="{points}"/>{dots}{ends}')


def _scale(low: float, high: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: HEIGHT - BOTTOM - (value - low) / span * (HEIGHT - BOTTOM - TOP - 6)


def _svg(title: str, head: str, low: float, high: float, inside: str) -> str:
    axis = f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low:.3g}</text>'
    axis += f'<text x="{LEFT - 4}" y="{TOP + 12}" text-anchor="end">{high:.3g}</text>'
    name = f'<text x="4" y="12" class="name">{escape(head)}</text>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{name}{axis}{inside}</svg>'
