"""`unidiffuser evaluate`: draw samples of several queries, judge them, write the numbers and a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from unidiff_core.evaluation.judge import Judge
    from unidiff_core.evaluation.metric import Metric
    from unidiff_core.evaluation.run import Evaluation, Sampler, Settings

DESCRIPTION = """Draw samples of several queries, judge them against the test data, and write into the model's directory
(or --out) evaluation.json (every number with its 95 % interval) and report.html (pictures first, then the table).

examples:
  unidiffuser evaluate runs/digits -c recipes/digits/evaluate.yaml
  unidiffuser evaluate runs/digits -c recipes/digits/evaluate.yaml --num 100 --steps 10

The last line counts the criteria that are met; one that was not measured is not. The exit code is 0 even if some are
missed, or with --strict 1.
"""
RESULT = "evaluation.json"
REPORT = "report.html"


def run(argv: Sequence[str]) -> None:
    """Evaluate the model that `argv` names.

    Raises:
        ValueError: if the directory, the settings or the shards do not fit; says why.
    """
    from unidiff_core.cli.option import check_device
    from unidiff_core.evaluation.run import Settings

    parser = _parser()
    config = parser.instantiate_classes(parser.parse_args(list(argv)))
    settings = Settings(**{field.name: config[field.name] for field in fields(Settings) if field.name in config})
    if config.num is not None:
        settings = replace(settings, queries={k: replace(q, num=config.num) for k, q in settings.queries.items()})
    settings.check()
    metrics = [*_metrics_of(config.judge), *config.metrics]
    if not metrics:
        raise ValueError("nothing to measure: give --judge, or --metrics")
    directory = Path(config.directory)
    model = _load(directory, config.weights, check_device(config.device), allow_hub=config.allow_hub)
    out = Path(config.out or directory)
    out.mkdir(parents=True, exist_ok=True)
    evaluation = _evaluate(model, metrics, settings)
    write(out, model, evaluation)
    if config.strict and not evaluation.is_passed:
        sys.exit(1)


def write(out: Path, model: Sampler, evaluation: Evaluation) -> None:
    """Write both files into `out` and print the table."""
    from unidiff_core.evaluation.report import write_report

    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    pictures = sorted(out.glob("**/reconstructions.png"))
    evaluation.write(out / RESULT)
    write_report(out / REPORT, evaluation, codecs, title=out.resolve().name, pictures=pictures)
    _print_table(evaluation)
    print(f"{out / RESULT}\n{out / REPORT}")
    _print_verdict(evaluation)


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    from unidiff_core.cli.option import add_options_of, named
    from unidiff_core.evaluation.judge import Judge
    from unidiff_core.evaluation.metric import Metric
    from unidiff_core.evaluation.run import Settings
    from unidiff_core.foundation.plugin import load_plugins

    load_plugins()
    parser = ArgumentParser(**named("evaluate", DESCRIPTION, takes_directory=True))
    parser.add_argument("directory", type=str, help="Model directory.")
    parser.add_argument("-c", "--config", action="config", help="YAML file; later options override it.")
    parser.add_argument(
        "--judge",
        type=Judge | None,
        default=None,
        help="Who reads labels off the samples: the metrics LabelMetric and Nearness with this judge.",
    )
    parser.add_argument(
        "--metrics",
        type=list[Metric],
        default=[],
        help="More metrics; TorchMetric takes any of torchmetrics by class path (FID, KID, CLIP score).",
    )
    parser.add_argument("--out", type=str | None, default=None, help="Folder for the results, if not the model's.")
    parser.add_argument("--weights", choices=["ema", "model"], default="ema", help="The average, or the last ones.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--allow_hub", action="store_true", help="Let codecs fetch weights by hub id.")
    parser.add_argument("--num", type=int | None, default=None, help="Samples of every query, in place of each own.")
    parser.add_argument("--strict", action="store_true", help="Exit with code 1 if a criterion is not met.")
    add_options_of(parser, Settings)
    return parser


def _load(directory: Path, weights: Literal["ema", "model"], device: str, *, allow_hub: bool) -> Sampler:
    from unidiff_core import UniDiffuser

    if not directory.is_dir():
        raise ValueError(f"no such model directory: {directory}. Train one with `unidiffuser fit`")
    model: Sampler = UniDiffuser.from_pretrained(directory, weights=weights, allow_hub=allow_hub).to(device)
    return model


def _metrics_of(judge: Judge | None) -> list[Metric]:
    from unidiff_core.evaluation.labels import LabelMetric
    from unidiff_core.evaluation.nearness import Nearness

    return [] if judge is None else [LabelMetric(judge), Nearness(judge)]


def _evaluate(model: Sampler, metrics: Sequence[Metric], settings: Settings) -> Evaluation:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from unidiff_core.cli.option import cost
    from unidiff_core.evaluation.run import evaluate
    from unidiff_core.foundation.progress import Lines, has_terminal
    from unidiff_core.sampling.spec import TimestepSpec

    for name, query in settings.queries.items():
        spec = TimestepSpec.parse(name, model.modalities)
        print(cost(spec, query.options(settings), model.modalities, query.num), file=sys.stderr, flush=True)
    if not has_terminal():
        lines: dict[str, Lines] = {}

        def tell(name: str, done: float) -> None:
            lines.setdefault(name, Lines(f"evaluate {name}", settings.queries[name].num))(done)

        return evaluate(model, metrics, settings, tell)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns) as progress:
        rows = settings.queries.items()
        bars = {name: progress.add_task(name, total=query.num, start=False) for name, query in rows}

        def advance(name: str, done: float) -> None:
            progress.start_task(bars[name])
            progress.update(bars[name], completed=int(done))

        return evaluate(model, metrics, settings, advance)


def _print_table(evaluation: Evaluation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from unidiff_core.evaluation.report import table_rows, unmeasured

    table = Table("query", Column("metric", no_wrap=True), "value", "95 % interval", "n", "criterion")
    last = None
    for row in table_rows(evaluation):
        if last not in (None, row.subject):
            table.add_section()
        mark = "" if row.is_met is None else "[green]✓[/] " if row.is_met else "[bold red]✗[/] "
        subject = escape(row.subject) if row.subject != last else ""
        number = f"{row.estimate.value:.3f}"
        table.add_row(subject, row.metric, number, row.interval, str(row.estimate.n), mark + escape(row.criterion))
        last = row.subject
    console = Console()
    console.print(table)
    for line in unmeasured(evaluation):
        console.print(f"[bold red]✗[/] {escape(line)}")


def _print_verdict(evaluation: Evaluation) -> None:
    """The last line, which a log's tail shows."""
    rules = evaluation.settings.criteria
    if rules:
        met = sum(rule.is_met(evaluation.queries[rule.query]) for rule in rules)
        print(f"{met} of {len(rules)} criteria met")
