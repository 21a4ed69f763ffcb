"""How to sample: said once, and read from here by Python, the command line and the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from unidiff_core.foundation.argument import (
    check_flag,
    check_known,
    check_mapping,
    check_number,
    check_share,
    check_whole,
)
from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.process.process import ForwardProcess, Solver
from unidiff_core.sampling.estimate import Gradient, Threshold
from unidiff_core.sampling.guidance import ALWAYS, Guidance, Silenced
from unidiff_core.sampling.predictor import Predictor
from unidiff_core.sampling.spec import SpecError, TimestepSpec

Constrain: TypeAlias = Callable[[dict[str, Tensor], dict[str, float]], dict[str, Tensor]]
"""(latents, times as fractions of T) → latents, after each step: replaces part of the state. Inpainting lives here."""

PYTHON_ONLY = ("constrain", "gradient")
"""Options that no text can say."""

Interleave: TypeAlias = Literal["together", "discrete_first"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Everything about a sampling call but what is asked for: the spec, what is given, and how many."""

    steps: int = 20
    """Solver steps over the whole path; where several are gone through (links of a chain, arrows), over each."""
    solver: str | Solver | dict[str, str] | None = None
    """How a step is made: dpmpp_2m, dpmpp_3m, heun and ddim add no fresh noise, ddpm does; `unidiffuser list solvers`
    explains these and all others. Or one for each modality, {image: ddpm}. Each process's own default if not given
    (dpmpp_2m for Gaussian noise)."""
    spacing: str | dict[str, str] = "uniform"
    """How what is solved goes through its times: uniform, cosine (slow where it is noisy), log_snr (even in signal over
    noise; for few steps under scaled linear noise); or one for each, {text: cosine}."""
    guidance: float | dict[str, float] | Guidance = 0.0
    """A scale s, 0 is off; a scale for each given, {text: 2}; or for each of several that are solved."""
    guidance_interval: tuple[float, float] | dict[str, tuple[float, float]] | None = None
    """Times, as fractions of T, between which guidance is on, [0.2, 0.8]; outside it costs nothing. Or an interval for
    each of several that are solved, {image: [0.2, 0.8]}. Always on if not given."""
    guidance_rescale: float = 0.0
    """How much of the spread that guidance adds to an estimate is taken back, 0 to 1; 0.7 is usual with a large
    scale."""
    empty: str | None = None
    """Names of held modalities of which guidance takes an empty value, a caption without words, in place of noise at T;
    for networks that were trained with such. (`sample --against` takes any other value.)"""
    threshold: float | dict[str, float] | None = None
    """Largest absolute value of a clean estimate, 1 for pixels in -1..1: what is beyond is cut off. One for all, or for
    each, {image: 1}. For data with a range: latents of an autoencoder have none, and lose what is cut off."""
    threshold_ratio: float | None = None
    """Makes the threshold dynamic: this share of the values, 0.995 say, is scaled to within it, the rest cut off."""
    seed: int = 0
    """Sample i is a function of the seed and i alone."""
    batch_size: int = 256
    """Samples at a time; it changes speed and memory, not the samples."""
    redraws_noise: bool = False
    """Draw the noise of what is ignored, or silenced by guidance, anew at each evaluation, as the released code does,
    in place of one draw that is kept."""
    drop_ignored: bool = False
    """Leave what is ignored, or silenced by guidance, out of the network's input in place of noise at T. Cheaper; for
    networks that were trained with drop_ignored."""
    interleave: Interleave = "together"
    """How symbols and numbers take turns in a step: together moves both by the same evaluations (symbols by the second
    one, where a solver such as heun makes two); discrete_first moves the symbols, and then numbers by one evaluation
    more, which sees them."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """Side inputs of a backbone that takes such, by name: a number for all samples, {data_type: 0}, or a list of one
    for each."""
    constrain: Constrain | None = None
    """Replaces part of the state after each step; from Python only."""
    gradient: Gradient | None = None
    """Leads what is solved by the gradient of a log probability, a noise-aware classifier's; from Python only."""

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, at_least=1)
        check_whole("batch_size", self.batch_size, at_least=1)
        check_whole("seed", self.seed)
        check_flag("redraws_noise", self.redraws_noise)
        check_flag("drop_ignored", self.drop_ignored)
        check_mapping("conditions", self.conditions, "name → value")
        if isinstance(self.guidance, Mapping):
            for name, scale in self.guidance.items():
                check_number(f"the guidance of {name!r}", scale)
        elif not isinstance(self.guidance, Guidance):
            check_number("guidance", self.guidance)
        self._check_guidance()
        if self.interleave not in get_args(Interleave):
            known = " or ".join(get_args(Interleave))
            raise SpecError(f"interleave is {known}, not {self.interleave!r}")
        if not (self.constrain is None or callable(self.constrain)):
            raise ValueError(f"constrain is a function of latents and times, not {self.constrain!r}")

    def _check_guidance(self) -> None:
        """Check what is done to clean estimates."""
        if isinstance(self.guidance, Guidance) and (self.guidance_interval or self.guidance_rescale):
            raise SpecError("guidance is a Guidance, whose interval and rescale are its own: give them to it")
        for of, interval in _each("the interval of guidance", self.guidance_interval):
            _check_interval(of, interval)
        for of, bound in _each("the threshold", self.threshold):
            check_number(of, bound, above=0)
        check_share("guidance_rescale", self.guidance_rescale)
        if self.threshold_ratio is not None:
            check_share("threshold_ratio", self.threshold_ratio)
            if self.threshold is None:
                raise SpecError("threshold_ratio makes a threshold dynamic, and there is none: give threshold too")
        if not isinstance(self.empty, str | None):
            raise SpecError(f"empty is names with commas between, not {self.empty!r}")
        if not (self.gradient is None or isinstance(self.gradient, Gradient)):
            raise ValueError(f"gradient is a Gradient of a log probability, not {self.gradient!r}")

    @classmethod
    def changed(cls, options: SamplingOptions | None, changes: Mapping[str, Any], owner: str) -> SamplingOptions:
        """Options with some of them in place of others.

        Args:
            options: the defaults if not given.
            changes: by name.
            owner: the function that takes them, for the error.

        Raises:
            TypeError: if there is no such option, or `options` are none; says what was meant.
            ValueError: if a value is not allowed; names the option.
        """
        options = SamplingOptions() if options is None else options
        if not isinstance(options, SamplingOptions):
            raise TypeError(f"the options of {owner} are SamplingOptions, not {options!r}; or give each by its name")
        check_known(changes, [row.name for row in fields(SamplingOptions)], owner)
        return replace(options, **changes)

    @classmethod
    def read(cls, rows: Mapping[str, Any]) -> SamplingOptions:
        """From plain data by name, as a model directory holds it.

        Raises:
            SpecError: if an option is not known, can be given from Python alone, or is of another kind.
        """
        if not isinstance(rows, Mapping):
            raise SpecError(f"sampling is a mapping of options by name, not {rows!r}")
        known = [row.name for row in fields(cls) if row.name not in PYTHON_ONLY]
        for name in rows:
            if name not in known:
                raise SpecError(f"{name!r} is no option of sampling; known: {', '.join(known)}")
        if not isinstance(rows.get("solver"), str | Mapping | None):
            raise SpecError(f"solver is a name or one for each modality, not {rows['solver']!r}")
        try:
            return cls(**rows)
        except ValueError as error:
            raise SpecError(str(error)) from error

    def solvers_for(self, spec: TimestepSpec, processes: Mapping[str, ForwardProcess]) -> dict[str, Solver | None]:
        """The solver of each modality that a spec solves.

        A name for all goes to every process that knows it; those that do not take their own default.

        Raises:
            SpecError: if a solver is named for a modality that is not solved.
            UnknownNameError: if a process does not know the solver that is named for its modality, or none knows it.
        """
        if isinstance(self.solver, Mapping):
            spec.check_solved(self.solver, "a solver")
            return {name: processes[name].find_solver(self.solver.get(name)) for name in spec.solved}
        found: dict[str, Solver | None] = {}
        refusals: list[UnknownNameError] = []
        for name in spec.solved:
            try:
                found[name] = processes[name].find_solver(self.solver)
            except UnknownNameError as error:
                refusals.append(error)
                found[name] = processes[name].find_solver(None)
        if len(refusals) == len(spec.solved):
            raise refusals[0]
        return found

    def evaluations_for(self, spec: TimestepSpec, processes: Mapping[str, ForwardProcess]) -> int:
        """Evaluations of the network that a step makes, at most: guidance's, again for a solver that corrects, and for
        numbers after symbols.

        Raises:
            SpecError: if guidance or solver do not fit the spec.
            UnknownNameError: if a solver is not known.
        """
        solvers = self.solvers_for(spec, processes).values()
        is_mixed = len({processes[name].is_discrete for name in spec.solved}) == 2
        times = 1 + any(row and row.corrects for row in solvers) + (is_mixed and self.interleave == "discrete_first")
        return self.guidance_for(spec).num_evaluations * times

    def guidance_for(self, spec: TimestepSpec) -> Guidance:
        """The weighted sum for a spec.

        Raises:
            SpecError: if a scale is for a modality that the spec does not use so.
        """
        if isinstance(self.guidance, Guidance):
            return self.guidance
        return Guidance.of(
            spec, self.guidance, interval=self.guidance_interval or ALWAYS, rescale=self.guidance_rescale
        )

    def wrapped(
        self,
        predictor: Predictor,
        spec: TimestepSpec,
        processes: Mapping[str, ForwardProcess],
        silenced: Silenced,
    ) -> Predictor:
        """A predictor as these options change what it estimates: guided, led by a gradient, kept within a threshold.

        Args:
            predictor: without any.
            spec: what is sampled.
            processes: of all modalities.
            silenced: latents and times without some conditions.

        Raises:
            SpecError: if one is for a modality that the spec does not use so.
            EstimateError: if one does not accept the estimates of a modality that it is for.
        """
        predictor = self.guidance_for(spec).wrap(predictor, processes, silenced)
        if self.gradient:
            predictor = self.gradient.wrap(predictor, spec, processes)
        if self.threshold is not None:
            predictor = Threshold(self.threshold, self.threshold_ratio).wrap(predictor, spec, processes)
        return predictor


def _each(option: str, value: Any) -> list[tuple[str, Any]]:
    """An option's values, one for all or one for each name, each with what it is."""
    if isinstance(value, Mapping):
        return [(f"{option} of {name!r}", row) for name, row in value.items()]
    return [] if value is None else [(option, value)]


def _check_interval(of: str, value: Any) -> None:
    is_pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not is_pair or not all(isinstance(row, int | float) for row in value) or not 0 <= value[0] <= value[1] <= 1:
        raise SpecError(f"{of} is [from, up to], fractions of T, not {value!r}")
