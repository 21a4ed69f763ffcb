"""Curves of sweeps: each metric over the values of an option, and quality against agreement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from unidiff_core.evaluation.chart import Line, Point, chart
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.metric import Axis

Tables = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Estimate]]]]
"""Option → query → value as text → metrics."""


def curves(
    sweeps: Tables, axes: Mapping[str, Axis] | None = None, published: Mapping[str, Mapping[str, float]] | None = None
) -> Iterator[tuple[str, str, list[Markup]]]:
    """An option, a query, and their figures.

    Args:
        sweeps: what was measured.
        axes: metrics that stand for quality or agreement, beside ``frechet`` and the labels'.
        published: metric → name → what others published of it, drawn as a dashed line.
    """
    for option, queries in sweeps.items():
        for query, table in queries.items():
            yield option, query, _figures(option, table, axes or {}, published or {})


def _figures(
    option: str,
    table: Mapping[str, Mapping[str, Estimate]],
    axes: Mapping[str, Axis],
    published: Mapping[str, Mapping[str, float]],
) -> list[Markup]:
    values = list(table)
    names = [name for name in table[values[0]] if all(name in row for row in table.values())]
    shown = [name for name in names if not name.endswith("_floor")]
    figures = [_over(option, name, table, published.get(name, {})) for name in shown]
    qualities = [name for name in shown if axes.get(name) == "quality" or name.rsplit(".")[-1] == "frechet"]
    agreements = [name for name in shown if axes.get(name) == "agreement" or _is_agreement(name, shown)]
    return figures + [_against(x, y, table) for x in qualities for y in agreements]


def _is_agreement(name: str, names: Sequence[str]) -> bool:
    """Whether a metric is a label's share right: its judge's own share stands beside it, or it has frequencies."""
    return f"given_{name}" in names or f"{name}_tv" in names


def _over(
    option: str, name: str, table: Mapping[str, Mapping[str, Estimate]], published: Mapping[str, float]
) -> Markup:
    cells = [row[name] for row in table.values()]
    points = [Point(i, cell.value, cell.low, cell.high) for i, cell in enumerate(cells)]
    ends = (0, len(cells) - 1)
    others = [
        Line(f"{who} ({value:g})", [Point(x, value) for x in ends], colour=i, is_dashed=True)
        for i, (who, value) in enumerate(published.items(), 1)
    ]
    return chart(name, [Line(name, points), *others], x_names=list(table), x_title=option, is_log=False)


def _against(x: str, y: str, table: Mapping[str, Mapping[str, Estimate]]) -> Markup:
    points = [Point(row[x].value, row[y].value, name=value) for value, row in table.items()]
    return chart(f"{y} against {x}", [Line(y, points, colour=1)], x_title=x, is_log=False)
