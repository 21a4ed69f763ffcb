"""The reverse steps of cold diffusion, and every other solver of Gaussian noise, coordinate by coordinate.

With x_t = F_t(x_0) + sigma·ε, F linear and diagonal in a basis, each coordinate is a Gaussian process under a schedule
of its own, and the steps of cold diffusion are members of the Gaussian family (`family`): *naive*, F_s of the clean
estimate, is its step with all noise fresh; *improved*, which keeps what F_t leaves unexplained in the state, is its
step with none.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unidiff_core.foundation.randomness import Draws
from unidiff_core.process.gaussian.schedule import NoiseSchedule
from unidiff_core.process.gaussian.solver import ScheduleSolver, X, alpha_sigma, ancestral
from unidiff_core.process.process import History, Past, Step


class ColdSolver(ScheduleSolver, ABC):
    """A reverse step of the cold process alone."""


class Naive(ColdSolver):
    """x_s = F_s(x̂_0) + sigma_s·ε: Algorithm 1 of cold diffusion (Bansal et al. 2022, https://arxiv.org/abs/2208.09392)."""

    registered_name = "naive"

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """See the class."""
        return ancestral(schedule, x, clean, step, eta="max")


class Improved(ColdSolver):
    """x_s = F_s(x̂_0) + (sigma_s/sigma_t)·(x_t − F_t(x̂_0)): Algorithm 2 of cold diffusion, where the ratio is 1.

    What is wrong with the clean estimate in the same way before and after the step cancels. Without noise at any time
    the ratio is 1; it is 0 in the last step of a process with noise.
    """

    registered_name = "improved"

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """See the class."""
        (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(schedule, step.t), alpha_sigma(schedule, step.t_next)
        if sigma == sigma_next == 0:
            return alpha_next * clean + (x - alpha * clean)
        return ancestral(schedule, x, clean, step, eta=0.0)


@dataclass(frozen=True)
class PartOfDraws(Draws):
    """The draws of some coordinates of a stream: those that the whole stream would have there."""

    shape: tuple[int, ...] = ()
    places: Tensor | None = None

    def _draw(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        assert self.places is not None
        whole = super()._draw(kind, self.shape)
        return whole.flatten(1)[:, self.places].reshape(len(whole), *shape)


Solve = Callable[[NoiseSchedule, Sequence[Tensor], Step], Tensor]
"""(schedule, tensors ``[b, n]``, step) → ``[b, n]``."""


def by_coordinate(
    solve: Solve,
    parts: Sequence[tuple[NoiseSchedule, Tensor]],
    tensors: Sequence[Tensor],
    past: Sequence[Past],
    step: Step,
) -> Tensor:
    """A step of each part of the coordinates under its own schedule.

    Args:
        solve: (schedule, the tensors' part ``[b, n]``, step) → ``[b, n]``.
        parts: a schedule, and which coordinates are under it, as indices into the flattened stream.
        tensors: ``[b, *shape]``, in coordinates: the state, clean estimates.
        past: earlier clean estimates, in coordinates.
        step: of the whole stream.
    """
    shape = tuple(tensors[0].shape[1:])
    flat, earlier = [x.flatten(1) for x in tensors], [(row.t, row.clean.flatten(1)) for row in past]
    moved = torch.empty_like(flat[0])
    memories = step.history.memory.setdefault("parts", [{} for _ in parts])
    for (schedule, places), memory in zip(parts, memories, strict=True):
        history = History(step.history.times, [Past(t, clean[:, places]) for t, clean in earlier], memory)
        draws = step.draws
        if draws is not None:
            draws = PartOfDraws(
                draws.seed, draws.purpose, draws.stream, draws.step, draws.index, draws._drawn, shape, places
            )
        part = solve(schedule, [x[:, places] for x in flat], replace(step, draws=draws, history=history))
        moved[:, places] = part.to(moved.dtype)
    return moved.reshape(len(moved), *shape)
