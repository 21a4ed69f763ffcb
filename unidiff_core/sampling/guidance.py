"""Guidance: a weighted sum of one predictor at changed times.

Written in clean estimates; the same in noise, velocity or flow, as the weights sum to 1. No null token is needed: the
network without a condition is the same network with that condition at T (the paper, section 3.3).

What is done to the sum afterwards is in `estimate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unidiff_core.foundation.latents import Latents, Times, modality_of
from unidiff_core.foundation.time import T
from unidiff_core.process.process import ForwardProcess
from unidiff_core.sampling.estimate import check_rescales, rescaled
from unidiff_core.sampling.predictor import Predictor
from unidiff_core.sampling.spec import SpecError, TimestepSpec

Silenced = Callable[[Latents, Times, frozenset[str]], tuple[Latents, Times]]
"""(latents, times, modalities) → latents and times without what these tell."""

Interval = tuple[float, float]
"""Fractions of T: from, up to."""

ALWAYS: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Term:
    """A weight, and the modalities that are put to T, as noise, in this evaluation."""

    weight: float
    silenced: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Guidance:
    """For each solved modality a weighted sum of evaluations, weights summing to 1.

    Attributes:
        terms: solved modality → its terms.
        interval: fractions of T between which the guided sum is used; outside it guidance is off and costs nothing
            (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724). One interval for all, where the latest time of
            a solved modality decides; or one for each by name, where its own time does, and the others have no limit.
        rescale: φ, how much of the spread that guidance adds is taken back: 0 is nothing, 1 is all (Lin et al. 2023,
            https://arxiv.org/abs/2305.08891, section 3.4). Of what estimates means, symbols are left alone.
    """

    terms: Mapping[str, tuple[Term, ...]]
    interval: Interval | Mapping[str, Interval] = ALWAYS
    rescale: float = 0.0

    def __post_init__(self) -> None:
        assert all(abs(sum(term.weight for term in terms) - 1) < 1e-6 for terms in self.terms.values())

    @classmethod
    def of(
        cls,
        spec: TimestepSpec,
        scale: float | Mapping[str, float],
        *,
        interval: Interval | Mapping[str, Interval] = ALWAYS,
        rescale: float = 0.0,
    ) -> Guidance:
        """The usual guidance of a spec. With targets G and givens C:

        * a number s and C not empty: (1+s)·D(G | C) − s·D(G | every c at T);
        * a number per given: D(G | C) + Σ_c s_c·[D(G | C) − D(G | C without c)];
        * a number and C empty: for each m of G, (1+s)·D_m(G) − s·D_m(m alone, every other at T);
        * a number per target: the same with a scale for each, 0 for those that have none.

        Raises:
            SpecError: if a scale is given to a modality that the spec neither holds nor solves, or to both kinds; or
                an interval to one that it does not solve.
        """
        if isinstance(interval, Mapping):
            spec.check_solved(interval, "an interval of guidance")
        if isinstance(scale, Mapping) and not set(scale) & set(spec.solved):
            terms = _per_given(spec, scale)
        else:
            scales = _per_target(spec, scale)
            others = {name: frozenset(spec.held or spec.solved) - {name} for name in spec.solved}
            terms = {name: _contrast(scales[name], others[name]) for name in spec.solved}
        return cls({name: _merged(row) for name, row in terms.items()}, interval, rescale)

    @property
    def num_evaluations(self) -> int:
        """Distinct evaluations of the predictor a step, inside the interval."""
        return len({term.silenced for terms in self.terms.values() for term in terms})

    def wrap(self, predictor: Predictor, processes: Mapping[str, ForwardProcess], silenced: Silenced) -> Predictor:
        """A guided predictor.

        Args:
            predictor: to be guided.
            processes: modality → process, which knows how its estimates are mixed.
            silenced: latents and times without some conditions.

        Raises:
            MixError: if no weighted sum exists of the estimates of a guided modality.
        """
        mixing = [processes[name] for name, terms in self.terms.items() if len(terms) > 1]
        for process in mixing:
            process.check_mixes()
        if self.rescale and mixing:
            check_rescales(mixing)

        def guided(latents: Latents, times: Times) -> dict[str, Tensor]:
            plain = predictor(latents, times)
            estimates = {frozenset[str](): plain}
            active = {name: terms for name, terms in self.terms.items() if self._is_on(name, times)}
            for names in {term.silenced for terms in active.values() for term in terms} - set(estimates):
                estimates[names] = predictor(*silenced(latents, times, names))
            mixed = {
                key: self._mix(key, estimates, processes[modality_of(key)])
                for key in plain
                if modality_of(key) in active
            }
            if self.rescale:
                mixed = rescaled(mixed, plain, latents, times, processes, share=self.rescale)
            return plain | mixed

        return guided

    def _is_on(self, name: str, times: Times) -> bool:
        """Whether a modality is guided at these times."""
        if isinstance(self.interval, Mapping):
            (low, high), deciding = self.interval.get(name, ALWAYS), [name]
        else:
            (low, high), deciding = self.interval, [*self.terms]
        return low <= max(times[row].max().item() for row in deciding) / T <= high

    def _mix(
        self, key: str, estimates: Mapping[frozenset[str], Mapping[str, Tensor]], process: ForwardProcess
    ) -> Tensor:
        terms = self.terms[modality_of(key)]
        if len(terms) == 1:
            return estimates[terms[0].silenced][key]
        return process.mix([estimates[term.silenced][key] for term in terms], [term.weight for term in terms])


def silence(
    latents: Latents, times: Times, names: frozenset[str], start: Callable[[str], Tensor]
) -> tuple[Latents, Times]:
    """Put some modalities to T: their latents become their processes' start."""
    latents = {key: start(key) if modality_of(key) in names else value for key, value in latents.items()}
    times = {name: torch.full_like(t, T) if name in names else t for name, t in times.items()}
    return latents, times


def _contrast(scale: float, silenced: frozenset[str]) -> tuple[Term, ...]:
    return Term(1 + scale), Term(-scale, silenced)


def _per_target(spec: TimestepSpec, scale: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(scale, Mapping):
        return dict.fromkeys(spec.solved, scale)
    for name in scale:
        if name not in spec.solved:
            raise SpecError(
                f"guidance is set for {name!r} and for what {spec} solves; give scales either to what it solves, "
                f"{', '.join(spec.solved)}, or to what it holds, {', '.join(spec.held) or 'nothing'}"
            )
    return {name: scale.get(name, 0.0) for name in spec.solved}


def _per_given(spec: TimestepSpec, scales: Mapping[str, float]) -> dict[str, tuple[Term, ...]]:
    for name in scales:
        if name not in spec.held:
            known = ", ".join(spec.held) or "none"
            raise SpecError(f"guidance is set for {name!r}, which {spec} does not hold; held: {known}")
    terms = (Term(1 + sum(scales.values())), *(Term(-scale, frozenset({name})) for name, scale in scales.items()))
    return dict.fromkeys(spec.solved, terms)


def _merged(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """Terms of the same evaluation added up, and those of weight 0 left out: what costs nothing is not evaluated."""
    weights: dict[frozenset[str], float] = {}
    for term in terms:
        weights[term.silenced] = weights.get(term.silenced, 0.0) + term.weight
    return tuple(Term(weight, silenced) for silenced, weight in weights.items() if weight)
