"""Noise schedules: timestep → how much signal and how much noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from unidiff_core.foundation.argument import check_shares
from unidiff_core.foundation.time import T


class NoiseSchedule(ABC):
    """``x_t = alpha(t)·clean + sigma(t)·noise``, for times in 0..T of any shape."""

    @abstractmethod
    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Coefficient of the clean value; 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Coefficient of the noise; 0 at t = 0."""

    def log_snr(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Half the logarithm of the signal-to-noise ratio, log(alpha / sigma); +inf at 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    @property
    def forgets(self) -> bool:
        """Whether nothing of the clean value is left at T, so that ignoring a modality is exactly marginalising it."""
        return self.alpha(torch.tensor(float(T), dtype=torch.float64)).item() == 0


class Flow(NoiseSchedule):
    """The straight line of flow matching and rectified flow: alpha = 1 − t/T, sigma = t/T."""

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1 − t/T."""
        return 1 - t / T

    def sigma(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """t/T."""
        return t / T


class ScaledLinear(NoiseSchedule):
    """Stable Diffusion's schedule, the reference: √beta runs linearly from √`beta_start` to √`beta_end` in T steps.

    Between integer times log ᾱ is interpolated linearly, as DPM-Solver does. The terminal signal-to-noise ratio is not
    zero (ᾱ_T = 0.00466 for the defaults), so an ignored modality is only approximately marginalised.

    Args:
        beta_start: variance of the noise that the first of the T steps adds.
        beta_end: that of the last.
    """

    def __init__(self, beta_start: float = 0.00085, beta_end: float = 0.0120) -> None:
        check_shares(beta_start=beta_start, beta_end=beta_end)
        self.beta_start = beta_start
        self.beta_end = beta_end

    @cached_property
    def _log_alpha_bar(self) -> Tensor:
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, T, dtype=torch.float64) ** 2
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])  # at t = 0, 1, …, T

    def _alpha_bar(self, t: Tensor) -> Tensor:
        table = self._log_alpha_bar.to(t.device)
        low = t.floor().clamp(0, T - 1).long()
        return torch.lerp(table[low], table[low + 1], t.double() - low).exp()

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """√ᾱ_t."""
        return self._alpha_bar(t).sqrt().to(t.dtype)

    def sigma(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """√(1 − ᾱ_t)."""
        return (1 - self._alpha_bar(t)).sqrt().to(t.dtype)
