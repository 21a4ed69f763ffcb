"""Solvers: the Gaussian process's reverse steps, stateless, on a grid that is not theirs, in either direction.

In clean estimates D(x, t) = E[x_0 | x_t] the probability-flow ODE is, with λ = log(alpha/sigma),

    x' = (sigma'/sigma)·x + alpha'·∫ exp(λ_u − λ')·D(x_u, u) dλ_u        (DPM-Solver++, Lu et al. 2022, Eq. 8)

and a solver is a choice of D inside the integral: constant (DDIM), a polynomial through past estimates (2M, 3M), or
the line through the estimates at both ends (Heun). λ is infinite at t = 0, and at T under a schedule that forgets all:
steps that touch such an end are written without it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from unidiff_core.schedule import NoiseSchedule


class Past(NamedTuple):
    """An earlier clean estimate, and the time it was made at."""

    t: float
    clean: Tensor


Step = Callable[[NoiseSchedule, Tensor, Tensor, float, float, Tensor, Sequence[Past]], Tensor]
"""(schedule, x, clean, t, t_next, noise, history) → x at t_next. History is oldest first, without the present."""

Correct = Callable[[NoiseSchedule, Tensor, Tensor, Tensor, float, float], Tensor]
"""(schedule, x, clean, clean_next, t, t_next) → x at t_next, better."""


@dataclass(frozen=True)
class Solver:
    """A named reverse step.

    `history` is how many past estimates it uses; `correct`, if there is one, costs a second evaluation a step, at
    t_next; a solver that `is_random` needs noise.
    """

    step: Step
    history: int = 0
    correct: Correct | None = None
    is_random: bool = False

    @property
    def evaluations(self) -> int:
        """Network evaluations a step, before guidance."""
        return 1 if self.correct is None else 2


def _alpha_sigma(schedule: NoiseSchedule, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return schedule.alpha(time).item(), schedule.sigma(time).item()


def _log_snr(schedule: NoiseSchedule, t: float) -> float:
    alpha, sigma = _alpha_sigma(schedule, t)
    if alpha == 0 or sigma == 0:
        return -math.inf if alpha == 0 else math.inf
    return math.log(alpha) - math.log(sigma)


def ancestral(
    schedule: NoiseSchedule,
    x: Tensor,
    clean: Tensor,
    t: float,
    t_next: float,
    noise: Tensor,
    history: Sequence[Past],
    *,
    eta: float,
) -> Tensor:
    """The DDIM–DDPM family (Song et al. 2020, Eqs. 12 and 16): η = 0 is DDIM, η = 1 the ancestral DDPM step.

    Going up in time there is only η = 0; a larger one is not used there.
    """
    (alpha, sigma), (alpha_next, sigma_next) = _alpha_sigma(schedule, t), _alpha_sigma(schedule, t_next)
    # At sigma = 0 the state says nothing about its noise, whose expectation vanishes there with sigma.
    direction = (x - alpha * clean) / sigma if sigma > 0 else torch.zeros_like(x)
    if eta == 0 or t_next > t:
        return alpha_next * clean + sigma_next * direction
    fresh = eta * sigma_next * math.sqrt(max(0.0, 1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2))
    return alpha_next * clean + math.sqrt(max(0.0, sigma_next**2 - fresh**2)) * direction + fresh * noise


def _usable(schedule: NoiseSchedule, history: Sequence[Past], num: int) -> list[tuple[float, Tensor]]:
    """The last `num` estimates as (λ, clean), latest first; one made where λ is infinite tells no slope."""
    rows = ((_log_snr(schedule, past.t), past.clean) for past in reversed(history[-num:]))
    return list(itertools.takewhile(lambda row: math.isfinite(row[0]), rows))


def multistep(
    schedule: NoiseSchedule,
    x: Tensor,
    clean: Tensor,
    t: float,
    t_next: float,
    noise: Tensor,
    history: Sequence[Past],
    *,
    order: int,
) -> Tensor:
    """DPM-Solver++ 2M and 3M (Lu et al. 2022, https://arxiv.org/abs/2211.01095, Algorithm 2 and Appendix).

    The first steps after a start use what history there is; a step from or to an infinite λ is first order. The
    quadratic term of 3M is twice that of the published code, whose order we measure to be 2 (docs/log.md).
    """
    here, there = _log_snr(schedule, t), _log_snr(schedule, t_next)
    past = _usable(schedule, history, order - 1) if math.isfinite(here) and math.isfinite(there) else []
    if not past:
        return ancestral(schedule, x, clean, t, t_next, noise, history, eta=0.0)
    (_, sigma), (alpha_next, sigma_next) = _alpha_sigma(schedule, t), _alpha_sigma(schedule, t_next)
    h = there - here
    decay = -math.expm1(-h)  # 1 − exp(−h)
    ratio0 = (here - past[0][0]) / h
    slope = (clean - past[0][1]) / ratio0
    linear = sigma_next / sigma * x + alpha_next * decay * clean
    if len(past) == 1:
        return linear + 0.5 * alpha_next * decay * slope
    ratio1 = (past[0][0] - past[1][0]) / h
    slope_past = (past[0][1] - past[1][1]) / ratio1
    bend = (slope - slope_past) / (ratio0 + ratio1)
    slope = slope + ratio0 * bend
    return linear + alpha_next * (1 - decay / h) * slope + alpha_next * (1 - 2 / h + 2 * decay / h**2) * bend


def heun_correct(
    schedule: NoiseSchedule, x: Tensor, clean: Tensor, clean_next: Tensor, t: float, t_next: float
) -> Tensor:
    """The line through the estimates at both ends, integrated exactly in λ: Heun's method for the equation above.

    At an infinite λ the same trapezoid is taken in the variable that stays finite there.
    """
    (alpha, sigma), (alpha_next, sigma_next) = _alpha_sigma(schedule, t), _alpha_sigma(schedule, t_next)
    if sigma == 0:  # in the noise estimate, which is 0 here
        level = alpha_next / alpha * x
        return level + 0.5 * (level - alpha_next * clean_next)
    if sigma_next == 0:
        return alpha_next * clean_next
    if alpha == 0 or alpha_next == 0:  # in alpha/sigma, which is 0 here
        gap = alpha_next - alpha * sigma_next / sigma
        return sigma_next / sigma * x + 0.5 * gap * (clean + clean_next)
    h = _log_snr(schedule, t_next) - _log_snr(schedule, t)
    decay = -math.expm1(-h)
    change = (1 - decay / h) * (clean_next - clean)
    return sigma_next / sigma * x + alpha_next * (decay * clean + change)


_ddim = partial(ancestral, eta=0.0)

SOLVERS: dict[str, Solver] = {
    "ddim": Solver(_ddim),
    "ddpm": Solver(partial(ancestral, eta=1.0), is_random=True),
    "dpmpp_2m": Solver(partial(multistep, order=2), history=1),
    "dpmpp_3m": Solver(partial(multistep, order=3), history=2),
    "heun": Solver(_ddim, correct=heun_correct),
}


def find_solver(name: str | Solver) -> Solver:
    """A solver by name, or itself.

    Raises:
        ValueError: if the name is not known; lists those that are.
    """
    if isinstance(name, Solver):
        return name
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; known: {', '.join(SOLVERS)}")
    return SOLVERS[name]
