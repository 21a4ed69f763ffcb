"""Two evaluated runs beside each other: samples, every metric's difference, settings, curves of both trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from markupsafe import Markup

from unidiff_core.evaluation.criterion import Verdict
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.gallery import Card
from unidiff_core.evaluation.history import History, drawn_beside, figures, read_history
from unidiff_core.evaluation.report import EXAMPLES, MARKS, REPORT, RESULT, STYLES, flat
from unidiff_core.foundation.page import link_to, write_html

TABLES = ("queries", "controls", "judges")
"""Parts of an evaluation that are tables: subject → metric → estimate."""
HEADINGS = ("Loss", "Steps")
"""Headings of a training's charts that are drawn of two trainings."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation left in a folder."""

    folder: Path
    name: str
    tables: dict[str, dict[str, Estimate]]
    """Subject (a query, say) → metrics."""
    verdicts: dict[tuple[str, str], Verdict]
    """(Query, metric) → the worst verdict of its criteria."""
    settings: dict[str, str]
    origin: dict[str, str]
    examples: dict[str, list[Card]]
    """Query → cards; empty if there is no `EXAMPLES`."""


@dataclass(frozen=True)
class Difference:
    """A metric of one subject in both runs; None where a run has it not."""

    metric: str
    one: Estimate | None
    other: Estimate | None
    verdicts: tuple[Verdict | None, Verdict | None] = (None, None)

    @property
    def value(self) -> str:
        """The other minus the one, with its sign."""
        if self.one is None or self.other is None:
            return ""
        return f"{round(self.other.value - self.one.value, 3) + 0.0:+.3f}".replace("-", "−").replace("+0.000", "0.000")

    @property
    def overlap(self) -> bool | None:
        """Whether the 95 % intervals have a number in common; None where one is not known."""
        ends = [None if row is None else (row.low, row.high) for row in (self.one, self.other)]
        (a, b), (c, d) = (row or (None, None) for row in ends)
        return None if a is None or b is None or c is None or d is None else a <= d and c <= b


def read_evaluated(folder: Path) -> Evaluated:
    """What `unidiffuser evaluate` wrote into a folder.

    Raises:
        ValueError: if it is no folder, was not evaluated, or the file is not what that command writes; says what to do.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}: give two folders that `unidiffuser evaluate` "
            f"wrote {RESULT} into, such as model directories"
        )
    path = folder / RESULT
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {RESULT}: evaluate it first, `unidiffuser evaluate {folder} -c CONFIG.yaml`, then compare"
        )
    try:
        return _evaluated(folder, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what `unidiffuser evaluate` writes ({type(error).__name__}: {error}); evaluate it again"
        ) from error


def _evaluated(folder: Path, read: Mapping[str, Any]) -> Evaluated:
    tables: dict[str, dict[str, Estimate]] = {}
    for part in TABLES:
        for subject, row in read[part].items() if part in read else ():
            title = f"judge of {subject}" if part == "judges" else subject
            tables[title] = {metric: Estimate(**cell) for metric, cell in row.items()}
    if not tables:
        raise ValueError("it has no query")
    verdicts: dict[tuple[str, str], Verdict] = {}
    order = list(MARKS)
    for rule in read["criteria"]:
        key = rule["query"], rule["metric"]
        verdict: Verdict = rule.get("verdict") or ("met" if rule["passed"] else "missed")  # once there was no other
        verdicts[key] = max(verdicts.get(key, "met"), verdict, key=order.index)
    settings = {name: value for name, value in read["settings"].items() if name != "criteria"}
    examples = _examples(folder / EXAMPLES)
    return Evaluated(
        folder, folder.resolve().name, tables, verdicts, flat(settings), flat(read.get("origin", {})), examples
    )


def _examples(path: Path) -> dict[str, list[Card]]:
    if not path.is_file():
        return {}

    def side(row: Mapping[str, str]) -> dict[str, Markup]:
        return {name: Markup(html) for name, html in row.items()}

    read = json.loads(path.read_text(encoding="utf-8"))
    return {
        query: [Card(side(row["given"]), side(row["solved"]), row["faults"]) for row in rows]
        for query, rows in read.items()
    }


def differences(one: Evaluated, other: Evaluated) -> dict[str, list[Difference]]:
    """Subject → its metrics, in the order of the first run, then what only the other has."""
    return {
        subject: [
            Difference(
                metric,
                one.tables.get(subject, {}).get(metric),
                other.tables.get(subject, {}).get(metric),
                (one.verdicts.get((subject, metric)), other.verdicts.get((subject, metric))),
            )
            for metric in {**one.tables.get(subject, {}), **other.tables.get(subject, {})}
        ]
        for subject in {**one.tables, **other.tables}
    }


def _beside(one: Evaluated, other: Evaluated) -> Iterator[tuple[str, bool, list[tuple[Card | None, Card | None]]]]:
    """Query, whether both runs were given the same, and its cards."""
    for query in {**one.examples, **other.examples}:
        cards = list(zip_longest(one.examples.get(query, []), other.examples.get(query, [])))
        yield query, all(a and b and a.given == b.given for a, b in cards), cards


def write_comparison(path: Path, first: Path, second: Path) -> str:
    """Write the page of two runs.

    Args:
        path: the HTML file.
        first: folder of the run that differences are counted from.
        second: of the other.

    Returns:
        What came out, in a line.

    Raises:
        ValueError: as `read_evaluated`, or if both are one folder.
    """
    if first.resolve() == second.resolve():
        raise ValueError(f"{first} and {second} are one folder: a run differs in nothing from itself; name another run")
    runs = [read_evaluated(first), read_evaluated(second)]
    names = _names(*runs)
    rows = differences(*runs)
    cells = [cell for table in rows.values() for cell in table if cell.one and cell.other]
    apart = sum(cell.overlap is False for cell in cells)
    said = f"{apart} of {len(cells)} metrics that both have are apart: their 95 % intervals do not overlap"
    write_html(
        path,
        "comparison.html.j2",
        title=f"{names[0]} and {names[1]}",
        names=names,
        folders=[str(run.folder) for run in runs],
        links=[link_to(row, path) if (row := run.folder / REPORT).is_file() else "" for run in runs],
        said=said,
        lacking=[name for name, run in zip(names, runs, strict=True) if not run.examples],
        galleries=list(_beside(*runs)),
        tables=rows,
        marks=MARKS,
        styles=STYLES,
        settings=_differing(runs[0].settings, runs[1].settings),
        origin=_differing(runs[0].origin, runs[1].origin, keeps_all=True),
        charts=_charts(dict(zip(names, runs, strict=True))),
    )
    return said


def _names(one: Evaluated, other: Evaluated) -> tuple[str, str]:
    """What to call both: their folders' names, or as they were given where these are alike."""
    return (one.name, other.name) if one.name != other.name else (str(one.folder), str(other.folder))


def _differing(
    one: Mapping[str, str], other: Mapping[str, str], *, keeps_all: bool = False
) -> list[tuple[str, str, str]]:
    """Name, value here, value there, where they differ."""
    rows = [(name, one.get(name, ""), other.get(name, "")) for name in {**one, **other}]
    return [row for row in rows if keeps_all or row[1] != row[2]]


def _charts(runs: Mapping[str, Evaluated]) -> dict[str, list[Markup]]:
    """Curves of both trainings; none if one of them has no log."""
    try:
        histories: dict[str, History] = {name: read_history(run.folder) for name, run in runs.items()}
    except ValueError:
        return {}
    joined = History({name: [] for history in histories.values() for name in history.columns}, [])
    return {
        heading: [drawn_beside(row, histories) for row in rows]
        for heading, rows in figures(joined).items()
        if heading in HEADINGS
    }
