"""The exact oracle: for a joint Gaussian over any modalities the optimal clean estimate is closed-form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from unidiff_core.foundation.latents import Latents, Times, modality_of
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow, NoiseSchedule
from unidiff_core.process.process import ForwardProcess

GAINS = 16


@dataclass(frozen=True)
class GaussianOracle:
    """A predictor without training, in float64.

    With x_t = A·x_0 + S·ε, where A and S are diagonal (each modality has its own time) and x_0 ~ N(μ, Σ),

        E[x_0 | x_t] = μ + Σ·A·(A·Σ·A + S²)⁻¹·(x_t − A·μ)

    Attributes:
        shapes: ``"<modality>.<stream>"`` → shape of one sample. Streams stand in this order in `mean`.
        mean: ``[d]``, d the number of elements of all streams.
        covariance: ``[d, d]``.
        schedule: of every modality.
    """

    shapes: Mapping[str, tuple[int, ...]]
    mean: Tensor
    covariance: Tensor
    schedule: NoiseSchedule
    _gains: dict[tuple[float, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def random(
        cls, shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0, schedule: NoiseSchedule | None = None
    ) -> GaussianOracle:
        """A joint Gaussian in which everything correlates with everything, eigenvalues between about 0.2 and 2."""
        size = sum(math.prod(shape) for shape in shapes.values())
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        eigenvalues = torch.logspace(math.log10(0.2), math.log10(2.0), size, dtype=torch.float64)
        mean = torch.randn(size, generator=generator, dtype=torch.float64)
        return cls(shapes, mean, basis @ eigenvalues.diag() @ basis.T, schedule or Flow())

    @cached_property
    def rows(self) -> dict[str, slice]:
        """Full stream name → its elements in `mean`."""
        ends = torch.tensor([math.prod(shape) for shape in self.shapes.values()]).cumsum(0).tolist()
        return {key: slice(end - math.prod(self.shapes[key]), end) for key, end in zip(self.shapes, ends, strict=True)}

    @property
    def processes(self) -> dict[str, ForwardProcess]:
        """A process for each modality, for `sample`."""
        return {modality_of(key): Gaussian(self.schedule, "clean") for key in self.shapes}

    def flat(self, latents: Latents) -> Tensor:
        """``[b, d]``."""
        return torch.cat([latents[key].double().flatten(1) for key in self.shapes], dim=1)

    def unflat(self, x: Tensor) -> dict[str, Tensor]:
        """``[b, d]`` → a tensor for each stream."""
        return {key: x[:, rows].reshape(-1, *self.shapes[key]) for key, rows in self.rows.items()}

    def coefficients(self, times: Times) -> tuple[Tensor, Tensor]:
        """Diagonals of A and S, ``[d]`` each. All samples of a batch are at the same times."""
        spread = torch.cat(
            [times[modality_of(key)][:1].double().repeat(math.prod(s)) for key, s in self.shapes.items()]
        )
        return self.schedule.alpha(spread), self.schedule.sigma(spread)

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Σ·A·(A·Σ·A + S²)⁻¹, ``[d, d]``; elements that are known exactly (t = 0) need no special case."""
        noisy = alpha[:, None] * self.covariance * alpha + sigma.square().diag()
        return torch.linalg.solve(noisy, alpha[:, None] * self.covariance).T

    def _known(self, place: tuple[float, ...], times: Times) -> tuple[Tensor, Tensor]:
        """Diagonal of A and gain at these times; those of the last few are kept, as a solver comes back to them."""
        if place not in self._gains:
            alpha, sigma = self.coefficients(times)
            self._gains[place] = alpha, self.gain(alpha, sigma)
            while len(self._gains) > GAINS:
                del self._gains[next(iter(self._gains))]
        return self._gains[place]

    def __call__(self, latents: Latents, times: Times) -> dict[str, Tensor]:
        """Exact clean estimates."""
        alpha, gain = self._known(tuple(times[modality_of(key)][0].item() for key in self.shapes), times)
        estimate = self.mean + (self.flat(latents) - alpha * self.mean) @ gain.T
        return {key: value.to(latents[key].dtype) for key, value in self.unflat(estimate).items()}

    def draw(self, num: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Exact samples of the joint distribution."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(num, len(self.mean), generator=generator, dtype=torch.float64)
        return self.unflat(self.mean + noise @ torch.linalg.cholesky(self.covariance).T)

    def conditional(
        self, targets: list[str], given: Latents, times: Mapping[str, float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Exact mean ``[b, k]`` and covariance ``[k, k]`` of the streams `targets`, others marginalised.

        Args:
            targets: full stream names.
            given: values ``[b, ...]`` of other streams, as noisy as `times` says.
            times: modality → time of its given value; 0 if absent.
        """
        wanted = torch.cat([torch.arange(len(self.mean))[self.rows[key]] for key in targets])
        if not given:
            return self.mean[wanted][None], self.covariance[wanted][:, wanted]
        known = torch.cat([torch.arange(len(self.mean))[self.rows[key]] for key in given])
        values = torch.cat([value.double().flatten(1) for value in given.values()], dim=1)
        spread = torch.cat(
            [
                torch.full(
                    (math.prod(self.shapes[key]),), float((times or {}).get(modality_of(key), 0)), dtype=torch.float64
                )
                for key in given
            ]
        )
        alpha, sigma = self.schedule.alpha(spread), self.schedule.sigma(spread)
        noisy = alpha[:, None] * self.covariance[known][:, known] * alpha + sigma.square().diag()
        cross = self.covariance[wanted][:, known] * alpha
        gain = torch.linalg.solve(noisy, cross.T).T
        mean = self.mean[wanted] + (values - alpha * self.mean[known]) @ gain.T
        return mean, self.covariance[wanted][:, wanted] - gain @ cross.T
