"""Timestep laws: how training draws the timesteps."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unidiff_core.schedule import T


class TimestepLaw(ABC):
    """A distribution over times, given as the map from uniform numbers, so that it draws nothing itself."""

    @abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) → times in 0..T, same shape."""


class Uniform(TimestepLaw):
    """Uniform on the integers of (low·T, high·T]: by default on {1..T}, the paper's law.

    Args:
        low, high: bounds as fractions of T, 0 ≤ low < high ≤ 1.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(f"a uniform timestep law needs 0 <= low < high <= 1, not low={low}, high={high}")
        self.low = low
        self.high = high

    def draw(self, uniform: Tensor) -> Tensor:
        """Uniform on the integers of (low·T, high·T]."""
        low, high = round(self.low * T), round(self.high * T)
        return low + 1 + (uniform * (high - low)).floor()


class Atoms(TimestepLaw):
    """Mass on single times, the rest of it on {1..T} uniformly.

    ``Atoms({0: 0.9, 1000: 0.1})`` for a modality is a plain conditional model with condition dropout.

    Args:
        masses: time in 0..T → probability; their sum is at most 1.
    """

    def __init__(self, masses: dict[int, float]) -> None:
        if any(not 0 <= time <= T for time in masses) or min(masses.values(), default=0) < 0:
            raise ValueError(f"atoms are times in 0..{T} with masses of at least 0, not {masses}")
        if sum(masses.values()) > 1 + 1e-9:
            raise ValueError(f"the masses of {masses} add up to more than 1")
        self.masses = dict(masses)

    def draw(self, uniform: Tensor) -> Tensor:
        """The atoms share the low end of [0, 1); what is above them is spread over {1..T}."""
        total = sum(self.masses.values())
        rest = ((uniform - total) / max(1 - total, 1e-12)).clamp(0, 1 - 1e-9)
        times = Uniform().draw(rest)
        edge = 0.0
        for time, mass in self.masses.items():
            times = torch.where((uniform >= edge) & (uniform < edge + mass), float(time), times)
            edge += mass
        return times
