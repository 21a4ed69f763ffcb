"""How to sample: said once, and read from here by Python, the command line and the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from unidiff_core.foundation.argument import check_flag, check_known, check_mapping, check_number, check_whole
from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.process.process import ForwardProcess, Solver
from unidiff_core.sampling.guidance import Guidance
from unidiff_core.sampling.spec import SpecError, TimestepSpec

Constrain: TypeAlias = Callable[[dict[str, Tensor], dict[str, float]], dict[str, Tensor]]
"""(latents, times as fractions of T) → latents, after each step: replaces part of the state. Inpainting lives here."""

Interleave: TypeAlias = Literal["together", "discrete_first"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Everything about a sampling call but what is asked for: the spec, what is given, and how many."""

    steps: int = 50
    """Solver steps over the whole path."""
    solver: str | Solver | dict[str, str] | None = None
    """Name of the reverse step: ddim, ddpm, dpmpp_2m, dpmpp_3m, heun, analytic(1) or another that `unidiffuser list
    solvers` shows; or one for each modality, {image: ddpm}. Each process's own default if not given (dpmpp_2m for
    Gaussian noise)."""
    guidance: float | dict[str, float] | Guidance = 0.0
    """A scale s, 0 is off; a scale for each given, {text: 2}; or for each of several that are solved."""
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
    """Side inputs of the backbone, {data_type: 0}: one number for all samples, or from Python a tensor of one each."""
    constrain: Constrain | None = None
    """Replaces part of the state after each step; from Python only."""

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
        if self.interleave not in get_args(Interleave):
            known = " or ".join(get_args(Interleave))
            raise SpecError(f"interleave is {known}, not {self.interleave!r}")
        if not (self.constrain is None or callable(self.constrain)):
            raise ValueError(f"constrain is a function of latents and times, not {self.constrain!r}")

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
        known = [row.name for row in fields(cls) if row.name != "constrain"]
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
            if wrong := [name for name in self.solver if name not in spec.solved]:
                raise SpecError(
                    f"a solver is named for {wrong[0]!r}, which {spec} does not solve; solved: {', '.join(spec.solved)}"
                )
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
        return self.guidance if isinstance(self.guidance, Guidance) else Guidance.of(spec, self.guidance)
