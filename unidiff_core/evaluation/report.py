"""The report: pictures first, then the numbers, in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from unidiff_core.codec.codec import Codec
from unidiff_core.evaluation.criterion import Verdict
from unidiff_core.evaluation.curves import curves
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.gallery import Card, card, shown
from unidiff_core.evaluation.run import Evaluation
from unidiff_core.foundation.atomic import write_json
from unidiff_core.foundation.page import film_of, picture, write_html

RESULT, REPORT, EXAMPLES = "evaluation.json", "report.html", "examples.json"
"""What an evaluation leaves in its folder: the numbers, the page, and the page's samples for other pages."""
MARKS: dict[Verdict, str] = {"met": "✓", "within noise": "≈ within noise of", "missed": "✗", "not measured": "✗"}
STYLES: dict[Verdict, str] = {"met": "good", "within noise": "dim", "missed": "bad", "not measured": "bad"}


@dataclass(frozen=True)
class Row:
    """One line of the table of metrics."""

    subject: str
    """A query, or whose accuracy it is."""
    metric: str
    estimate: Estimate
    criterion: str = ""
    verdict: Verdict | None = None
    """The worst of its criteria's; None without a criterion."""

    @property
    def interval(self) -> str:
        """Ends of the 95 % interval."""
        return self.estimate.interval

    @property
    def null(self) -> str:
        """What as many real samples would give, where that is stated."""
        return "" if self.estimate.null is None else f"{self.estimate.null:.3f}"


def table_rows(evaluation: Evaluation) -> Iterator[Row]:
    """Every metric of every query with its criterion, then what real test samples have, and the judges' accuracies."""
    for query, metrics in evaluation.queries.items():
        for metric, estimate in metrics.items():
            yield _row(evaluation, query, metric, estimate)
    for title, metrics in evaluation.controls.items():
        for metric, estimate in metrics.items():
            yield Row(title, metric, estimate)
    for modality, labels in evaluation.judges.items():
        for label, estimate in labels.items():
            yield Row(f"judge of {modality}", label, estimate)


def _row(evaluation: Evaluation, query: str, metric: str, estimate: Estimate) -> Row:
    mine = [rule for rule in evaluation.settings.criteria if (rule.query, rule.metric) == (query, metric)]
    if not mine:
        return Row(query, metric, estimate)
    verdicts = [rule.verdict(evaluation.queries[query]) for rule in mine]
    worst = max(verdicts, key=("met", "within noise", "missed", "not measured").index)
    return Row(query, metric, estimate, ", ".join(rule.bounds for rule in mine), worst)


def counted(evaluation: Evaluation) -> str:
    """How many criteria are met, how many are within noise (their interval holds the bound), and how many are open."""
    verdicts = [rule.verdict(evaluation.queries[rule.query]) for rule in evaluation.settings.criteria]
    others = [f", {num} {name}" for name in ("within noise", "not measured") if (num := verdicts.count(name))]
    return f"{verdicts.count('met')} of {len(verdicts)} criteria met{''.join(others)}"


def unmeasured(evaluation: Evaluation) -> list[str]:
    """A line for each criterion whose metric was not measured: it counts as missed."""
    rules = evaluation.settings.criteria
    return [
        f"{rule.query}: {rule.metric} {rule.bounds} was not measured"
        for rule in rules
        if rule.value(evaluation.queries[rule.query]) is None
    ]


def cards_of(evaluation: Evaluation, codecs: Mapping[str, Codec]) -> dict[str, list[Card]]:
    """Query → its examples as cards."""
    return {
        query: [card(row.given, row.solved, codecs, row.faults) for row in examples]
        for query, examples in evaluation.examples.items()
    }


def write_examples(path: Path, evaluation: Evaluation, codecs: Mapping[str, Codec]) -> None:
    """Write the examples as JSON, for a page that shows those of two runs: query → cards, HTML by modality.

    Args:
        path: the JSON file.
        evaluation: whose examples.
        codecs: modality → codec, which knows how a sample looks in HTML.
    """
    rows = {
        query: [{"given": dict(one.given), "solved": dict(one.solved), "faults": list(one.faults)} for one in cards]
        for query, cards in cards_of(evaluation, codecs).items()
    }
    write_json(path, rows)


def write_report(
    path: Path,
    evaluation: Evaluation,
    codecs: Mapping[str, Codec],
    *,
    title: str,
    pictures: Sequence[Path] = (),
    films: Sequence[Path] = (),
) -> None:
    """Write the report, whole or not at all.

    Args:
        path: the HTML file.
        evaluation: what to show.
        codecs: modality → codec, which knows how a sample looks in HTML.
        title: heading.
        pictures: PNG files to show after the samples, such as reconstructions.
        films: pages of applications to show after them: chains, variations, interpolations.
    """
    subjects = groupby(table_rows(evaluation), key=lambda row: row.subject)
    write_html(
        path,
        "evaluation.html.j2",
        title=title,
        verdict=f"{counted(evaluation)}." if evaluation.settings.criteria else "",
        galleries=cards_of(evaluation, codecs),
        pairs=_pairs(evaluation, codecs),
        pictures=[(f"{row.parent.name}: {row.stem}".replace("_", " "), picture(row)) for row in pictures],
        films=[(row.parent.name.replace("_", " "), html) for row in films if (html := film_of(row))],
        missing=unmeasured(evaluation),
        unmet=[row for row in table_rows(evaluation) if row.verdict not in (None, "met")],
        tables=[(subject, list(rows)) for subject, rows in subjects],
        marks=MARKS,
        styles=STYLES,
        curves=list(curves(evaluation.sweeps, evaluation.axes, evaluation.settings.published)),
        settings=_settings(evaluation),
        origin=flat(evaluation.origin),
    )


def _pairs(evaluation: Evaluation, codecs: Mapping[str, Codec]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Query, modality, and its pairs for the template."""
    return [
        (
            query,
            name,
            [
                {
                    "sample": shown(codecs[name], pair.sample),
                    "nearest": shown(codecs[name], pair.nearest),
                    "ratio": pair.ratio,
                    "is_suspicious": pair.is_suspicious,
                }
                for pair in pairs
            ],
        )
        for query, rows in evaluation.pairs.items()
        for name, pairs in rows.items()
    ]


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested plain data as one level of texts: ``{a: {b: 1}}`` → ``{"a: b": "1"}``."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        path = f"{above}: {name}" if above else str(name)
        if isinstance(value, Mapping):
            rows |= flat(value, path)
        else:
            rows[path] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return rows


def _settings(evaluation: Evaluation) -> list[str]:
    settings = evaluation.settings
    queries = "; ".join(f"{name}: {query.text(settings)}" for name, query in settings.queries.items())
    dropped = ", ignored modalities dropped" if settings.drop_ignored else ""
    others = "".join(f", {name} {value}" for name, value in settings.others.items() if name != "guidance")
    how = f"{settings.steps} steps of {settings.solver or 'the default solver'}{dropped}{others}, seed {settings.seed}"
    part = {
        "all": "All test samples.",
        "test": "The test part of the test samples; settings are chosen on the validation part.",
        "validation": "The validation part of the test samples, to choose settings by: no figures to report.",
    }[settings.part]
    return [
        f"{how}, {evaluation.seconds:.0f} seconds in all.",
        f"Samples: {queries}.",
        part,
        *(
            [f"Quality, variety and copies are measured in {', '.join(evaluation.features)}."]
            if evaluation.features
            else []
        ),
        "Null: what as many real samples would give on average. Metrics in _floor: what the real test samples have.",
        "Judges are trained on real training samples; their rows are their accuracy on real test samples.",
    ]
