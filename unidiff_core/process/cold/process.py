"""Cold diffusion: the clean value is degraded, and noise is added that may be none."""

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
from unidiff_core.process.cold.degradation import Blur, Degradation, groups
from unidiff_core.process.cold.solver import Solve, by_coordinate
from unidiff_core.process.gaussian.schedule import NoiseSchedule
from unidiff_core.process.gaussian.solver import ScheduleSolver
from unidiff_core.process.process import Corruption, ForwardProcess, Past, Step

Error = Literal["squared", "absolute"]


class Cold(ForwardProcess):
    """``x_t = fade·F_t(x_0) + sigma·ε``: a degradation F, and noise with sigma = noise·t/T.

    With ``noise=1, fades=True`` (blurring diffusion, Hoogeboom and Salimans 2022, https://arxiv.org/abs/2209.05557, for
    a blur) fade is 1 − t/T, nothing of the data is left at T, and every query is as exact as with Gaussian noise. With
    ``noise=0, fades=False`` it is cold diffusion (Bansal et al. 2022, https://arxiv.org/abs/2208.09392). Then what F_T
    leaves of the data is still there at T, so that to ignore the modality is no marginal, and one start gives one
    sample. What F_T leaves is drawn, at the start of a sample, as if the coordinates of the data were standard normal.

    The network predicts x_0.

    Args:
        degradation: F; a blur if not given.
        noise: standard deviation of the noise at T.
        fades: whether the degraded value fades to 0 at T.
        error: of the loss: ``squared``, whose estimates are means; or ``absolute``, whose estimates are medians, with
            which there is no guidance.

    Raises:
        ValueError: if noise is below 0, or the error is neither.
    """

    solvers = ScheduleSolver
    default_solver = "improved"

    def __init__(
        self,
        degradation: Degradation | None = None,
        noise: float = 1.0,
        fades: bool = True,
        error: Error = "squared",
    ) -> None:
        super().__init__()
        if not 0 <= noise < float("inf"):
            raise ValueError(f"the noise at T is a standard deviation, 0 (none) or above, not {noise}")
        if error not in get_args(Error):
            raise ValueError(f"unknown error {error!r}; known: {', '.join(get_args(Error))}")
        self.degradation = degradation or Blur()
        self.noise, self.fades, self.error = noise, fades, error
        self.estimate = "mean" if error == "squared" else "median"
        self._parts: dict[tuple[int, ...], list[tuple[NoiseSchedule, Tensor]]] = {}

    def seen(self, stream: Stream) -> Stream:
        """The stream itself, of numbers on a grid.

        Raises:
            ValueError: if the degradation does not go with it.
        """
        self.degradation.check(stream)
        return stream

    @property
    def leak(self) -> float:
        """Bits that x_T tells of a coordinate that F keeps: of a standard normal one, ½·log2(1 + 1/noise²)."""
        if self.fades:
            return 0.0
        return 0.5 * math.log2(1 + self.noise**-2) if self.noise else math.inf

    # --- its moments ---

    def moments(self, t: Float[Tensor, "*times"], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(alpha ``[*times, *shape]``, sigma ``[*times]``) of the coordinates at times in steps, float64.

        In coordinates, ``coordinates(x_t) = alpha · coordinates(x_0) + sigma·ε``.
        """
        levels = self.degradation.levels(tuple(shape)).to(t.device)
        time = t.double().reshape(*t.shape, *[1] * len(shape))
        return self._alpha(levels, time), self.noise * t.double() / T

    def coordinates(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """The basis in which x_t is x_0 times numbers, with noise: the degradation's own."""
        return self.degradation.coordinates(x)

    def _alpha(self, level: Tensor, t: Tensor) -> Tensor:
        kept = self.degradation.kept(level, t)
        return (1 - t / T) * kept if self.fades else kept

    def corrupt(self, clean: Float[Tensor, "b *shape"], t: Float[Tensor, " b"], draws: Draws) -> Corruption:
        """Degraded, and with noise."""
        noise = draws.normal(clean.shape[1:]).to(clean.dtype)
        alpha, sigma = self.moments(t, clean.shape[1:])
        degraded = self.degradation.data(alpha.to(clean.dtype) * self.degradation.coordinates(clean))
        corrupted = degraded + over(sigma.to(clean.dtype), clean) * noise
        return Corruption(torch.where(over(t == 0, clean), clean, corrupted), clean)

    def loss(
        self, prediction: Float[Tensor, "b *shape"], corruption: Corruption, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Squared or absolute error."""
        error = prediction - corruption.target
        return error.square() if self.error == "squared" else error.abs()

    # --- sampling ---

    def start(self, shape: Sequence[int], draws: Draws) -> Float[Tensor, "b *shape"]:
        """Noise, and what F_T would leave of standard normal coordinates."""
        end = torch.tensor(float(T), dtype=torch.float64, device=draws.index.device)
        alpha, sigma = self.moments(end, shape)
        noise = draws.normal(shape)
        return self.degradation.data(noise * (alpha.square() + sigma.square()).sqrt().to(noise.dtype))

    def clean(
        self, corrupted: Float[Tensor, "b *shape"], prediction: Float[Tensor, "b *shape"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """The prediction; what is clean already is known."""
        return torch.where(over(t == 0, corrupted), corrupted, prediction)

    def step(
        self, x: Float[Tensor, "b *shape"], clean: Float[Tensor, "b *shape"], step: Step, solver: ScheduleSolver
    ) -> Float[Tensor, "b *shape"]:
        """By the chosen solver, coordinate by coordinate."""
        return self._solved(
            lambda schedule, rows, part: solver.step(schedule, rows[0], rows[1], part), [x, clean], step
        )

    def knows(self, t: float) -> bool:
        """At 0."""
        return t == 0

    def corrects(self, step: Step, solver: ScheduleSolver) -> bool:
        """If there is noise where the step ends, and the solver does or the step begins clean."""
        return step.t_next > 0 and self.noise > 0 and (solver.corrects or step.t == 0)

    def correct(
        self,
        x: Float[Tensor, "b *shape"],
        x_next: Float[Tensor, "b *shape"],
        clean: Float[Tensor, "b *shape"],
        clean_next: Float[Tensor, "b *shape"],
        step: Step,
        solver: ScheduleSolver,
    ) -> Float[Tensor, "b *shape"]:
        """By the chosen solver, coordinate by coordinate."""
        return self._solved(
            lambda schedule, rows, part: solver.correct(schedule, rows[0], rows[1], rows[2], rows[3], part),
            [x, x_next, clean, clean_next],
            step,
        )

    def _solved(self, solve: Solve, tensors: Sequence[Tensor], step: Step) -> Tensor:
        rows = [self.degradation.coordinates(x) for x in tensors]
        past = [Past(row.t, self.degradation.coordinates(row.clean)) for row in step.history.past]
        shape = tuple(tensors[0].shape[1:])
        if shape not in self._parts:  # kept: solvers look coefficients up by the schedule itself
            self._parts[shape] = [(Level(self, level), at) for level, at in groups(self.degradation.levels(shape))]
        parts = [(schedule, at.to(tensors[0].device)) for schedule, at in self._parts[shape]]
        return self.degradation.data(by_coordinate(solve, parts, rows, past, step))

    def extra_repr(self) -> str:
        """For printing the module."""
        return f"{type(self.degradation).__name__}, noise {self.noise:g}, {'fades' if self.fades else 'stays'}"


class Level(NoiseSchedule):
    """The schedule of the coordinates of one level."""

    def __init__(self, process: Cold, level: float) -> None:
        self.process, self.level = process, torch.tensor(level, dtype=torch.float64)

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the degradation keeps, faded if the process fades."""
        return self.process._alpha(self.level.to(t), t)

    def sigma(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """noise·t/T."""
        return self.process.noise * t / T
