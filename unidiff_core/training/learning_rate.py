"""The learning rate: linear warm-up, then constant, a cosine down to zero, or steps down where the loss stalls."""

from __future__ import annotations

import math

import pytorch_lightning as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Warmup(LambdaLR):
    """The learning rate rises linearly over `steps`, then stays, or falls to zero by a half cosine at `decay_until`.

    Args:
        optimizer: whose rate it scales.
        steps: of linear warm-up from zero.
        decay_until: step at which a half cosine reaches zero; constant after the warm-up if None.
    """

    def __init__(self, optimizer: Optimizer, steps: int = 5000, decay_until: int | None = None) -> None:
        self.steps = steps
        self.decay_until = decay_until
        self.reduction = 1.0
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        rise = self.reduction * min(1.0, (step + 1) / max(1, self.steps))
        if self.decay_until is None:
            return rise
        way = min(1.0, max(0.0, (step - self.steps) / max(1, self.decay_until - self.steps)))
        return rise * 0.5 * (1 + math.cos(math.pi * way))


class Plateau(pl.Callback):
    """Lowers the rate of a `Warmup` where a validation metric stalls: the paper's division by 10 (section 5.1).

    Args:
        factor: by which the rate is multiplied.
        patience: validations without a better value before it is.
        threshold: by what share of the best value a better one is better at least.
        monitor: the metric, lower is better.
    """

    def __init__(
        self, factor: float = 0.1, patience: int = 5, threshold: float = 1e-3, monitor: str = "validation/loss"
    ) -> None:
        if not 0 < factor < 1 or patience < 1:
            raise ValueError(f"a plateau needs 0 < factor < 1 and a patience of at least 1, not {factor=}, {patience=}")
        self.factor, self.patience, self.threshold, self.monitor = factor, patience, threshold, monitor
        self.best = math.inf
        self.num_stalled = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the best value so far.

        Raises:
            ValueError: if the metric is not there, or the schedule is not a `Warmup`.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(f"Plateau watches {self.monitor!r}, but there are {', '.join(trainer.callback_metrics)}")
        value = float(trainer.callback_metrics[self.monitor])
        is_better = value < self.best * (1 - self.threshold)
        self.best, self.num_stalled = (value, 0) if is_better else (self.best, self.num_stalled + 1)
        if self.num_stalled >= self.patience:
            self.num_stalled = 0
            for row in trainer.lr_scheduler_configs:
                if not isinstance(row.scheduler, Warmup):
                    raise ValueError(f"Plateau lowers the rate of a Warmup, not of a {type(row.scheduler).__name__}")
                row.scheduler.reduction *= self.factor

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"best": self.best, "num_stalled": self.num_stalled}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """From the checkpoint."""
        self.best, self.num_stalled = state_dict["best"], int(state_dict["num_stalled"])
