"""An adapter: schedulers of diffusers as solvers on our grid.

A scheduler gets our times as its own: as many training steps as the grid has times, their ᾱ as its betas, one step
each, predicting the clean sample. Its state is variance-preserving or σ-scaled; ours is brought to that and back. It
never sees the ends of the path where log(alpha/sigma) is infinite: a step from T under a schedule that forgets all, and
the last step to 0, are first order here as in our own solvers.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch

from unidiff_core.process.gaussian.schedule import NoiseSchedule
from unidiff_core.process.gaussian.solver import GaussianSolver, X, alpha_sigma, ancestral
from unidiff_core.process.process import Step

VERIFIED = {
    "DDIMScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "dpmsolver++"},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
}
"""Schedulers that the tests run on the exact oracle → their own options."""
SIGMA_SCALED = ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
"""Those whose state is clean + σ·noise."""


class DiffusersSolver(GaussianSolver):
    """A scheduler of diffusers; the name is ``DiffusersSolver(UniPCMultistepScheduler)``. Only for paths that go down.

    Args:
        scheduler_class: it, or its name in diffusers; of those in `VERIFIED`.
        order: of schedulers that have several, 2 if not given.

    Raises:
        ValueError: if it is not verified; lists those that are.
    """

    registered_name = "DiffusersSolver"

    def __init__(self, scheduler_class: str | type, order: int | None = None) -> None:
        if isinstance(scheduler_class, type):
            scheduler_class = scheduler_class.__name__
        if scheduler_class not in VERIFIED:
            raise ValueError(
                f"the scheduler {scheduler_class!r} of diffusers is not verified on our time grid; verified: "
                + ", ".join(VERIFIED)
            )
        self.scheduler_class, self.order = scheduler_class, order
        self.corrects = scheduler_class == "HeunDiscreteScheduler"

    def step(self, schedule: NoiseSchedule, x: X, clean: X, step: Step) -> X:
        """The scheduler's step; first order where log(alpha/sigma) is infinite.

        Raises:
            ValueError: if the path goes up: the schedulers only go down.
        """
        if step.t_next > step.t:
            raise ValueError(
                f"{self.scheduler_class} of diffusers only goes down in time, and this path goes up; take ddim, "
                "dpmpp_2m, dpmpp_3m or heun"
            )
        if not (_is_inside(schedule, step.t) and _is_inside(schedule, step.t_next)):
            return ancestral(schedule, x, clean, step, eta=0.0)
        return self._call(schedule, x, clean, step)

    def correct(self, schedule: NoiseSchedule, x: X, x_next: X, clean: X, clean_next: X, step: Step) -> X:
        """The second half of a step of Heun's method."""
        if not (_is_inside(schedule, step.t) and _is_inside(schedule, step.t_next)):
            return x_next
        return self._call(schedule, x_next, clean_next, step, is_second=True)

    def _call(self, schedule: NoiseSchedule, x: X, clean: X, step: Step, *, is_second: bool = False) -> X:
        memory = step.history.memory
        if not memory:  # the first step of this stretch of the path
            times = [t for t in step.history.times if _is_inside(schedule, t)]
            memory |= {"scheduler": self._make(schedule, times), "calls": 0}
        scheduler, calls = memory["scheduler"], memory["calls"]
        memory["calls"] += 1
        state = x * self._scale(schedule, step.t_next if is_second else step.t)
        moved = scheduler.step(clean, scheduler.timesteps[calls], state, return_dict=False)[0]
        return (moved / self._scale(schedule, step.t_next)).to(x.dtype)

    def _scale(self, schedule: NoiseSchedule, t: float) -> float:
        """From our state to the scheduler's: to alpha² + sigma² = 1, or to alpha = 1."""
        alpha, sigma = alpha_sigma(schedule, t)
        return 1 / alpha if self.scheduler_class in SIGMA_SCALED else 1 / math.hypot(alpha, sigma)

    def _make(self, schedule: NoiseSchedule, times: list[float]) -> Any:
        import diffusers

        cls = getattr(diffusers, self.scheduler_class)
        pairs = np.array([alpha_sigma(schedule, t) for t in reversed(times)])  # least noise first, as theirs
        alpha_bar = pairs[:, 0] ** 2 / (pairs**2).sum(1)
        betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
        known = inspect.signature(cls).parameters
        is_spaced = "timestep_spacing" in known
        wanted: dict[str, Any] = {
            "num_train_timesteps": len(times),
            "trained_betas": betas.tolist(),
            "timestep_spacing": "trailing",
            "prediction_type": "sample",
            "clip_sample": False,
            "thresholding": False,
            # One without spacing has a step less than it has times, and ends at the last of them.
            "lower_order_final": not is_spaced and len(times) % 2 == 0,
            "final_sigmas_type": "zero" if is_spaced else "sigma_min",
            **VERIFIED[self.scheduler_class],
        }
        if self.order is not None:
            wanted["solver_order"] = self.order
        if self.order is not None and "solver_order" not in known:
            raise ValueError(f"{self.scheduler_class} has one order; leave `order` out")
        scheduler = cls(**{name: value for name, value in wanted.items() if name in known})
        # In double precision: their cumulative product in float32 is worth five digits.
        scheduler.alphas_cumprod = torch.from_numpy(alpha_bar)
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True  # the state is brought to its scale by `_scale`
        scheduler.set_timesteps(len(times) if is_spaced else len(times) - 1)
        return scheduler


def _is_inside(schedule: NoiseSchedule, t: float) -> bool:
    alpha, sigma = alpha_sigma(schedule, t)
    return alpha > 0 and sigma > 0
