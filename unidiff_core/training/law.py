"""Timestep laws: how training draws the times of all modalities of a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from unidiff_core.foundation.time import T, in_steps

Uniforms = Mapping[str, Tensor]
"""modality → numbers in [0, 1) ``[b]``, float64. Those of a modality do not change when another is added."""


class TimestepLaw(ABC):
    """A distribution over the times of all modalities at once, given as a map from uniform numbers: it draws nothing.

    A time is a fraction of T: 0 is clean, 1 is noise. What a sample lacks is put to T afterwards.
    """

    @abstractmethod
    def times(self, uniforms: Uniforms, choice: Float64[Tensor, " b"]) -> dict[str, Tensor]:
        """Times as fractions of T, ``[b]`` each, of the modalities of `uniforms`.

        Args:
            uniforms: a number a modality and sample.
            choice: one number a sample in [0, 1), for what is chosen for all modalities together.
        """

    def check(self, modalities: Sequence[str]) -> None:  # noqa: B027 — most laws go with any
        """Whether the law goes with a model of these modalities.

        Raises:
            ValueError: if it names another; lists those that there are.
        """


class Each(TimestepLaw, ABC):
    """The same law for each modality, independently."""

    @abstractmethod
    def time(self, uniform: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Uniform numbers in [0, 1) → times as fractions of T."""

    def times(self, uniforms: Uniforms, choice: Float64[Tensor, " b"]) -> dict[str, Tensor]:
        """`time` of each."""
        return {name: self.time(uniform) for name, uniform in uniforms.items()}


class Uniform(Each):
    """Uniform on the whole steps of (low·T, high·T]: by default on {1/T, …, 1}, the paper's law.

    Args:
        low: bound, a fraction of T from 0, itself left out.
        high: bound up to 1, itself included.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 <= low < high <= 1 or round(low * T) == round(high * T):
            raise ValueError(
                f"a uniform timestep law needs 0 <= low < high <= 1, a step of 1/{T} apart, not low={low}, high={high}"
            )
        self.low = low
        self.high = high

    def time(self, uniform: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Uniform on the whole steps of (low·T, high·T]."""
        low, high = round(self.low * T), round(self.high * T)
        return (low + 1 + (uniform * (high - low)).floor()) / T


class Atoms(Each):
    """Mass on single times, the rest of it on {1/T, …, 1} uniformly.

    ``Atoms({0: 0.9, 1: 0.1})`` for a modality is a plain conditional model with condition dropout.

    Args:
        masses: time as a fraction of T → probability; their sum is at most 1.
    """

    def __init__(self, masses: dict[float, float]) -> None:
        if any(not 0 <= time <= 1 for time in masses) or min(masses.values(), default=0) < 0:
            raise ValueError(
                f"atoms are times from 0 to 1 (fractions of T: 1 is pure noise) with masses of at least 0, not {masses}"
            )
        if sum(masses.values()) > 1 + 1e-9:
            raise ValueError(f"the masses of {masses} add up to more than 1")
        self.masses = dict(masses)

    def time(self, uniform: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The atoms share the low end of [0, 1); what is above them is spread over {1/T, …, 1}."""
        total = sum(self.masses.values())
        rest = ((uniform - total) / max(1 - total, 1e-12)).clamp(0, 1 - 1e-9)
        times = Uniform().time(rest)
        edge = 0.0
        for time, mass in self.masses.items():
            times = torch.where((uniform >= edge) & (uniform < edge + mass), float(time), times)
            edge += mass
        return times


class Shared(TimestepLaw):
    """One clock: all modalities of a sample have the same time. What a model that is only sampled jointly needs.

    Args:
        law: of the one time; the paper's if not given.
    """

    def __init__(self, law: Each | None = None) -> None:
        self.law = law or Uniform()

    def times(self, uniforms: Uniforms, choice: Float64[Tensor, " b"]) -> dict[str, Tensor]:
        """The law's time for `choice`."""
        return dict.fromkeys(uniforms, self.law.time(choice))


class Independent(TimestepLaw):
    """A law of its own for each modality, drawn independently; what `laws` does not name has `rest`.

    Args:
        laws: modality → its law.
        rest: of the modalities that are not named; the paper's if not given.
    """

    def __init__(self, laws: dict[str, Each], rest: Each | None = None) -> None:
        self.laws, self.rest = laws, rest or Uniform()
        for name, law in laws.items():
            if not isinstance(law, Each):
                raise ValueError(
                    f"{type(law).__name__} is a law over all clocks of a sample, and cannot be that of {name!r} alone"
                )

    def times(self, uniforms: Uniforms, choice: Float64[Tensor, " b"]) -> dict[str, Tensor]:
        """Each law's time for its modality."""
        return {name: self.laws.get(name, self.rest).time(uniform) for name, uniform in uniforms.items()}

    def check(self, modalities: Sequence[str]) -> None:
        """No law is for a modality that does not exist."""
        if wrong := [name for name in self.laws if name not in modalities]:
            raise ValueError(
                f"a timestep law is for {wrong[0]!r}, which is no modality; there are {', '.join(modalities)}"
            )


class Mixture(TimestepLaw):
    """One of several laws for each sample, by weight: so that some tasks get a share of the training of their own.

    Args:
        laws: to choose from.
        weights: of each; equal if not given.
    """

    def __init__(self, laws: list[TimestepLaw], weights: list[float] | None = None) -> None:
        self.laws, self.weights = laws, weights or [1.0] * len(laws)
        if not laws or len(self.weights) != len(laws) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(
                f"a mixture has a weight of at least 0 for each of its laws, not {weights} for {len(laws)}"
            )

    def times(self, uniforms: Uniforms, choice: Float64[Tensor, " b"]) -> dict[str, Tensor]:
        """Of the law that `choice` falls to; what is left of `choice` is the law's own."""
        shares = torch.tensor(self.weights, dtype=torch.float64, device=choice.device)
        edges = (shares / shares.sum()).cumsum(0)
        which = torch.searchsorted(edges, choice, right=True).clamp(max=len(self.laws) - 1)
        lows = torch.cat([edges.new_zeros(1), edges[:-1]])
        left = ((choice - lows[which]) / (edges - lows)[which]).clamp(0, 1 - 1e-9)
        rows = [law.times(uniforms, left) for law in self.laws]
        return {name: torch.stack([row[name] for row in rows]).gather(0, which[None])[0] for name in uniforms}

    def check(self, modalities: Sequence[str]) -> None:
        """As each law."""
        for law in self.laws:
            law.check(modalities)


def law_of(law: TimestepLaw | Mapping[str, Each] | None, modalities: Sequence[str]) -> TimestepLaw:
    """A law as a recipe writes it: one for all, one for each by name, or none, which is the paper's.

    Raises:
        ValueError: if it names a modality that does not exist.
    """
    made = Independent(dict(law)) if isinstance(law, Mapping) else law or Uniform()
    made.check(modalities)
    return made


def drawn_times(law: TimestepLaw, uniforms: Uniforms, choice: Float64[Tensor, " b"]) -> dict[str, Tensor]:
    """Times ``[b]`` in steps 0..T."""
    return {name: in_steps(time) for name, time in law.times(uniforms, choice).items()}
