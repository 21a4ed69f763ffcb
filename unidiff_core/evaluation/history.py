"""A training's history: what the CSV logger wrote while it ran, and the page that shows it as curves."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from unidiff_core.evaluation.chart import Line, Point, chart, short
from unidiff_core.evaluation.show import PAGE, STEPS, steps_shown
from unidiff_core.foundation.page import link_to, write_html

METRICS = "metrics.csv"
PLACES = ("", "*/", "*/*/")
"""Where a logger writes in its folder: ``logs/version_0/``; what lies deeper is another run's."""
STEP = "step"
UNTOLD = (STEP, "epoch")
"""Columns that are no values."""
SPEED = {
    "Gradient norm, before it is clipped": {"": "train/gradient_norm"},
    "Learning rate": {"": "train/learning_rate"},
    "Samples a second": {"": "train/samples_per_second"},
    "Seconds a step": {"whole": "train/seconds_per_step", "waiting for data": "train/seconds_for_data"},
}
"""Charts of the columns that `LogTraining` writes beside losses: title → name of a line → column."""
_BAND = re.compile(r"(?P<stream>.+)/(?P<band>\d\.\d\d-\d\.\d\d)")

Rows = list[tuple[int, float]]
"""Steps with a value each."""


@dataclass(frozen=True)
class LogFile:
    """A file of a logger: a training that was interrupted and went on has several."""

    path: Path
    first: int
    """Step of its first row."""
    last: int


@dataclass(frozen=True)
class History:
    """What was logged of a training, by column."""

    columns: dict[str, Rows]
    files: list[LogFile]

    @property
    def last(self) -> int:
        """The last step of which something was logged."""
        return max(file.last for file in self.files)


@dataclass(frozen=True)
class Figure:
    """What one chart shows."""

    title: str
    lines: dict[str, str]
    """Name of a line → column."""


def read_history(folder: Path) -> History:
    """What the CSV logger wrote into a run's folder, or below it.

    Of a training that went on from a checkpoint there are several files, a folder ``version_N`` each. Each stands in
    place of what those before it say of its first step and later ones.

    Raises:
        ValueError: if there is no such folder, no such file in it, or one that is none of a logger's; says what to do.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}: give a run's folder, a training's "
            f"default_root_dir, runs/digits say, in which its logger wrote {METRICS}"
        )
    found = [path for depth in PLACES for path in folder.glob(f"{depth}{METRICS}")]
    paths = sorted(found, key=lambda path: (path.parent.parent, _version(path)))
    tables = {path: table for path in paths if (table := _read(path))}
    if not tables:
        raise ValueError(
            f"{folder} has no {METRICS} with a row, neither itself nor below it: a training writes one whose "
            "trainer.logger is pytorch_lightning.loggers.CSVLogger with this folder as its save_dir, as in "
            "recipes/digits/fit.yaml, and it has its first row after log_every_n_steps steps"
        )
    columns: dict[str, dict[int, float]] = {}
    files = []
    for path, table in tables.items():
        steps = [step for rows in table.values() for step, _ in rows]
        files.append(LogFile(path, min(steps), max(steps)))
        for old in columns.values():
            for step in [step for step in old if step >= min(steps)]:
                del old[step]
        for name, rows in table.items():
            columns.setdefault(name, {}).update(rows)
    return History({name: sorted(rows.items()) for name, rows in columns.items() if rows}, files)


def _version(path: Path) -> tuple[int, str]:
    number = path.parent.name.rpartition("_")[2]
    return (int(number) if number.isdecimal() else -1, path.parent.name)


def _read(path: Path) -> dict[str, Rows]:
    """A file's columns, without the cells that are empty; a last row that is being written is left out.

    Raises:
        ValueError: if it is no such file; names it and the line.
    """
    columns: dict[str, Rows] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames and STEP not in rows.fieldnames:
            raise ValueError(f"{path} has no column {STEP!r}: it is not what a CSVLogger writes; move it away")
        for row in rows:
            if None in row.values() or None in row:
                continue
            try:
                values = {name: float(cell) for name, cell in row.items() if cell and name not in UNTOLD}
                step = int(row[STEP]) + 1  # Lightning's steps begin with 0; here a step is how many were made
            except ValueError as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}; move the file away") from error
            for name, value in values.items():
                columns.setdefault(name, []).append((step, value))
    return columns


def figures(history: History) -> dict[str, list[Figure]]:
    """What there is to show, by heading; every column stands in one chart."""
    left = [name for rows in SPEED.values() for name in rows.values()]
    bands, losses, others = dict[str, dict[str, str]](), dict[str, dict[str, str]](), dict[str, dict[str, str]]()
    for column in history.columns:
        if column in left:
            continue
        stage, _, name = column.partition("/") if "/" in column else ("", "", column)
        if found := _BAND.fullmatch(name):
            bands.setdefault(found["stream"], {})[found["band"]] = column
        else:
            (losses if _is_loss(name) else others).setdefault(name, {})[stage] = column
    first = sorted(losses, key=lambda name: (name != "loss", name))
    speed = {title: {key: row for key, row in rows.items() if row in history.columns} for title, rows in SPEED.items()}
    return {
        heading: [Figure(title, lines) for title, lines in rows.items() if lines]
        for heading, rows in {
            "Loss": {f"loss of {name}" if name != "loss" else name: losses[name] for name in first},
            "Loss by stretch of time": {name: dict(sorted(lines.items())) for name, lines in sorted(bands.items())},
            "Steps": speed,
            "Also logged": others,
        }.items()
        if any(rows.values())
    }


def _is_loss(name: str) -> bool:
    """Whether a column is the loss, or that of a stream, ``<modality>.<stream>``."""
    return name == "loss" or "." in name


def drawn(figure: Figure, history: History) -> Markup:
    """A figure of one training."""
    lines = [
        Line(name, _points(history.columns[column]), colour=i, is_dashed=name == "validation")
        for i, (name, column) in enumerate(figure.lines.items())
    ]
    return chart(figure.title, lines, x_title="step")


def drawn_beside(figure: Figure, histories: Mapping[str, History]) -> Markup:
    """A figure of several trainings: a colour for each of them, dashes for what is not of training steps."""
    lines = [
        Line(f"{run} {name}".strip() if len(figure.lines) > 1 else run, _points(history.columns[column]), i, k > 0)
        for i, (run, history) in enumerate(histories.items())
        for k, (name, column) in enumerate(figure.lines.items())
        if column in history.columns
    ]
    return chart(figure.title, lines, x_title="step")


def _points(rows: Rows) -> list[Point]:
    return [Point(step, value) for step, value in rows]


def write_training(path: Path, folder: Path, *, links: Sequence[str] = ()) -> History:
    """Write a training's page: the last samples that it showed, then its curves.

    Args:
        path: the HTML file.
        folder: of the run.
        links: files to point to, if they are in that folder.

    Raises:
        ValueError: as `read_history`.
    """
    history = read_history(folder)
    there = [folder / name for name in (PAGE, *links) if (folder / name).is_file()]
    samples = steps_shown(folder) if (folder / STEPS).is_dir() else []
    charts = {heading: [drawn(row, history) for row in rows] for heading, rows in figures(history).items()}
    write_html(
        path,
        "training.html.j2",
        title=f"{folder.resolve().name}: the training",
        tiles=_tiles(history),
        links=[(row.name, link_to(row, path)) for row in there],
        newest=samples[0] if samples else None,
        num_shown=len(samples),
        charts=charts,
        files=[(row.path.relative_to(folder), row.first, row.last) for row in history.files],
    )
    return history


def _tiles(history: History) -> list[tuple[str, str]]:
    """Name and value of what a person asks first."""
    of = history.columns.get
    rows = [("steps", f"{history.last}")]
    for stage in ("train", "validation"):
        if values := of(f"{stage}/loss"):
            rows.append((f"{stage} loss, at the end", short(values[-1][1])))
    if values := of("validation/loss"):
        step, least = min(values, key=lambda row: row[1] if math.isfinite(row[1]) else math.inf)
        rows.append((f"least validation loss, step {step}", short(least)))
    if seconds := of("train/seconds_per_step"):
        whole = _sum_over_steps(seconds)
        rows.append(("in training steps", _duration(whole)))
        if waiting := of("train/seconds_for_data"):
            rows.append(("of that waiting for data", f"{100 * _sum_over_steps(waiting) / (whole or 1):.1f} %"))
    if speed := of("train/samples_per_second"):
        rows.append(("samples a second, median", short(sorted(value for _, value in speed)[len(speed) // 2])))
    return rows


def _sum_over_steps(rows: Rows) -> float:
    """Sum over all steps of means, each of the steps since the row before."""
    before = [0, *(step for step, _ in rows[:-1])]
    return math.fsum(value * (step - last) for (step, value), last in zip(rows, before, strict=True))


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds as far as they matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
