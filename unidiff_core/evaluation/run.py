"""Evaluation: samples of each query, measured by a judge against the test data. `metric` pins the definitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unidiff_core.atomic import write_json
from unidiff_core.codec import Raw
from unidiff_core.estimate import Estimate
from unidiff_core.judge import Judge
from unidiff_core.metric import Drawn, Hits, Raws, Samples, Yardstick, load_samples, measure
from unidiff_core.spec import TimestepSpec
from unidiff_core.store import list_shards


class Sampler(Protocol):
    """What evaluation needs of a model: `UniDiffuser` has it."""

    modalities: Any
    """Name → modality, which has a `codec`."""

    def sample(
        self,
        spec: str,
        given: Raws | None = None,
        num: int | None = None,
        *,
        steps: int = ...,
        solver: str = ...,
        guidance: float = ...,
        drop_ignored: bool = ...,
        seed: int = ...,
        batch_size: int = ...,
        on_progress: Callable[[int, int], None] | None = ...,
    ) -> Raws:
        """Raw samples of the solved modalities, each list of length `num`; `on_progress` is told (done, in all)."""


@dataclass(frozen=True)
class Query:
    """One thing to ask of the model."""

    num: int = 1080
    """Number of samples."""
    guidance: float = 0.0
    """Guidance scale; 0 is off."""
    steps: int | None = None
    """Solver steps, if not those of the settings."""
    solver: str | None = None
    """Solver, if not that of the settings."""

    def __str__(self) -> str:
        own = [text for text in (self.solver, self.steps and f"{self.steps} steps") if text]
        return ", ".join([str(self.num), *own, f"guidance {self.guidance:g}"])


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
class Settings:
    """How to evaluate."""

    train: str
    """Raw training shards: a folder, a pattern or a URL. Their samples may lack modalities."""
    test: str
    """Raw test shards, likewise, whose samples are complete; the givens come from it, in order and round and round."""
    queries: dict[str, Query]
    """Timestep spec as text → what to draw."""
    criteria: list[Criterion] = field(default_factory=list)
    """What must be reached: [{query: a | b, metric: label, at_least: 0.95}, ...]."""
    steps: int = 50
    """Solver steps of the queries that state none."""
    solver: str = "dpmpp_2m"
    """Solver of the queries that state none: ddim, ddpm, dpmpp_2m, dpmpp_3m or heun."""
    drop_ignored: bool = False
    """Leave ignored modalities out of the network's input, for models trained with drop_ignored."""
    seed: int = 0
    """Seed of all sampling."""
    batch_size: int = 120
    """Samples drawn at once; changes no sample."""
    num_examples: int = 24
    """Samples of each query kept for the report."""

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
            "settings": asdict(self.settings),
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
    solved = model.sample(
        name,
        given=given,
        num=query.num,
        steps=query.steps or settings.steps,
        solver=query.solver or settings.solver,
        guidance=query.guidance,
        drop_ignored=settings.drop_ignored,
        seed=settings.seed,
        batch_size=settings.batch_size,
        on_progress=lambda done, total: advance(query.num * done / total),
    )
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
    model: Sampler, judge: Judge, settings: Settings, advance: Callable[[str, float], None] = lambda query, done: None
) -> Evaluation:
    """Fit the judge, draw every query, and measure it by the definitions at the top of this module.

    Args:
        model: what to evaluate.
        judge: reads labels off samples; fitted here, on the training shards.
        settings: what to draw, and from where the real samples come.
        advance: called with a query and the number of its samples done so far.

    Raises:
        ValueError: if the settings or the shards do not fit the model or the judge.
    """
    start = time.perf_counter()
    settings.check()
    specs = [TimestepSpec.parse(name, model.modalities) for name in settings.queries]
    used = {name for spec in specs for name in (*spec.solved, *spec.held)}  # the shards need not hold the others
    codecs = {name: modality.codec for name, modality in model.modalities.items() if name in used}
    test = load_samples(settings.test, codecs)
    yardstick = Yardstick(judge, load_samples(settings.train, codecs, missing="keep"), test)
    result = Evaluation({}, yardstick.accuracies(), settings)
    for name in settings.queries:
        drawn = draw(model, name, settings, test, lambda done, name=name: advance(name, done))  # type: ignore[misc]
        result.queries[name], faults = measure(yardstick, drawn)
        result.examples[name] = _examples(drawn, faults, settings.num_examples)
    result.seconds = time.perf_counter() - start
    return result
