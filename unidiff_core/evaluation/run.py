"""Evaluation: samples of each query, measured by metrics against real data. Each metric pins its own definition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints

import numpy as np

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.data.location import list_shards
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.metric import Drawn, Hits, Metric, Raws, Reference, Samples, load_samples
from unidiff_core.foundation.atomic import write_json
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.sampling.loop import OnStep, StepReport
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.serialization.description import describe

E = TypeVar("E")


class Sampler(Protocol):
    """What evaluation needs of a model: `UniDiffuser` has it."""

    modalities: Any
    """Name → modality, which has a `codec` and a `process`."""

    def sample(
        self,
        spec: str,
        given: Raws | None = None,
        num: int | None = None,
        *,
        options: SamplingOptions | None = None,
        on_step: OnStep | None = None,
    ) -> Raws:
        """Raw samples of the solved modalities, each list of length `num`."""


_HINTS = get_type_hints(SamplingOptions)
_OPTIONS = [row for row in fields(SamplingOptions) if row.name not in ("batch_size", "constrain")]


@dataclass(frozen=True)
class _Query:
    """One thing to ask of the model: how many samples, and any of `SamplingOptions` in place of the settings' own."""

    num: int = 1080
    """Number of samples."""

    def options(self, settings: SamplingOptions) -> SamplingOptions:
        """How to sample: its own options, and the settings' where it has none."""
        return SamplingOptions(
            **{row.name: getattr(settings, row.name) for row in fields(SamplingOptions)} | self.stated()
        )

    def stated(self) -> dict[str, Any]:
        """The options that it states itself."""
        rows = {row.name: getattr(self, row.name) for row in _OPTIONS}
        return {name: value for name, value in rows.items() if value is not None}

    def text(self, settings: SamplingOptions) -> str:
        """For a person: number of samples, guidance, and the other options that it states itself."""
        stated = {"guidance": settings.guidance} | self.stated()
        own = [stated.pop("solver", None), (steps := stated.pop("steps", None)) and f"{steps} steps"]
        texts = [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in stated.items()
        ]
        return ", ".join([str(self.num), *(str(text) for text in own if text), *texts])


Query: Any = make_dataclass(
    "Query",
    [(row.name, _HINTS[row.name] | None, None) for row in _OPTIONS],
    bases=(_Query,),
    namespace={"__doc__": _Query.__doc__},
    frozen=True,
)
"""A query of an evaluation; what it may state is read off `SamplingOptions`."""
Query.__module__ = __name__


@dataclass(frozen=True)
class Criterion:
    """What a metric of a query must reach."""

    query: str
    """The query, as it is written among the queries."""
    metric: str
    minus: str | None = None
    """Another metric of the query, subtracted first: the bounds are then relative to it."""
    at_least: float | None = None
    at_most: float | None = None

    def value(self, metrics: Mapping[str, Estimate]) -> float | None:
        """The number that is compared, or None if it was not measured."""
        names = [self.metric, *([self.minus] if self.minus else [])]
        if any(name not in metrics for name in names):
            return None
        return metrics[self.metric].value - (metrics[self.minus].value if self.minus else 0.0)

    def is_met(self, metrics: Mapping[str, Estimate]) -> bool:
        """Whether the point estimate is within the bounds; not if it was not measured."""
        value = self.value(metrics)
        if value is None:
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    @property
    def bounds(self) -> str:
        """What the metric must be, ``≥ 0.95`` or ``≥ given_digit − 0.03``."""
        pairs = [(sign, bound) for sign, bound in (("≥", self.at_least), ("≤", self.at_most)) if bound is not None]
        if self.minus is None:
            return " and ".join(f"{sign} {bound:g}" for sign, bound in pairs)
        return " and ".join(f"{sign} {self.minus} {'−' if bound < 0 else '+'} {abs(bound):g}" for sign, bound in pairs)


@dataclass(frozen=True)
class Settings(SamplingOptions):
    """How to evaluate; the options of sampling are those of the queries that state none of their own."""

    train: str
    """Raw training shards: a folder, a pattern or a URL. Their samples may lack modalities."""
    test: str
    """Raw test shards, likewise, whose samples are complete; the givens come from it, in order and round and round."""
    queries: dict[str, Query]
    """Timestep spec as text → what to draw: {a | b: {num: 1000, guidance: 2.0}, ...}."""
    criteria: list[Criterion] = field(default_factory=list)
    """What must be reached: [{query: a | b, metric: label, at_least: 0.95}, ...]."""
    num_examples: int = 24
    """Samples of each query kept for the report."""
    batch_size: int = field(default=120, kw_only=True)
    """Samples drawn at once; changes no sample."""

    def check(self) -> None:
        """Refuse what cannot be evaluated, before the first sample is drawn.

        Raises:
            ValueError: names the value and the fix.
        """
        for criterion in self.criteria:
            if criterion.query not in self.queries:
                known = ", ".join(map(repr, self.queries))
                raise ValueError(f"a criterion is about {criterion.query!r}, which is no query; queries: {known}")
            if criterion.at_least is None and criterion.at_most is None:
                raise ValueError(f"the criterion on {criterion.metric!r} needs at_least or at_most")
        for name, query in self.queries.items():
            if query.num < 1:
                raise ValueError(f"the query {name!r} has num {query.num}; it needs at least 1 sample")
        for folder in (self.train, self.test):
            list_shards(folder)

    @property
    def others(self) -> dict[str, Any]:
        """The options of sampling that are seldom stated, as plain data: those that are not the default."""
        default = SamplingOptions()
        rows = {row.name: getattr(self, row.name) for row in fields(SamplingOptions) if row.name not in _ALWAYS_TOLD}
        return {name: _plain(value) for name, value in rows.items() if value != getattr(default, name)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data; options that are as they always were are left out."""
        defaults = {"guidance": self.guidance, "steps": None, "solver": None}
        return {
            "train": self.train,
            "test": self.test,
            "queries": {
                name: {"num": query.num} | {key: _plain(value) for key, value in (defaults | query.stated()).items()}
                for name, query in self.queries.items()
            },
            "criteria": [asdict(criterion) for criterion in self.criteria],
            **{name: _plain(getattr(self, name)) for name in _ALWAYS_TOLD},
            "num_examples": self.num_examples,
            **self.others,
        }


_ALWAYS_TOLD = ("steps", "solver", "drop_ignored", "seed", "batch_size")


def _plain(value: Any) -> Any:
    """An option as plain data, whatever Python gave: what no plugin registered is told by its text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    try:
        return describe(value, load_plugins())
    except ValueError:
        return getattr(value, "__qualname__", str(value))


@dataclass(frozen=True)
class Example:
    """One sample for people to look at."""

    given: dict[str, Raw]
    solved: dict[str, Raw]
    faults: tuple[str, ...]
    """Metrics in which it is wrong."""


@dataclass
class Evaluation:
    """What was measured."""

    queries: dict[str, dict[str, Estimate]]
    judges: dict[str, dict[str, Estimate]]
    """Modality → label → the judge's accuracy on real test samples, where they state it."""
    settings: Settings
    examples: dict[str, list[Example]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_passed(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.is_met(self.queries[criterion.query]) for criterion in self.settings.criteria)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to ``evaluation.json``."""
        tables = {"queries": self.queries, "judges": self.judges}
        plain = {
            name: {row: {metric: cell.to_dict() for metric, cell in cells.items()} for row, cells in table.items()}
            for name, table in tables.items()
        }
        return {
            **plain,
            "criteria": [self._verdict(criterion) for criterion in self.settings.criteria],
            "passed": self.is_passed,
            "settings": self.settings.to_dict(),
            "seconds": round(self.seconds, 1),
        }

    def _verdict(self, criterion: Criterion) -> dict[str, Any]:
        metrics = self.queries[criterion.query]
        return {**asdict(criterion), "value": criterion.value(metrics), "passed": criterion.is_met(metrics)}

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(path, self.to_dict())


def draw(
    model: Sampler, name: str, settings: Settings, test: Samples, advance: Callable[[float], None] = lambda done: None
) -> Drawn:
    """Sample one query, with givens from the test samples.

    Args:
        model: what to sample from.
        name: the query, a timestep spec as text.
        settings: seed, steps and the rest.
        test: real samples, used in order and again from the start.
        advance: called with the number of samples done so far; a sample half way counts as a half.
    """
    query = settings.queries[name]
    spec = TimestepSpec.parse(name, model.modalities)
    given_names = [given for given, path in spec.paths.items() if path.needs_value]
    index = [i % len(test) for i in range(query.num)]
    given = {given: [test.raws[given][i] for i in index] for given in given_names}

    def on_step(report: StepReport) -> None:
        advance(query.num * report.step / report.steps)

    solved = model.sample(name, given=given, num=query.num, options=query.options(settings), on_step=on_step)
    return Drawn(given, solved, {label: [values[i] for i in index] for label, values in test.labels.items()})


def _examples(drawn: Drawn, faults: Mapping[str, Hits], count: int) -> list[Example]:
    """Some samples, evenly spread over what was drawn, as neighbours in the test data are alike."""
    num = len(next(iter(drawn.solved.values())))
    return [
        Example(
            {name: raws[i] for name, raws in drawn.given.items()},
            {name: raws[i] for name, raws in drawn.solved.items()},
            tuple(name for name, hits in faults.items() if hits.counts[i] and not hits.is_hit[i]),
        )
        for i in np.linspace(0, num - 1, min(count, num)).round().astype(int)
    ]


def evaluate(
    model: Sampler,
    metrics: Sequence[Metric],
    settings: Settings,
    advance: Callable[[str, float], None] = lambda query, done: None,
) -> Evaluation:
    """Fit the metrics, draw every query, and measure it.

    Args:
        model: what to evaluate.
        metrics: in the order of the tables; fitted here, on the real samples.
        settings: what to draw, and from where the real samples come.
        advance: called with a query and the number of its samples done so far.

    Raises:
        ValueError: if the settings or the shards do not fit the model or a metric, or two metrics have one name.
    """
    start = time.perf_counter()
    settings.check()
    reference = _reference(model, settings)
    for metric in metrics:
        metric.fit(reference)
    result = Evaluation({}, _accuracies(metrics, reference), settings)
    for name in settings.queries:
        drawn = draw(model, name, settings, reference.test, lambda done, name=name: advance(name, done))  # type: ignore[misc]
        rows = [metric.measure(drawn, reference) for metric in metrics]
        result.queries[name] = _united(row.estimates for row in rows)
        faults = {key: hits for row in rows for key, hits in row.faults.items()}
        result.examples[name] = _examples(drawn, faults, settings.num_examples)
    result.seconds = time.perf_counter() - start
    return result


def _accuracies(metrics: Sequence[Metric], reference: Reference) -> dict[str, dict[str, Estimate]]:
    """Modality → label → how well the metrics read real test samples."""
    rows = [metric.accuracies(reference) for metric in metrics]
    return {name: _united(row.get(name, {}) for row in rows) for name in {name: None for row in rows for name in row}}


def _united(rows: Iterable[Mapping[str, E]]) -> dict[str, E]:
    """What several metrics say, in their order."""
    united: dict[str, E] = {}
    for row in rows:
        if twice := united.keys() & row.keys():
            raise ValueError(
                f"two metrics give {', '.join(sorted(twice))}; name one of them differently, or leave it out"
            )
        united |= row
    return united


def _reference(model: Sampler, settings: Settings) -> Reference:
    """The real samples of the modalities that the queries are about; the shards need not hold the others."""
    used: set[str] = set()
    for name, query in settings.queries.items():
        spec, options = TimestepSpec.parse(name, model.modalities), query.options(settings)
        options.guidance_for(spec)
        options.solvers_for(spec, {key: modality.process for key, modality in model.modalities.items()})
        used |= {*spec.solved, *spec.held}
    codecs: dict[str, Codec] = {name: modality.codec for name, modality in model.modalities.items() if name in used}
    test = load_samples(settings.test, codecs)
    return Reference(load_samples(settings.train, codecs, missing="keep"), test)
