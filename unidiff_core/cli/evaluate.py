"""`unidiffuser evaluate`: draw samples of several queries, judge them, write the numbers and a report."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unidiff_core.cli.option import Parser
    from unidiff_core.evaluation.criterion import Criterion
    from unidiff_core.evaluation.features import Features
    from unidiff_core.evaluation.judge import Judge
    from unidiff_core.evaluation.kept import Kept
    from unidiff_core.evaluation.metric import Metric
    from unidiff_core.evaluation.run import Evaluation, Sampler, Settings
    from unidiff_core.sampling.options import SamplingOptions

DESCRIPTION = """Draw samples of several queries, judge them against the test data, and write into the model's directory
(or --out) evaluation.json (every number with its 95 % interval), report.html (pictures first, then the table) and
examples.json (those pictures, for `unidiffuser report A B`), and into the model's card, README.md.

examples:
  unidiffuser evaluate runs/digits -c recipes/digits/evaluate.yaml
  unidiffuser evaluate runs/digits -c recipes/digits/evaluate.yaml --num 100 --steps 10
  unidiffuser evaluate runs/mine --queries all --train runs/mine/shards/train --test runs/mine/shards/test
  unidiffuser evaluate runs/digits -c recipes/digits/evaluate.yaml --part validation --sweep guidance=0,2,4 --out sweep

Samples are drawn as a query says, else as the options say, else as the model directory's own section `sampling` does.
Without --judge and --metrics, quality, variety and copies are measured in the latents of the model's own codecs.
Samples are kept in draws/ beside the results, a part at a time: killed and called again, it draws only what is missing.
Under torchrun each process draws its share, in a folder that all of them see, and the first measures:
  torchrun --nproc_per_node=8 --no-python unidiffuser evaluate runs/digits -c recipes/digits/evaluate.yaml --device=cuda

The last line counts the criteria that are met; one within noise, or not measured, is not. The exit code is 0 even if
some are missed, or with --strict 1.
"""
DRAWS = "draws"
MARKS = {
    "met": "[green]✓[/] ",
    "within noise": "[yellow]≈ within noise of[/] ",
    "missed": "[bold red]✗[/] ",
    "not measured": "[bold red]✗[/] ",
}


def run(argv: Sequence[str]) -> None:
    """Evaluate the model that `argv` names.

    Raises:
        ValueError: if the directory, the settings or the shards do not fit; says why.
    """
    import torch

    from unidiff_core import UniDiffuser
    from unidiff_core.cli.call import check_out, model_says
    from unidiff_core.cli.encode import find_device
    from unidiff_core.cli.option import check_device
    from unidiff_core.evaluation.features import LatentFeatures
    from unidiff_core.evaluation.kept import Kept
    from unidiff_core.evaluation.report import EXAMPLES, REPORT, RESULT
    from unidiff_core.evaluation.run import Settings

    parser = _parser()
    words = _with_sweeps(argv)
    asks_all = [i for i in range(len(words)) if words[i] == "--queries=all" or words[i : i + 2] == ["--queries", "all"]]
    for i in asks_all:
        words[i : i + 1 + (words[i] == "--queries")] = ["--queries={}"]
    config = parser.instantiate_classes(parser.parse_args(words))
    directory = Path(config.model)
    _check_directory(directory)
    if asks_all:
        config.queries = _all_of(directory)
    if asks_all or _is_given("queries", argv):
        config.criteria = _about(config.criteria, config.queries)
    own = model_says(_sampling_of(directory), vars(parser.parse_args(words, defaults=False)), directory)
    settings = Settings(**{field.name: config[field.name] for field in fields(Settings) if field.name in config} | own)
    if config.num is not None:
        settings = replace(settings, queries={k: replace(q, num=config.num) for k, q in settings.queries.items()})
    settings.check()
    _tell_kept(argv, settings)
    metrics = [*_metrics_of(config.judge), *config.metrics] or in_features(LatentFeatures())
    out = Path(config.out or directory).expanduser()
    check_out(out, [DRAWS], [RESULT, REPORT, EXAMPLES], "the results")
    process, processes = _share(os.environ)
    device = find_device(check_device(config.device), os.environ, torch.cuda.device_count())
    model: Sampler = UniDiffuser.from_pretrained(
        directory, weights=config.weights, allow_hub=config.allow_hub, precision=config.precision
    ).to(device)
    out.mkdir(parents=True, exist_ok=True)
    kept = Kept(out / DRAWS, _fingerprint(directory, config.weights, config.precision))
    evaluation = _evaluate(model, metrics, settings, kept, process, processes)
    if evaluation is None:
        return
    weights = f"{config.weights}, fingerprint {kept.model[:16]}"
    command = shlex.join(["unidiffuser", "evaluate", *argv])
    evaluation.origin |= {"command": command, "device": config.device, "weights": weights}
    write(out, model, evaluation)
    if out.resolve() == directory.resolve():
        _write_card(directory, model, evaluation)
    if config.strict and not evaluation.is_passed:
        sys.exit(1)


def _with_sweeps(argv: Sequence[str]) -> list[str]:
    """``--sweep guidance=0,2`` as the parser wants it, ``--sweep.guidance=[0,2]``."""
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        given = rest.pop(0) if word == "--sweep" and rest else word.removeprefix("--sweep=")
        if word == "--sweep" or given != word:
            option, sign, values = given.partition("=")
            if not sign or not values:
                raise ValueError(f"--sweep={given}: give an option of sampling and its values, --sweep guidance=0,2,4")
            word = f"--sweep.{option}=[{values}]"
        words.append(word)
    return words


def _is_given(option: str, argv: Sequence[str]) -> bool:
    """Whether the command line itself states an option."""
    return any(word == f"--{option}" or word.startswith((f"--{option}=", f"--{option}.")) for word in argv)


def _about(criteria: Sequence[Criterion], queries: Mapping[str, Any]) -> list[Criterion]:
    """The criteria on queries that the command line has left; the others are counted on stderr."""
    kept = [criterion for criterion in criteria if criterion.query in queries]
    if left := len(criteria) - len(kept):
        print(f"{left} of {len(criteria)} criteria are about queries that are left out: not counted", file=sys.stderr)
    return kept


def _tell_kept(argv: Sequence[str], settings: Settings) -> None:
    """Say which queries state themselves what the command line gives for those that do not."""
    for name, query in settings.queries.items():
        for option, value in query.stated().items():
            if _is_given(option, argv) and value != getattr(settings, option):
                said = f"{name} keeps its own {option}, {value}: --queries changes that"
                print(said, file=sys.stderr, flush=True)


def _all_of(directory: Path) -> dict[str, Any]:
    """Every query over a model directory's modalities, which are counted on stderr."""
    from unidiff_core.evaluation.run import Query, all_queries
    from unidiff_core.foundation.error import counted
    from unidiff_core.serialization.model_directory import read_description

    names = list(read_description(directory).modalities)
    queries = all_queries(names, Query().num)
    print(
        f"{counted(len(queries), 'query', 'queries')} over {', '.join(names)}: {'; '.join(queries)}",
        file=sys.stderr,
        flush=True,
    )
    return queries


def _sampling_of(directory: Path) -> SamplingOptions:
    """How a model is sampled where nothing else is said."""
    from unidiff_core.sampling.options import SamplingOptions
    from unidiff_core.serialization.model_directory import read_config

    return SamplingOptions.read(read_config(directory).get("sampling") or {})


def _fingerprint(directory: Path, weights: str, precision: str = "fp32") -> str:
    """What identifies a model: a hash of its description and of all of its weights, and what they are rounded to."""
    digest = hashlib.sha256((weights if precision == "fp32" else f"{weights} {precision}").encode())
    for path in sorted([directory / "config.yaml", *directory.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def write(out: Path, model: Sampler, evaluation: Evaluation) -> None:
    """Write all files into `out` and print the table."""
    from unidiff_core.evaluation.report import EXAMPLES, REPORT, RESULT, write_examples, write_report
    from unidiff_core.foundation.page import FILM

    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    pictures, films = sorted(out.glob("**/reconstructions.png")), sorted(out.glob(f"**/{FILM}"))
    evaluation.write(out / RESULT)
    write_examples(out / EXAMPLES, evaluation, codecs)
    write_report(out / REPORT, evaluation, codecs, title=out.resolve().name, pictures=pictures, films=films)
    _print_table(evaluation)
    print(f"{out / RESULT}\n{out / REPORT}")
    _print_verdict(evaluation)


def _write_card(directory: Path, model: Sampler, evaluation: Evaluation) -> None:
    from unidiff_core.evaluation.card import measured_of
    from unidiff_core.serialization.card import write_card
    from unidiff_core.serialization.model_directory import read_description

    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    write_card(directory, read_description(directory, allow_hub=True), measured_of(evaluation, codecs, directory))


def _parser() -> Parser:
    from unidiff_core.cli.option import CONFIG, MODEL, Parser, add_options_of, add_precision, named
    from unidiff_core.evaluation.judge import Judge
    from unidiff_core.evaluation.metric import Metric
    from unidiff_core.evaluation.run import Settings
    from unidiff_core.foundation.plugin import load_plugins

    load_plugins()
    parser = Parser(**named("evaluate", DESCRIPTION, takes_directory=True))
    parser.add_argument("model", type=str, metavar="MODEL", help=MODEL)
    parser.add_argument("-c", "--config", action="config", help=CONFIG)
    parser.add_argument(
        "--judge",
        type=Judge | None,
        default=None,
        help="Who reads labels off the samples: every metric of labels, and those of features in this judge's.",
    )
    parser.add_argument(
        "--metrics",
        type=list[Metric],
        default=[],
        help="More metrics; TorchMetric takes any of torchmetrics by class path (FID, KID, CLIP score).",
    )
    parser.add_argument("--out", type=str | None, default=None, help="Folder for the results, if not the model's.")
    parser.add_argument("--weights", choices=["ema", "model"], default="ema", help="The average, or the last ones.")
    add_precision(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--allow_hub", action="store_true", help="Let codecs fetch weights by hub id.")
    parser.add_argument("--num", type=int | None, default=None, help="Samples of every query, in place of each own.")
    parser.add_argument("--strict", action="store_true", help="Exit with code 1 if a criterion is not met.")
    add_options_of(parser, Settings)
    return parser


def _check_directory(directory: Path) -> None:
    from unidiff_core.serialization.model_directory import read_config

    read_config(directory)


def _metrics_of(judge: Judge | None) -> list[Metric]:
    from unidiff_core.evaluation.features import JudgeFeatures
    from unidiff_core.evaluation.frequencies import Frequencies
    from unidiff_core.evaluation.labels import LabelMetric

    return [] if judge is None else [LabelMetric(judge), Frequencies(judge), *in_features(JudgeFeatures(judge), judge)]


def in_features(features: Features, judge: Judge | None = None) -> list[Metric]:
    """Every metric that needs features alone: quality, variety and copies."""
    from unidiff_core.evaluation.copies import Copies
    from unidiff_core.evaluation.frechet import Frechet
    from unidiff_core.evaluation.kernel import Kernel
    from unidiff_core.evaluation.manifold import Manifold
    from unidiff_core.evaluation.variety import Variety

    return [Frechet(features), Kernel(features), Manifold(features), Variety(features, judge), Copies(features)]


def _share(environment: Mapping[str, str]) -> tuple[int, int]:
    """(process, processes) as torchrun says; (0, 1) without it."""
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return 0, 1


def _drawn_together(
    model: Sampler,
    metrics: Sequence[Metric],
    settings: Settings,
    kept: Kept,
    advance: Callable[[str, float], None],
    process: int,
    processes: int,
) -> Evaluation | None:
    """Of several processes each draws its share; then the first measures, and has the result."""
    from datetime import timedelta

    from torch import distributed

    from unidiff_core.evaluation.run import draw_share, evaluate, fitted

    if processes == 1:
        return evaluate(model, metrics, settings, advance, kept=kept)
    reference = fitted(model, [] if process else metrics, settings)
    draw_share(model, settings, reference.test, kept, advance, process=process, processes=processes)
    distributed.init_process_group("gloo", timeout=timedelta(days=30))  # the slowest may have much more to do
    distributed.barrier()
    distributed.destroy_process_group()
    return None if process else evaluate(model, metrics, settings, advance, kept=kept, reference=reference)


def _evaluate(
    model: Sampler, metrics: Sequence[Metric], settings: Settings, kept: Kept, process: int, processes: int
) -> Evaluation | None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from unidiff_core.cli.option import cost
    from unidiff_core.foundation.progress import Lines, has_terminal
    from unidiff_core.sampling.spec import TimestepSpec

    share = (process, processes)
    if process:
        return _drawn_together(model, metrics, settings, kept, lambda name, done: None, *share)
    runs = settings.runs(model)
    nums = {run.title: run.query.num for run in runs}
    for run in runs:
        spec = TimestepSpec.parse(run.name, model.modalities)
        said = cost(spec, run.query.options(settings), model.modalities, run.query.num)
        print(f"{run.option} {run.value}, {said}" if run.option else said, file=sys.stderr, flush=True)
    if not has_terminal():
        lines: dict[str, Lines] = {}

        def tell(name: str, done: float) -> None:
            lines.setdefault(name, Lines(f"evaluate {name}", nums[name]))(done)

        return _drawn_together(model, metrics, settings, kept, tell, *share)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns) as progress:
        bars = {name: progress.add_task(name, total=num, start=False) for name, num in nums.items()}

        def advance(name: str, done: float) -> None:
            progress.start_task(bars[name])
            progress.update(bars[name], completed=int(done))

        return _drawn_together(model, metrics, settings, kept, advance, *share)


def _print_table(evaluation: Evaluation) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    from unidiff_core.cli.option import Output
    from unidiff_core.evaluation.report import table_rows, unmeasured

    table = Table("query", Column("metric", no_wrap=True), "value", "95 % interval", "null", "n", "criterion")
    last = None
    for row in table_rows(evaluation):
        if last not in (None, row.subject):
            table.add_section()
        mark = MARKS[row.verdict] if row.verdict else ""
        subject = escape(row.subject) if row.subject != last else ""
        number = f"{row.estimate.value:.3f}"
        table.add_row(
            subject, row.metric, number, row.interval, row.null, str(row.estimate.n), mark + escape(row.criterion)
        )
        last = row.subject
    console = Output()
    console.print(table)
    for line in unmeasured(evaluation):
        console.print(f"[bold red]✗[/] {escape(line)}")


def _print_verdict(evaluation: Evaluation) -> None:
    """The last line, which a log's tail shows."""
    from unidiff_core.evaluation.report import counted

    if evaluation.settings.criteria:
        print(counted(evaluation))
