"""Evaluation: samples of each query, measured by metrics against real data. Each metric pins its own definition."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints

import numpy as np

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.data.location import list_shards
from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.features import FeatureMetric
from unidiff_core.evaluation.kept import Kept
from unidiff_core.evaluation.metric import Axis, Drawn, Hits, Metric, Pair, Raws, Reference, Samples
from unidiff_core.evaluation.real import Part, load_reference
from unidiff_core.foundation.atomic import write_json
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.provenance import provenance
from unidiff_core.sampling.loop import OnStep, StepReport
from unidiff_core.sampling.options import PYTHON_ONLY, SamplingOptions
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.serialization.description import describe

E = TypeVar("E")
MOST = 50
"""Queries, at most, that are run without being named."""
PARTS = 64
"""Parts of a query, at most, that are drawn and kept one by one."""


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
        """Raw samples of the solved modalities, each list of length `num`.

        With `first_index=n`, of which only models know whose draws are kept, those from the n-th on.
        """


_HINTS = get_type_hints(SamplingOptions)
_OPTIONS = [row for row in fields(SamplingOptions) if row.name not in ("batch_size", *PYTHON_ONLY)]


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
class Run:
    """A query as it is drawn: its own way, or with another value of one option."""

    name: str
    query: Any
    option: str = ""
    value: str = ""

    @property
    def title(self) -> str:
        """For a bar: the query, and what was changed."""
        return f"{self.name} ({self.option} {self.value})" if self.option else self.name


@dataclass(frozen=True)
class Settings(SamplingOptions):
    """How to evaluate; the options of sampling are those of the queries that state none of their own."""

    train: str
    """Raw training shards: a folder, a pattern or a URL. Their samples may lack modalities."""
    test: str
    """Raw test shards, likewise, whose samples are complete; the givens come from it, in order and round and round."""
    queries: dict[str, Query]
    """Timestep spec as text → what to draw: {a | b: {num: 1000, guidance: 2.0}, ...}. On the command line also: all."""
    criteria: list[Criterion] = field(default_factory=list)
    """What must be reached: [{query: a | b, metric: label, at_least: 0.95}, ...]."""
    num_examples: int = 24
    """Samples of each query kept for the report."""
    sources: str | None = None
    """A regular expression that finds in a sample's key what it was made from, ^(\\d+)- say: renderings of one scan are
    not independent, and are neither counted nor compared as if they were. Each sample is its own if not given."""
    part: Part = "all"
    """Which test samples: validation, to choose settings by; test, to report what they reach; or all. A source never
    changes sides."""
    validation_share: float = 1 / 3
    """Share of the test samples' sources that are the validation part."""
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    """Options of sampling with values to try, for every query beside the queries as they are: {guidance: [0, 2]}."""
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric → name → what others published of it, drawn beside the curves of sweeps: {FID: {DDPM: 3.17}}."""
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
        for option in self.sweep:
            if option not in (options := [row.name for row in _OPTIONS]):
                raise ValueError(f"a sweep is over an option of sampling, {', '.join(options)}, not over {option!r}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share is between 0 and 1, not {self.validation_share}")
        for folder in (self.train, self.test):
            list_shards(folder)

    def query_options(self, name: str, query: Any = None) -> SamplingOptions:
        """How to sample a query; where it states no seed, its own is a function of the settings' and its name.

        One seed for all would give every query the same noise, and all of them the same luck.
        """
        query = query or self.queries[name]
        options: SamplingOptions = query.options(self)
        if query.seed is not None:
            return options
        text = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return replace(options, seed=int.from_bytes(text[:4], "big") // 2)

    def runs(self, model: Sampler) -> list[Run]:
        """All that is to be drawn: each query as it is, then with each value of each sweep.

        Guidance is not swept where a query has nothing to guide it by.
        """

        def takes(option: str, name: str) -> bool:
            spec = TimestepSpec.parse(name, model.modalities)
            return option != "guidance" or bool(spec.held) or len(spec.solved) > 1

        return [Run(name, query) for name, query in self.queries.items()] + [
            Run(
                name,
                replace(query, **{option: value}),
                option,
                f"{value:g}" if isinstance(value, float) else str(value),
            )
            for option, values in self.sweep.items()
            for name, query in self.queries.items()
            if takes(option, name)
            for value in values
        ]

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
                name: {"num": query.num}
                | {key: _plain(value) for key, value in (defaults | query.stated()).items()}
                | {"seed": self.query_options(name).seed}
                for name, query in self.queries.items()
            },
            "criteria": [asdict(criterion) for criterion in self.criteria],
            **{name: _plain(getattr(self, name)) for name in _ALWAYS_TOLD},
            "num_examples": self.num_examples,
            **({"sources": self.sources} if self.sources else {}),
            **({"part": self.part, "validation_share": self.validation_share} if self.part != "all" else {}),
            **({"sweep": {key: _plain(values) for key, values in self.sweep.items()}} if self.sweep else {}),
            **({"published": self.published} if self.published else {}),
            **self.others,
        }


_ALWAYS_TOLD = ("steps", "solver", "drop_ignored", "seed", "batch_size")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    controls: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """What the same metrics say of real test samples, and of what the codecs make of them: no model can be nearer."""
    sweeps: dict[str, dict[str, dict[str, dict[str, Estimate]]]] = field(default_factory=dict)
    """Option → query → value as text → metrics."""
    features: tuple[str, ...] = ()
    """What quality, variety and copies were measured in."""
    axes: dict[str, Axis] = field(default_factory=dict)
    """Metric → what it stands for where a sweep's curves set quality against agreement."""
    pairs: dict[str, dict[str, list[Pair]]] = field(default_factory=dict)
    """Query → modality → samples that look most like training samples, beside those."""
    origin: dict[str, Any] = field(default_factory=dict)
    """With what it was made: date, versions, commit, machine, and what the caller adds."""

    @property
    def is_passed(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.is_met(self.queries[criterion.query]) for criterion in self.settings.criteria)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to ``evaluation.json``."""
        tables = {"queries": self.queries, "judges": self.judges, "controls": self.controls}
        sweeps = {
            option: {query: _plain_table(table) for query, table in queries.items()}
            for option, queries in self.sweeps.items()
        }
        return {
            **{name: _plain_table(table) for name, table in tables.items()},
            **({"sweeps": sweeps} if sweeps else {}),
            **({"features": list(self.features)} if self.features else {}),
            "criteria": [self._verdict(criterion) for criterion in self.settings.criteria],
            "passed": self.is_passed,
            "settings": self.settings.to_dict(),
            "seconds": round(self.seconds, 1),
            **({"origin": self.origin} if self.origin else {}),
        }

    def _verdict(self, criterion: Criterion) -> dict[str, Any]:
        metrics = self.queries[criterion.query]
        verdict = criterion.verdict(metrics)
        return {
            **asdict(criterion),
            "value": criterion.value(metrics),
            "verdict": verdict,
            "passed": verdict == "met",
        }

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(path, self.to_dict())


def _plain_table(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Any]]:
    return {row: {metric: cell.to_dict() for metric, cell in cells.items()} for row, cells in table.items()}


def all_queries(modalities: Iterable[str], num: int, *, most: int = MOST) -> dict[str, Any]:
    """Every marginal, conditional and joint: each modality is solved, given or ignored, and one at least is solved.

    Raises:
        ValueError: if there are more than `most`, which needs a selection.
    """
    names = list(modalities)
    roles = [row for row in itertools.product("sgi", repeat=len(names)) if "s" in row]
    if len(roles) > most:
        raise ValueError(
            f"{len(names)} modalities have {len(roles)} queries, more than {most}: name those that you want, "
            f"--queries='{{{names[0]}: {{}}, \"{names[0]} | {names[1]}\": {{}}}}'"
        )

    def text(row: tuple[str, ...]) -> str:
        sides = (", ".join(name for name, role in zip(names, row, strict=True) if role == side) for side in "sg")
        return " | ".join(side for side in sides if side)

    return {text(row): Query(num) for row in sorted(roles, key=lambda row: (row.count("s"), row.count("g")))}


def draw(
    model: Sampler,
    name: str,
    settings: Settings,
    test: Samples,
    advance: Callable[[float], None] = lambda done: None,
    *,
    query: Any = None,
    kept: Kept | None = None,
    process: int = 0,
    processes: int = 1,
) -> Drawn:
    """Sample one query, with givens from the test samples.

    Args:
        model: what to sample from.
        name: the query, a timestep spec as text.
        settings: seed, steps and the rest.
        test: real samples, used in order and again from the start.
        advance: called with the number of samples done so far; a sample half way counts as a half.
        query: in place of the settings' own.
        kept: where samples are kept, part by part, and found again.
        process: of several that share the parts, of which this one draws its own and no more; they need `kept`.
        processes: how many there are.
    """
    query = query or settings.queries[name]
    options = settings.query_options(name, query)
    spec = TimestepSpec.parse(name, model.modalities)
    given_names = [given for given, path in spec.paths.items() if path.needs_value]
    index = [i % len(test) for i in range(query.num)]
    given = {given: [test.raws[given][i] for i in index] for given in given_names}

    def sampled(start: int, end: int) -> Raws:
        def on_step(report: StepReport) -> None:
            advance(start + (end - start) * report.step / report.steps)

        some = {key: values[start:end] for key, values in given.items()}
        more: dict[str, Any] = {"first_index": start} if start else {}
        own = {key: value[start:end] if np.ndim(value) else value for key, value in options.conditions.items()}
        drawing = replace(options, conditions=own)
        return model.sample(name, given=some, num=end - start, options=drawing, on_step=on_step, **more)

    if kept is None:
        solved = sampled(0, query.num)
    else:
        stated = {row.name: _plain(getattr(options, row.name)) for row in fields(SamplingOptions)}
        givens = {"test": settings.test, "part": settings.part, "share": settings.validation_share} if given else {}
        asked = {"query": name, "num": query.num, "options": stated, **givens}
        codecs = {key: model.modalities[key].codec for key in spec.solved}
        parts = [(0, query.num)] if kept.has(asked) else _parts(query.num, options.batch_size)
        solved = {key: [] for key in codecs}
        for number, (start, end) in enumerate(parts):
            if number % processes != process:
                continue
            which = {} if len(parts) == 1 else {"first": start, "last": end}
            for key, raws in kept.draws(asked | which, codecs, partial(sampled, start, end)).items():
                solved[key] += raws
            advance(end)
    known = {label: [values[i] for i in index] for label, values in test.labels.items()}
    return Drawn(given, solved, known, [test.sources[i] for i in index] if given and test.sources else [])


def _parts(num: int, batch_size: int) -> list[tuple[int, int]]:
    """First and last sample of each part: of whole batches, so that parts change no sample."""
    size = batch_size * -(-num // (batch_size * PARTS))
    return [(start, min(start + size, num)) for start in range(0, num, size)]


def draw_share(
    model: Sampler,
    settings: Settings,
    test: Samples,
    kept: Kept,
    advance: Callable[[str, float], None] = lambda query, done: None,
    *,
    process: int,
    processes: int,
) -> None:
    """Draw this process's share of every query into a folder that all processes see; `evaluate` then finds it there.

    Args:
        model: what to sample from.
        settings: what to draw.
        test: real samples, that the givens come from.
        kept: where.
        advance: called with the title of a run and the number of its samples done so far.
        process: the number of this one.
        processes: how many there are.
    """
    for number, run in enumerate(settings.runs(model)):
        told = partial(advance, run.title)
        share = {"process": (process + number) % processes, "processes": processes}  # the first part is not always ours
        draw(model, run.name, settings, test, told, query=run.query, kept=kept, **share)


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
    *,
    kept: Kept | None = None,
    reference: Reference | None = None,
) -> Evaluation:
    """Fit the metrics, draw every query, and measure it.

    Args:
        model: what to evaluate.
        metrics: in the order of the tables; fitted here, on the real samples.
        settings: what to draw, and from where the real samples come.
        advance: called with the title of a run and the number of its samples done so far.
        kept: where samples are kept as they are drawn, and found by a call that goes on.
        reference: the real samples, if they are loaded and the metrics fitted on them: one after another, many models.

    Raises:
        ValueError: if the settings or the shards do not fit the model or a metric, or two metrics have one name.
    """
    start = time.perf_counter()
    settings.check()
    if reference is None:
        reference = fitted(model, metrics, settings)
    result = Evaluation({}, _accuracies(metrics, reference), settings)
    for run in settings.runs(model):
        told = partial(advance, run.title)
        drawn = draw(model, run.name, settings, reference.test, told, query=run.query, kept=kept)
        rows = [metric.measure(drawn, reference) for metric in metrics]
        found = _united(row.estimates for row in rows)
        if run.option:
            result.sweeps.setdefault(run.option, {}).setdefault(run.name, {})[run.value] = found
            continue
        result.queries[run.name] = found
        faults = {key: hits for row in rows for key, hits in row.faults.items()}
        result.examples[run.name] = _examples(drawn, faults, settings.num_examples)
        result.pairs[run.name] = {name: pairs for row in rows for name, pairs in row.pairs.items()}
    result.controls = _controls(metrics, reference, settings, model)
    names = [metric.features.name for metric in metrics if isinstance(metric, FeatureMetric)]
    result.features = tuple(dict.fromkeys(names))
    result.axes = {name: axis for metric in metrics for name, axis in metric.axes.items()}
    result.seconds = time.perf_counter() - start
    result.origin = provenance()
    return result


def _controls(
    metrics: Sequence[Metric], reference: Reference, settings: Settings, model: Sampler
) -> dict[str, dict[str, Estimate]]:
    """Real test samples, as they are and as the codecs give them back, by the metrics that need only features."""
    chosen = [metric for metric in metrics if isinstance(metric, FeatureMetric) and metric.is_controlled]
    specs = [TimestepSpec.parse(name, model.modalities) for name in settings.queries]
    table = {}
    for name in dict.fromkeys(name for spec in specs for name in spec.solved) if chosen else ():
        real = reference.test.distinct(name).raws[name]
        found = _of_real(chosen, name, real, reference)
        if found:
            table[f"real {name}"] = found
        if found and reference.reconstruct:
            again = reference.reconstruct(name, real)
            table[f"real {name}, through its codec"] = _of_real(chosen, name, again, reference)
    return table


def _of_real(metrics: Sequence[Metric], name: str, raws: list[Raw], reference: Reference) -> dict[str, Estimate]:
    rows = _united(metric.measure(Drawn({}, {name: raws}, {}), reference).estimates for metric in metrics)
    return {key: cell for key, cell in rows.items() if not key.endswith("_floor")}


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


def fitted(model: Sampler, metrics: Sequence[Metric], settings: Settings) -> Reference:
    """The real samples, with the metrics fitted on them."""
    reference = _reference(model, settings)
    for metric in metrics:
        metric.fit(reference)
    return reference


def _reference(model: Sampler, settings: Settings) -> Reference:
    """The real samples of the modalities that the queries are about; the shards need not hold the others."""
    used: set[str] = set()
    for name, query in settings.queries.items():
        spec, options = TimestepSpec.parse(name, model.modalities), query.options(settings)
        options.guidance_for(spec)
        options.solvers_for(spec, {key: modality.process for key, modality in model.modalities.items()})
        used |= {*spec.solved, *spec.held}
    codecs: dict[str, Codec] = {name: modality.codec for name, modality in model.modalities.items() if name in used}
    return load_reference(
        model,
        codecs,
        settings.train,
        settings.test,
        source=settings.sources,
        part=settings.part,
        validation_share=settings.validation_share,
    )
