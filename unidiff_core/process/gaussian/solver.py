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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unidiff_core.foundation.time import T
from unidiff_core.process.gaussian.schedule import NoiseSchedule
from unidiff_core.process.process import Past, Solver, Step

X = Float[Tensor, "b *shape"]


class ScheduleSolver(Solver, ABC):
    """A reverse step under a noise schedule: what the Gaussian family's solvers and cold diffusion's have in common."""

    @abstractmethod
    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """The state at `step.t_next`, from that at `step.t` and its clean estimate."""

    def correct(self, schedule: NoiseSchedule, x: X, x_next: X, clean: X, clean_next: X, step: Step) -> X:
        """A better `x_next`, from the clean estimate there; for a solver that `corrects`, and off a clean state."""
        return off_clean(schedule, x, clean_next, step.t, step.t_next) if _is_clean(schedule, step.t) else x_next


class GaussianSolver(ScheduleSolver, ABC):
    """A reverse step of the Gaussian process, and of others whose state is Gaussian, coordinate by coordinate."""


class Family(GaussianSolver):
    """The one-estimate reverse step with two numbers, ``family(0.5)`` or ``family(1, 0.2)``; see `ancestral`.

    Args:
        eta: how much of the noise is drawn anew: 0 none (DDIM), 1 as much as the forward process has (DDPM), ``max``
            all of it (`Renoise`). Going up in time there is only 0, whatever is said.
        clean_std: standard deviation that is added to the clean estimate, which as a mean lacks it; 0 none.

    Raises:
        ValueError: if one of them is no such number.
    """

    registered_name = "family"

    def __init__(self, eta: float | Literal["max"] = 0.0, clean_std: float = 0.0) -> None:
        if eta != "max" and not (_is_number(eta) and eta >= 0):
            raise ValueError(f"eta is a number from 0 (DDIM) over 1 (DDPM) up, or 'max', not {eta!r}")
        if not (_is_number(clean_std) and clean_std >= 0):
            raise ValueError(f"clean_std is a number from 0 up, not {clean_std!r}; `analytic` takes the measured ones")
        self.eta, self.clean_std = eta, clean_std

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """See `ancestral`."""
        return ancestral(schedule, x, clean, step, eta=self.eta, clean_std=self.clean_std)


class DDIM(Family):
    """DDIM: no fresh noise, deterministic, first order; the one to invert by, and the simplest to compare with."""

    registered_name = "ddim"

    def __init__(self) -> None:
        super().__init__(0.0)


class DDPM(Family):
    """The ancestral step: as much fresh noise as the forward process has."""

    registered_name = "ddpm"

    def __init__(self) -> None:
        super().__init__(1.0)


class Renoise(Family):
    """From the clean estimate to the next time by noise that is all fresh: the sampler of consistency models."""

    registered_name = "renoise"

    def __init__(self) -> None:
        super().__init__("max")


class Analytic(Family):
    """`Family` with the clean estimate's own standard deviation, as it was measured: ``analytic(1)``.

    The optimal scalar for each stream and time (Bao et al. 2022, https://arxiv.org/abs/2201.06503), from the model
    directory; the callback MeasureCleanStd measures it.

    Args:
        eta: as in `Family`.
    """

    registered_name = "analytic"

    def __init__(self, eta: float | Literal["max"] = 1.0) -> None:
        super().__init__(eta)

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """See `ancestral`.

        Raises:
            ValueError: if it was not measured for this stream.
        """
        if step.clean_std is None:
            raise ValueError(
                f"analytic needs the measured standard deviation of the clean estimate of {step.draws.stream!r}, which "
                "this model lacks: train with the callback MeasureCleanStd, call measure_clean_std, or give a number "
                "yourself, family(1, 0.2)"
            )
        return ancestral(schedule, x, clean, step, eta=self.eta, clean_std=step.clean_std)


class DPMpp2M(GaussianSolver):
    """DPM-Solver++ 2M: a line through the present and the last clean estimate; second order, one evaluation a step."""

    registered_name = "dpmpp_2m"
    num_past = 1

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """See `multistep`."""
        return multistep(schedule, x, clean, step, order=2)


class DPMpp3M(GaussianSolver):
    """DPM-Solver++ 3M: a parabola through three clean estimates; third order, one evaluation a step."""

    registered_name = "dpmpp_3m"
    num_past = 2

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """See `multistep`."""
        return multistep(schedule, x, clean, step, order=3)


class Heun(GaussianSolver):
    """Heun's method: a DDIM step, corrected by the clean estimate at its end; second order, two evaluations a step."""

    registered_name = "heun"
    corrects = True

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """DDIM's."""
        return ancestral(schedule, x, clean, step, eta=0.0)

    def correct(self, schedule: NoiseSchedule, x: X, x_next: X, clean: X, clean_next: X, step: Step) -> X:
        """See `trapezoid`."""
        return trapezoid(schedule, x, clean, clean_next, step.t, step.t_next)


@lru_cache(maxsize=256)  # a step asks for the same two times several times, once a stream
def alpha_sigma(schedule: NoiseSchedule, t: float) -> tuple[float, float]:
    """Both coefficients at one time."""
    time = torch.tensor(t, dtype=torch.float64)
    return schedule.alpha(time).item(), schedule.sigma(time).item()


def _log_snr(schedule: NoiseSchedule, t: float) -> float:
    alpha, sigma = alpha_sigma(schedule, t)
    if alpha == 0 or sigma == 0:
        return -math.inf if alpha == 0 else math.inf
    return math.log(alpha) - math.log(sigma)


def ancestral(
    schedule: NoiseSchedule,
    x: X,
    clean: X,
    step: Step,
    *,
    eta: float | Literal["max"],
    clean_std: float = 0.0,
) -> X:
    """The DDIM–DDPM family (Song et al. 2020, https://arxiv.org/abs/2010.02502, Eqs. 12 and 16), and more noise.

        x' = alpha'·x̃ + √(sigma'² − f²)·(x − alpha·x̃)/sigma + f·ε₁,    x̃ = clean + clean_std·ε₂

    f = η·(sigma'/sigma)·√(sigma² − (alpha·sigma'/alpha')²) is the fresh part of the noise. ε₁ and ε₂ are drawn as one.
    A clean estimate is a mean, so that x' without ε₂ lacks what it leaves open: the more noise is fresh, the more.
    Nothing is added in the last step, whose result is the estimate.

    Args:
        schedule: alpha and sigma.
        x: the state.
        clean: its clean estimate.
        step: from when to when.
        eta: η: 0 is DDIM, 1 the ancestral DDPM step, ``max`` the one whose f is all of sigma'. 0 where time goes up.
        clean_std: the standard deviation of ``x_0 − clean``, per element.

    Raises:
        ValueError: if η asks for more noise than there is at the next time, or noise is added on a way up.
    """
    t, t_next = step.t, step.t_next
    (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(schedule, t), alpha_sigma(schedule, t_next)
    if t_next > t and clean_std:
        raise ValueError(
            f"a clean_std adds noise to a path that goes up, from {t / T:g} to {t_next / T:g}, and what is inverted "
            "with noise does not come back; take ddim, dpmpp_2m, dpmpp_3m or heun there"
        )
    if t_next > t:
        eta = 0
    # At sigma = 0 the state says nothing about its noise, whose expectation vanishes there with sigma.
    direction = (x - alpha * clean) / sigma if sigma > 0 else torch.zeros_like(x)
    missed = clean_std if sigma_next > 0 else 0.0
    if eta == 0 and not missed:
        return alpha_next * clean + sigma_next * direction
    fresh = sigma_next if eta == "max" else eta * sigma_next * _removed(alpha, sigma, alpha_next, sigma_next)
    if eta != "max" and fresh > sigma_next * (1 + 1e-9):
        raise ValueError(
            f"eta = {eta:g} asks for noise of {fresh:.3g} at time {t_next / T:g}, where there is {sigma_next:.3g} in "
            f"all; the largest for this step is {eta * sigma_next / fresh:.3g}, or say max for all of it"
        )
    old = math.sqrt(max(0.0, sigma_next**2 - fresh**2))
    if missed:
        fresh = math.hypot(fresh, missed * (alpha_next - (alpha * old / sigma if sigma > 0 else 0.0)))
    noise = step.draws.normal(x.shape[1:]).to(x.dtype)
    return alpha_next * clean + old * direction + fresh * noise


def _removed(alpha: float, sigma: float, alpha_next: float, sigma_next: float) -> float:
    """The share of the noise that the forward process adds between the next time and this one, √ of its variance's."""
    if alpha_next == 0 or sigma == 0:  # nothing of the clean value at either time; or nothing to remove
        return float(sigma > 0)
    return math.sqrt(max(0.0, 1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _usable(schedule: NoiseSchedule, history: Sequence[Past], num: int) -> list[tuple[float, Tensor]]:
    """The last `num` estimates as (λ, clean), latest first; one made where λ is infinite tells no slope."""
    rows = ((_log_snr(schedule, past.t), past.clean) for past in reversed(history[-num:]))
    return list(itertools.takewhile(lambda row: math.isfinite(row[0]), rows))


def multistep(schedule: NoiseSchedule, x: X, clean: X, step: Step, *, order: int) -> X:
    """DPM-Solver++ 2M and 3M (Lu et al. 2022, https://arxiv.org/abs/2211.01095, Algorithm 2 and Appendix).

    The first steps after a start use what history there is; a step from or to an infinite λ is first order. The
    quadratic term of 3M is twice that of the published code, whose order we measure to be 2 (docs/log.md).
    """
    t, t_next = step.t, step.t_next
    here, there = _log_snr(schedule, t), _log_snr(schedule, t_next)
    past = _usable(schedule, step.history.past, order - 1) if math.isfinite(here) and math.isfinite(there) else []
    if not past:
        return ancestral(schedule, x, clean, step, eta=0.0)
    (_, sigma), (alpha_next, sigma_next) = alpha_sigma(schedule, t), alpha_sigma(schedule, t_next)
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


def off_clean(schedule: NoiseSchedule, x: X, clean_next: X, t: float, t_next: float) -> X:
    """A step from a clean state with the noise estimate of its end: the step down from there comes back.

    A clean state's own clean estimate says that its noise is 0, and the network that takes the last step down says
    otherwise: an inversion that goes by the first is first order in the number of steps (docs/log.md).
    """
    level = alpha_sigma(schedule, t_next)[0] / alpha_sigma(schedule, t)[0] * x
    return 2 * level - alpha_sigma(schedule, t_next)[0] * clean_next


def _is_clean(schedule: NoiseSchedule, t: float) -> bool:
    alpha, sigma = alpha_sigma(schedule, t)
    return alpha > 0 and sigma == 0


def trapezoid(schedule: NoiseSchedule, x: X, clean: X, clean_next: X, t: float, t_next: float) -> X:
    """The line through the estimates at both ends, integrated exactly in λ: Heun's method for the equation above.

    At an infinite λ the same trapezoid is taken in the variable that stays finite there; see `off_clean` for sigma = 0.
    """
    if _is_clean(schedule, t):
        return off_clean(schedule, x, clean_next, t, t_next)
    (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(schedule, t), alpha_sigma(schedule, t_next)
    if sigma_next == 0:
        return alpha_next * clean_next
    if alpha == 0 or alpha_next == 0:  # in alpha/sigma, which is 0 here
        gap = alpha_next - alpha * sigma_next / sigma
        return sigma_next / sigma * x + 0.5 * gap * (clean + clean_next)
    h = _log_snr(schedule, t_next) - _log_snr(schedule, t)
    decay = -math.expm1(-h)
    change = (1 - decay / h) * (clean_next - clean)
    return sigma_next / sigma * x + alpha_next * (decay * clean + change)
