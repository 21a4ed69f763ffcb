"""Guidance: a weighted sum of one predictor at changed times.

Written in clean estimates; the same in noise, velocity or flow, as the weights sum to 1. No null token is needed: the
network without a condition is the same network with that condition at T (the paper, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unidiff_core.predictor import Latents, Predictor, Times, dropped, modality_of
from unidiff_core.schedule import T
from unidiff_core.spec import SpecError, TimestepSpec


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
            (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724). The latest time of a solved modality decides.
    """

    terms: Mapping[str, tuple[Term, ...]]
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        assert all(abs(sum(term.weight for term in terms) - 1) < 1e-6 for terms in self.terms.values())

    @classmethod
    def of(
        cls,
        spec: TimestepSpec,
        scale: float | Mapping[str, float],
        *,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> Guidance:
        """The usual guidance of a spec. With targets G and givens C:

        * a number s and C not empty: (1+s)·D(G | C) − s·D(G | every c at T);
        * a number per given: D(G | C) + Σ_c s_c·[D(G | C) − D(G | C without c)];
        * a number and C empty: for each m of G, (1+s)·D_m(G) − s·D_m(m alone, every other at T).

        Raises:
            SpecError: if a scale is given to a modality that the spec does not hold.
        """
        if isinstance(scale, Mapping):
            terms = _per_given(spec, scale)
        elif spec.held:
            terms = {name: _contrast(scale, frozenset(spec.held)) for name in spec.solved}
        else:
            terms = {name: _contrast(scale, frozenset(spec.solved) - {name}) for name in spec.solved}
        return cls({name: _merged(row) for name, row in terms.items()}, interval)

    @property
    def num_evaluations(self) -> int:
        """Distinct evaluations of the predictor a step, inside the interval."""
        return len({term.silenced for terms in self.terms.values() for term in terms})

    def wrap(self, predictor: Predictor, noise: Latents | None) -> Predictor:
        """A guided predictor; `noise` is what a silenced modality becomes. With None it is dropped."""

        def guided(latents: Latents, times: Times) -> dict[str, Tensor]:
            plain = predictor(latents, times)
            if not self._is_on(times):
                return plain
            estimates = {frozenset[str](): plain}
            for silenced in {term.silenced for terms in self.terms.values() for term in terms} - set(estimates):
                changed = silence(latents, times, silenced, noise) if noise else dropped(latents, times, silenced)
                estimates[silenced] = predictor(*changed)
            return plain | {key: self._sum(key, estimates) for key in plain if modality_of(key) in self.terms}

        return guided

    def _is_on(self, times: Times) -> bool:
        latest = max(times[name].max().item() for name in self.terms) / T
        return self.interval[0] <= latest <= self.interval[1]

    def _sum(self, key: str, estimates: Mapping[frozenset[str], Mapping[str, Tensor]]) -> Tensor:
        terms = self.terms[modality_of(key)]
        return torch.stack([term.weight * estimates[term.silenced][key] for term in terms]).sum(0)


def silence(latents: Latents, times: Times, names: frozenset[str], noise: Latents) -> tuple[Latents, Times]:
    """Put some modalities to T: their latents become `noise`."""
    latents = {key: noise[key] if modality_of(key) in names else value for key, value in latents.items()}
    times = {name: torch.full_like(t, T) if name in names else t for name, t in times.items()}
    return latents, times


def _contrast(scale: float, silenced: frozenset[str]) -> tuple[Term, ...]:
    return Term(1 + scale), Term(-scale, silenced)


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
