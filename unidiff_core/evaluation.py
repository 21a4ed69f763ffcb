"""Evaluation: samples of each query, measured by a judge against the test data.

Definitions, pinned. *Reading*: the label that the judge reads off a sample, or None. *Known*: the label that the test
data records. A modality *always states* a label if at least 99 % of the real test samples have a reading; where it
does, no reading counts as wrong, elsewhere such a sample is left out.

* ``<label>``, with a given: share of samples whose reading equals the label known of the given. Left out: where the
  judge has no reading of any given, as it does not state the label.
* ``given_<label>``: the judge's own share right on the givens themselves.
* ``<label>``, several solved: share of samples in which all solved modalities that state it, two at least, agree.
* ``<label>_tv``, nothing given: total variation distance of the readings' histogram (None is a category) to that of the
  readings of the real training samples of the same modality. Of several solved modalities: the largest.
* ``well_formed``, under the judge's own name for it: share of samples that are formally right.
* ``nearest``: share of samples nearer to a training sample than the first percentile of the distances of test samples
  to their nearest training samples, in the judge's features. A model that copies has a large one; data has 0.01.

A metric that several solved modalities have is prefixed: ``<modality>.<metric>``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unidiff_core.codec import Codec, Raw
from unidiff_core.estimate import Estimate, share, total_variation
from unidiff_core.judge import Judge
from unidiff_core.shard import find_shards, read_shards
from unidiff_core.spec import TimestepSpec

ALWAYS = 0.99
NEAR_PERCENTILE = 1.0

Raws = dict[str, list[Raw]]
Readings = dict[str, list[str | None]]


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
    """Folder of raw training shards."""
    test: str
    """Folder of raw test shards; the givens come from it, in order and round and round."""
    queries: dict[str, Query]
    """Timestep spec as text → what to draw."""
    criteria: list[Criterion] = field(default_factory=list)
    steps: int = 50
    solver: str = "dpmpp_2m"
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
            find_shards(folder)


@dataclass(frozen=True)
class Samples:
    """Real samples with their labels."""

    raws: Raws
    """Modality → samples."""
    labels: dict[str, list[str]]
    """Label name → what the data records of each sample."""

    def __len__(self) -> int:
        return len(next(iter(self.raws.values()), []))


@dataclass(frozen=True)
class Hits:
    """A share-like metric, sample by sample."""

    counts: np.ndarray
    """Whether a sample counts at all, ``[n]``."""
    is_hit: np.ndarray

    @property
    def estimate(self) -> Estimate | None:
        """Share of hits among what counts; None if nothing counts."""
        n = int(self.counts.sum())
        return share(int((self.counts & self.is_hit).sum()), n) if n else None


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
        """Write JSON beside `path`, then rename: the file is whole or absent."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)


def load_samples(folder: str | Path, codecs: Mapping[str, Codec]) -> Samples:
    """All raw samples of a folder of shards: a member ``<modality>.<extension>`` or ``<extension>``, and ``json``.

    Raises:
        ValueError: if a member is missing or unreadable; names the sample.
    """
    raws: Raws = {name: [] for name in codecs}
    rows: list[dict[str, Any]] = []
    for sample in read_shards(folder):
        key: Any = sample["__key__"]
        for name, codec in codecs.items():
            member = next((m for m in (f"{name}.{codec.extension}", codec.extension) if m in sample), None)
            if member is None:
                raise ValueError(f"sample {key} of {folder} has no member {codec.extension!r} for {name!r}")
            raws[name].append(codec.from_bytes(sample[member]))
        rows.append(json.loads(sample.get("json", b"{}")))
    labels = set.intersection(*({*row} for row in rows)) if rows else set()
    return Samples(raws, {label: [str(row[label]) for row in rows] for label in sorted(labels)})


class Yardstick:
    """A fitted judge, and what it says of real data.

    Args:
        judge: fitted here, on `train`.
        train: real training samples with labels.
        test: real test samples with labels.
    """

    def __init__(self, judge: Judge, train: Samples, test: Samples) -> None:
        if absent := [label for label in judge.labels if label not in train.labels or label not in test.labels]:
            raise ValueError(f"the judge reads {', '.join(absent)}, which not every sample's json member records")
        self.judge = judge
        self.test = test
        self.modalities = tuple(name for name in judge.modalities if name in train.raws)
        for name in self.modalities:
            judge.fit(name, train.raws[name], train.labels)
        self.typical: dict[str, Readings] = {name: judge.read(name, train.raws[name]) for name in self.modalities}
        """Modality → readings of real training samples."""
        self.test_readings = {name: judge.read(name, test.raws[name]) for name in self.modalities}
        self._train_features = {
            name: features
            for name in self.modalities
            if (features := judge.features(name, train.raws[name])) is not None
        }
        self._near = {
            name: float(np.percentile(self._distances(name, test.raws[name]), NEAR_PERCENTILE))
            for name in self._train_features
        }

    def always_states(self, modality: str, label: str) -> bool:
        """Whether real samples of a modality state a label."""
        return bool(_is_stated(self.test_readings[modality][label]).mean() >= ALWAYS)

    def accuracies(self) -> dict[str, dict[str, Estimate]]:
        """Modality → label → the judge's share right on real test samples, of those that state the label."""
        rows = {
            name: {label: self.right(name, readings, label, self.test.labels[label]) for label in self.judge.labels}
            for name, readings in self.test_readings.items()
        }
        return {name: _estimates(row) for name, row in rows.items()}

    def right(self, modality: str, readings: Readings, label: str, known: Sequence[str]) -> Hits:
        """Whether each reading is the known label."""
        values = np.array(readings[label], dtype=object)
        counts = _is_stated(readings[label]) | self.always_states(modality, label)
        return Hits(counts, values == np.array(known, dtype=object))

    def agreement(self, readings: Mapping[str, Readings], label: str) -> Hits:
        """Whether all modalities that state a label, two at least, state the same."""
        always = [self.always_states(name, label) for name in readings]

        def speaking(row: Sequence[str | None]) -> list[str | None]:
            return [value for value, counts in zip(row, always, strict=True) if counts or value is not None]

        rows = [speaking(row) for row in zip(*(read[label] for read in readings.values()), strict=True)]
        counts = np.array([len(row) > 1 for row in rows])
        return Hits(counts, np.array([None not in row and len(set(row)) == 1 for row in rows]))

    def nearness(self, modality: str, raws: Sequence[Raw]) -> Hits | None:
        """Whether each sample is suspiciously near to a training sample; None if the judge has no features for it."""
        if modality not in self._train_features:
            return None
        return Hits(np.ones(len(raws), bool), self._distances(modality, raws) < self._near[modality])

    def _distances(self, modality: str, raws: Sequence[Raw]) -> np.ndarray:
        features = self.judge.features(modality, raws)
        assert features is not None
        return nearest_distances(features, self._train_features[modality])


def nearest_distances(features: np.ndarray, references: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """Euclidean distance ``[n]`` of each row of `features` ``[n, d]`` to the nearest row of `references` ``[m, d]``."""
    features, references = features.astype(np.float64), references.astype(np.float64)
    norms = (references**2).sum(axis=1)
    squares = [
        ((part**2).sum(axis=1)[:, None] + norms - 2 * part @ references.T).min(axis=1)
        for part in (features[i : i + chunk] for i in range(0, len(features), chunk))
    ]
    return np.sqrt(np.maximum(np.concatenate(squares), 0.0))


def _is_stated(readings: Sequence[str | None]) -> np.ndarray:
    return np.array([reading is not None for reading in readings], dtype=bool)


def _estimates(hits: Mapping[str, Hits]) -> dict[str, Estimate]:
    return {name: estimate for name, hit in hits.items() if (estimate := hit.estimate) is not None}


@dataclass(frozen=True)
class Drawn:
    """What one query gave, and what it was given."""

    given: Raws
    solved: Raws
    known: dict[str, list[str]]
    """Label → what is known of each given; meaningless where nothing is given."""


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
        seed=settings.seed,
        batch_size=settings.batch_size,
        on_progress=lambda done, total: advance(query.num * done / total),
    )
    return Drawn(given, solved, {label: [values[i] for i in index] for label, values in test.labels.items()})


def measure(yardstick: Yardstick, drawn: Drawn) -> tuple[dict[str, Estimate], dict[str, Hits]]:
    """All metrics of one query, and those of them in which a miss is a sample's fault, sample by sample."""
    judge = yardstick.judge
    readings = {name: judge.read(name, raws) for name, raws in drawn.solved.items() if name in yardstick.modalities}
    faults: dict[str, Hits] = {}
    others: dict[str, Estimate] = {}
    if drawn.given:
        right, of_givens = _against_givens(yardstick, drawn, readings)
        faults |= right
        others |= _estimates(of_givens)
    else:
        others |= _distribution(yardstick, readings)
    if len(readings) > 1:
        faults |= {label: yardstick.agreement(readings, label) for label in judge.labels}
    faults |= _well_formed(judge, drawn.solved)
    near = {name: hits for name, raws in drawn.solved.items() if (hits := yardstick.nearness(name, raws))}
    others |= _estimates(_prefixed({name: {"nearest": hits} for name, hits in near.items()}))
    return _estimates(faults) | others, faults


def _against_givens(
    yardstick: Yardstick, drawn: Drawn, readings: Mapping[str, Readings]
) -> tuple[dict[str, Hits], dict[str, Hits]]:
    judged = {
        name: yardstick.judge.read(name, raws) for name, raws in drawn.given.items() if name in yardstick.modalities
    }
    is_known = {
        label: np.any([_is_stated(given[label]) for given in judged.values()], axis=0) if judged else True
        for label in yardstick.judge.labels
    }

    def compare(name: str, read: Readings) -> dict[str, Hits]:
        rows = {label: yardstick.right(name, read, label, drawn.known[label]) for label in yardstick.judge.labels}
        return {label: Hits(row.counts & is_known[label], row.is_hit) for label, row in rows.items()}

    of_givens = {
        name: {f"given_{label}": hits for label, hits in compare(name, read).items()} for name, read in judged.items()
    }
    return _prefixed({name: compare(name, read) for name, read in readings.items()}), _prefixed(of_givens)


def _distribution(yardstick: Yardstick, readings: Mapping[str, Readings]) -> dict[str, Estimate]:
    rows = {
        name: {f"{label}_tv": total_variation(read[label], yardstick.typical[name][label]) for label in read}
        for name, read in readings.items()
    }
    labels = [f"{label}_tv" for label in yardstick.judge.labels]
    worst = {label: max((row[label] for row in rows.values()), key=lambda cell: cell.value) for label in labels if rows}
    return worst | _prefixed(rows)


def _well_formed(judge: Judge, solved: Raws) -> dict[str, Hits]:
    rows = {}
    for name, raws in solved.items():
        verdicts = [judge.well_formed(name, raw) for raw in raws] if name in judge.modalities else []
        if any(verdict is not None for verdict in verdicts):
            counts = np.array([verdict is not None for verdict in verdicts])
            rows[name] = {judge.well_formed_name: Hits(counts, np.array([bool(verdict) for verdict in verdicts]))}
    return _prefixed(rows)


def _prefixed(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Modality → metric → value, flat; prefixed with the modality where there are several."""
    return {
        metric if len(rows) == 1 else f"{name}.{metric}": value
        for name, row in rows.items()
        for metric, value in row.items()
    }


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
    for name in settings.queries:
        TimestepSpec.parse(name, model.modalities)
    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    test = load_samples(settings.test, codecs)
    yardstick = Yardstick(judge, load_samples(settings.train, codecs), test)
    result = Evaluation({}, yardstick.accuracies(), settings)
    for name in settings.queries:
        drawn = draw(model, name, settings, test, lambda done, name=name: advance(name, done))  # type: ignore[misc]
        result.queries[name], faults = measure(yardstick, drawn)
        result.examples[name] = _examples(drawn, faults, settings.num_examples)
    result.seconds = time.perf_counter() - start
    return result
