"""Forward processes: how a stream is corrupted, what the network is asked for, and how a reverse step is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from unidiff_core.schedule import Flow, NoiseSchedule, T
from unidiff_core.solver import Past, Solver
from unidiff_core.stream import Stream

Prediction = Literal["noise", "velocity", "clean", "flow"]


@dataclass(frozen=True)
class Corruption:
    """What the network sees and what it is asked for, both ``[b, ...]``."""

    corrupted: Tensor
    target: Tensor


class ForwardProcess(nn.Module, ABC):
    """The seam between a modality's data and the clock. It may own parameters; it does not own the backbone.

    Times are ``[b]`` in training, and ``[b]`` of one repeated value in sampling.
    """

    estimate: ClassVar[Literal["mean", "median", "logits"]]
    """What kind of clean estimate the trained network gives."""

    @property
    @abstractmethod
    def forgets(self) -> bool:
        """Whether no information is left at T: then "ignored" is exactly a marginal, else approximately one."""

    @abstractmethod
    def corrupt(self, clean: Tensor, t: Tensor, noise: Tensor) -> Corruption:
        """Forward: clean ``[b, ...]`` at times t ``[b]``. At t = 0 `corrupted` is `clean`, bit for bit."""

    @abstractmethod
    def start(self, noise: Tensor) -> Tensor:
        """The state at T, from standard normal noise."""

    @abstractmethod
    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each element, unreduced."""

    @abstractmethod
    def clean(self, corrupted: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean estimate that a prediction implies."""

    @abstractmethod
    def step(
        self, x: Tensor, clean: Tensor, t: float, t_next: float, noise: Tensor, history: Sequence[Past], solver: Solver
    ) -> Tensor:
        """One reverse step from t to t_next, given the clean estimate at t and those of earlier steps."""

    def correct(
        self, x: Tensor, x_next: Tensor, clean: Tensor, clean_next: Tensor, t: float, t_next: float, solver: Solver
    ) -> Tensor:
        """A better x_next from the clean estimate made there, for a solver of two evaluations a step."""
        return x_next

    def seen(self, stream: Stream) -> Stream:
        """What the network sees of a stream."""
        return stream

    def predicted(self, stream: Stream) -> Stream:
        """What the network must return for a stream."""
        return stream


def _over(t: Tensor, x: Tensor) -> Tensor:
    """Times ``[b]`` with trailing dimensions of 1, to multiply `x` ``[b, ...]``."""
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class Gaussian(ForwardProcess):
    """``x_t = alpha·x_0 + sigma·ε``, predicting one of

    * ``noise``: ε;
    * ``velocity``: alpha·ε − sigma·x_0 (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512);
    * ``clean``: x_0;
    * ``flow``: ε − x_0, the velocity of the straight line (Lipman et al. 2022, https://arxiv.org/abs/2210.02747).

    Predicting noise under a schedule that forgets all at T says nothing about x_0 there: the pair is refused.
    """

    estimate = "mean"

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

    @property
    def forgets(self) -> bool:
        """As the schedule."""
        return self.schedule.forgets

    def _coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # In float64 if that is what t is: the schedule is exact, and only the result is rounded to the data's type.
        return _over(self.schedule.alpha(t), x), _over(self.schedule.sigma(t), x)

    def corrupt(self, clean: Tensor, t: Tensor, noise: Tensor) -> Corruption:
        """The paper's Eq. 1 and the target of the chosen prediction."""
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

    def start(self, noise: Tensor) -> Tensor:
        """Pure noise, as the released sampler starts, also under a schedule that would leave a little data."""
        return noise

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return (prediction - target).square()

    def clean(self, corrupted: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t], by solving the prediction's definition for x_0."""
        alpha, sigma = self._coefficients(t, corrupted)
        match self.prediction:
            case "noise":
                return (corrupted - sigma * prediction) / alpha
            case "velocity":
                return (alpha * corrupted - sigma * prediction) / (alpha.square() + sigma.square())
            case "clean":
                return prediction
            case "flow":
                return (corrupted - sigma * prediction) / (alpha + sigma)

    def step(
        self, x: Tensor, clean: Tensor, t: float, t_next: float, noise: Tensor, history: Sequence[Past], solver: Solver
    ) -> Tensor:
        """By the chosen solver."""
        assert 0 <= t <= T and 0 <= t_next <= T
        return solver.step(self.schedule, x, clean, t, t_next, noise, history)

    def correct(
        self, x: Tensor, x_next: Tensor, clean: Tensor, clean_next: Tensor, t: float, t_next: float, solver: Solver
    ) -> Tensor:
        """By the chosen solver."""
        assert solver.correct is not None
        return solver.correct(self.schedule, x, clean, clean_next, t, t_next)

    def extra_repr(self) -> str:
        """For printing the module."""
        return f"{type(self.schedule).__name__}, predicts {self.prediction}"


def time_tensor(t: float, num: int, device: torch.device | str = "cpu") -> Tensor:
    """One time for a whole batch, ``[num]`` float64."""
    return torch.full((num,), t, dtype=torch.float64, device=device)
