"""The Gaussian process: alpha·clean + sigma·noise, under any schedule, predicting any of four things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from unidiff_core.foundation.latents import over
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.stream import Stream
from unidiff_core.foundation.time import T
from unidiff_core.process.gaussian.schedule import Flow, NoiseSchedule
from unidiff_core.process.gaussian.solver import GaussianSolver, alpha_sigma
from unidiff_core.process.process import Corruption, ForwardProcess, Step

Prediction = Literal["noise", "velocity", "clean", "flow"]


class Gaussian(ForwardProcess):
    """Gaussian noise: ``x_t = alpha·x_0 + sigma·ε``, of which the network predicts one of four things.

    * ``noise``: ε;
    * ``velocity``: alpha·ε − sigma·x_0 (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512);
    * ``clean``: x_0;
    * ``flow``: ε − x_0, the velocity of the straight line (Lipman et al. 2022, https://arxiv.org/abs/2210.02747).

    Predicting noise under a schedule that forgets all at T says nothing about x_0 there: the pair is refused.

    Args:
        schedule: timestep → alpha and sigma; `Flow` if not given.
        prediction: what the network is asked for.
    """

    estimate = "mean"
    solvers = GaussianSolver
    default_solver = "dpmpp_2m"

    def __init__(self, schedule: NoiseSchedule | None = None, prediction: Prediction = "flow") -> None:
        super().__init__()
        self.schedule = schedule or Flow()
        self.prediction = prediction
        if prediction not in get_args(Prediction):
            raise ValueError(f"unknown prediction {prediction!r}; known: {', '.join(get_args(Prediction))}")
        if prediction == "noise" and self.schedule.forgets:
            raise ValueError(
                f"noise prediction cannot give a clean estimate at T under {type(self.schedule).__name__}, where "
                "nothing of the data is left; predict flow, velocity or clean"
            )

    def seen(self, stream: Stream) -> Stream:
        """The stream itself.

        Raises:
            ValueError: if it is of symbols.
        """
        if stream.vocabulary is not None:
            raise ValueError(
                f"Gaussian noise is for numbers, and the stream {stream} is of symbols: "
                "give the modality a process for symbols"
            )
        return stream

    @property
    def leak(self) -> float:
        """½·log2(1 + alpha²/sigma²) at T."""
        alpha, sigma = alpha_sigma(self.schedule, float(T))
        return 0.5 * math.log2(1 + (alpha / sigma) ** 2) if sigma else math.inf

    def moments(self, t: Float[Tensor, "*times"], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(alpha ``[*times, *shape]``, sigma ``[*times]``) at times in steps, float64: x_t = alpha·x_0 + sigma·ε."""
        t = t.double()
        return self.schedule.alpha(t).reshape(*t.shape, *[1] * len(shape)).expand(
            *t.shape, *shape
        ), self.schedule.sigma(t)

    def coordinates(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """The basis in which x_t is x_0 times numbers, with noise: every basis is, and this is the data's."""
        return x

    def _coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # In float64 if that is what t is: the schedule is exact, and only the result is rounded to the data's type.
        return over(self.schedule.alpha(t).to(x.dtype), x), over(self.schedule.sigma(t).to(x.dtype), x)

    def corrupt(self, clean: Float[Tensor, "b *shape"], t: Float[Tensor, " b"], draws: Draws) -> Corruption:
        """The paper's Eq. 1 and the target of the chosen prediction."""
        noise = draws.normal(clean.shape[1:]).to(clean.dtype)
        alpha, sigma = self._coefficients(t, clean)
        match self.prediction:
            case "noise":
                target = noise
            case "velocity":
                target = alpha * noise - sigma * clean
            case "clean":
                target = clean
            case "flow":
                target = noise - clean
        return Corruption(alpha * clean + sigma * noise, target)

    def loss(
        self, prediction: Float[Tensor, "b *shape"], corruption: Corruption, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Squared error (the paper's Eq. 5)."""
        return (prediction - corruption.target).square()

    def start(self, shape: Sequence[int], draws: Draws) -> Float[Tensor, "b *shape"]:
        """Pure noise, as the released sampler starts, also under a schedule that would leave a little data."""
        return draws.normal(shape)

    def clean(
        self, corrupted: Float[Tensor, "b *shape"], prediction: Float[Tensor, "b *shape"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """E[x_0 | x_t], by solving the prediction's definition for x_0."""
        alpha, sigma = self._coefficients(t, corrupted)
        match self.prediction:
            case "noise":
                return (corrupted - sigma * prediction) / alpha
            case "velocity":
                return (alpha * corrupted - sigma * prediction) / (alpha.square() + sigma.square())
            case "clean":  # what is clean already is known, whatever a network says of it
                return torch.where(sigma == 0, corrupted, prediction)
            case "flow":
                return (corrupted - sigma * prediction) / (alpha + sigma)

    def prediction_of(
        self, corrupted: Float[Tensor, "b *shape"], clean: Float[Tensor, "b *shape"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """With the noise that the clean estimate implies: none is known of at t = 0, whose mean is 0."""
        alpha, sigma = self._coefficients(t, corrupted)
        noise = torch.where(sigma > 0, corrupted - alpha * clean, 0.0) / torch.where(sigma > 0, sigma, 1.0)
        match self.prediction:
            case "noise":
                return noise
            case "velocity":
                return alpha * noise - sigma * clean
            case "clean":
                return clean
            case "flow":
                return noise - clean

    def check_shifts(self) -> None:
        """It is known."""

    def shifted(
        self, clean: Float[Tensor, "b *shape"], gradient: Float[Tensor, "b *shape"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """By sigma²/alpha times the gradient (Dhariwal & Nichol 2021, arXiv 2105.05233, Algorithm 2: ε − sigma·∇).

        Not at all where alpha is 0: there the state tells nothing of the clean value, and its gradient is 0.
        """
        alpha, sigma = self._coefficients(t, clean)
        return clean + torch.where(alpha > 0, sigma.square() / torch.where(alpha > 0, alpha, 1.0), 0.0) * gradient

    def step(
        self, x: Float[Tensor, "b *shape"], clean: Float[Tensor, "b *shape"], step: Step, solver: GaussianSolver
    ) -> Float[Tensor, "b *shape"]:
        """By the chosen solver."""
        assert 0 <= step.t <= T and 0 <= step.t_next <= T
        return solver.step(self.schedule, x, clean, step)

    def renoise(self, x: Float[Tensor, "b *shape"], t: float, t_next: float, draws: Draws) -> Float[Tensor, "b *shape"]:
        """The forward transition q(x_t' | x_t), exact in one step."""
        (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(self.schedule, t), alpha_sigma(self.schedule, t_next)
        ratio = alpha_next / alpha if alpha else 0.0
        spread = max(0.0, sigma_next**2 - (ratio * sigma) ** 2) ** 0.5
        return ratio * x + spread * draws.normal(x.shape[1:]).to(x.dtype)

    def log_snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Of its schedule."""
        return self.schedule.log_snr(t)

    def knows(self, t: float) -> bool:
        """Where there is no noise."""
        return alpha_sigma(self.schedule, t)[1] == 0

    def corrects(self, step: Step, solver: GaussianSolver) -> bool:
        """If the solver does, but for a step that ends clean: there the state is its own clean estimate. A step that
        begins clean is always corrected: see `off_clean`.
        """
        return not self.knows(step.t_next) and (solver.corrects or self.knows(step.t))

    def correct(
        self,
        x: Float[Tensor, "b *shape"],
        x_next: Float[Tensor, "b *shape"],
        clean: Float[Tensor, "b *shape"],
        clean_next: Float[Tensor, "b *shape"],
        step: Step,
        solver: GaussianSolver,
    ) -> Float[Tensor, "b *shape"]:
        """By the chosen solver."""
        return solver.correct(self.schedule, x, x_next, clean, clean_next, step)

    def extra_repr(self) -> str:
        """For printing the module."""
        return f"{type(self.schedule).__name__}, predicts {self.prediction}"
