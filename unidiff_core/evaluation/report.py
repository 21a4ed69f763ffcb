"""The report: pictures first, then the numbers, in one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from unidiff_core.codec.codec import Codec
from unidiff_core.evaluation.criterion import Verdict
from unidiff_core.evaluation.curves import curves
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.run import Evaluation, Example
from unidiff_core.foundation.atomic import write_text

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --dim: #777; --good: #1a7f37; --bad: #cf222e }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { margin: 0 0 .25rem; font-size: 1.6rem } h2 { margin: 2.5rem 0 .5rem; font-size: 1.15rem }
p { margin: .25rem 0 } .dim { color: var(--dim); font-size: .9rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .6rem; margin-top: .8rem }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .6rem; background: var(--soft); display: flex;
  flex-direction: column; align-items: center; gap: .4rem; text-align: center; font-size: .9rem; line-height: 1.3;
  overflow-wrap: anywhere }
.card.wrong { border-color: var(--bad); border-style: dashed }
.card > div { width: 100% } /* shrunk to its content, what is as wide as its box (a player) would have no width */
.card img { width: 100%; max-width: 6rem; margin: auto; image-rendering: pixelated; border-radius: .3rem;
  display: block }
.given { color: var(--dim); font-style: italic } .arrow { color: var(--dim); line-height: .6 }
.fault { color: var(--bad) }
figure { margin: 1rem 0 } figure img { max-width: 100%; image-rendering: pixelated; border-radius: .4rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; font-size: .85rem; color: var(--dim) } td.number { text-align: right }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem }
.curves svg { width: 100%; border: 1px solid var(--line); border-radius: .4rem; font: 10px system-ui, sans-serif;
  fill: none; stroke: currentColor }
.curves text { fill: currentColor; stroke: none } .curves .name { font-weight: 600 }
.curves line { stroke: var(--dim) } .curves circle { fill: currentColor }
.good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 } code { font-size: .95em }
"""

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


def write_report(
    path: Path, evaluation: Evaluation, codecs: Mapping[str, Codec], *, title: str, pictures: Sequence[Path] = ()
) -> None:
    """Write the report, whole or not at all.

    Args:
        path: the HTML file.
        evaluation: what to show.
        codecs: modality → codec, which knows how a sample looks in HTML.
        title: heading.
        pictures: PNG files to show after the samples, such as reconstructions.
    """
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        _summary(evaluation),
        *(_gallery(query, examples, codecs) for query, examples in evaluation.examples.items()),
        *map(_figure, pictures),
        _table(evaluation),
        *curves(evaluation.sweeps),
        _settings(evaluation),
    ]
    write_text(path, "\n".join(parts) + "\n")


def _summary(evaluation: Evaluation) -> str:
    rules = evaluation.settings.criteria
    verdict = f"{counted(evaluation)}." if rules else ""
    return f"<p>{verdict} Samples are not picked; a dashed frame marks what the judge calls wrong.</p>"


def _gallery(query: str, examples: Iterable[Example], codecs: Mapping[str, Codec]) -> str:
    cards = "\n".join(_card(example, codecs) for example in examples)
    return f'<h2><code>{escape(query)}</code></h2><div class="gallery">{cards}</div>'


def _card(example: Example, codecs: Mapping[str, Codec]) -> str:
    given = [f'<div class="given">{codecs[name].html(raw)}</div>' for name, raw in example.given.items()]
    arrow = ['<div class="arrow">↓</div>'] if given else []
    solved = [f"<div>{codecs[name].html(raw)}</div>" for name, raw in example.solved.items()]
    faults = [f'<div class="fault">{escape(", ".join(example.faults))}</div>'] if example.faults else []
    return f'<div class="card{" wrong" * bool(faults)}">{"".join(given + arrow + solved + faults)}</div>'


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = f"{path.parent.name}: {path.stem}".replace("_", " ")
    return f'<h2>{escape(name)}</h2><figure><img src="data:image/png;base64,{data}" alt="{escape(name)}"></figure>'


def _table(evaluation: Evaluation) -> str:
    heads = "".join(
        f"<th>{name}</th>" for name in ("query", "metric", "value", "95 % interval", "null", "n", "criterion")
    )
    lines, last = [], None
    for row in table_rows(evaluation):
        subject = "" if row.subject == last else escape(row.subject)
        last = row.subject
        cells = f"<td>{subject}</td><td>{escape(row.metric)}</td>"
        cells += f'<td class="number">{row.estimate.value:.3f}</td><td>{row.interval}</td>'
        cells += f'<td class="number">{row.null}</td>'
        lines.append(f'<tr>{cells}<td class="number">{row.estimate.n}</td>{_verdict(row)}</tr>')
    missing = "".join(f'<p class="bad">{escape(line)}</p>' for line in unmeasured(evaluation))
    return f'<h2>Measured</h2>{missing}<div class="scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'


def _verdict(row: Row) -> str:
    if row.verdict is None:
        return "<td></td>"
    return f'<td class="{STYLES[row.verdict]}">{MARKS[row.verdict]} {escape(row.criterion)}</td>'


def _settings(evaluation: Evaluation) -> str:
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
    lines = (
        f"{how}, {evaluation.seconds:.0f} seconds in all.",
        f"Samples: {queries}.",
        part,
        *(
            [f"Quality, variety and copies are measured in {', '.join(evaluation.features)}."]
            if evaluation.features
            else []
        ),
        "`null` is what as many real samples would give; `_floor` what the real test samples do.",
        "Judges are trained on real training samples; their rows are their accuracy on real test samples.",
    )
    return "<h2>Settings</h2>" + "".join(f'<p class="dim">{escape(line)}</p>' for line in lines)
