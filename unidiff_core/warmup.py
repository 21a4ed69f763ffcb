"""The learning-rate schedule: linear warm-up, then constant, or a cosine down to zero."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Warmup(LambdaLR):
    """Learning rate by optimizer step.

    Args:
        optimizer: whose rate it scales.
        steps: of linear warm-up from zero.
        decay_until: step at which a half cosine reaches zero; constant after the warm-up if None.
    """

    def __init__(self, optimizer: Optimizer, steps: int = 5000, decay_until: int | None = None) -> None:
        self.steps = steps
        self.decay_until = decay_until
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, self.steps))
        if self.decay_until is None:
            return rise
        way = min(1.0, max(0.0, (step - self.steps) / max(1, self.decay_until - self.steps)))
        return rise * 0.5 * (1 + math.cos(math.pi * way))
