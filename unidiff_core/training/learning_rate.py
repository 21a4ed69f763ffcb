"""The learning rate: linear warm-up, then constant, a cosine down to zero, or steps down where the loss stalls."""

from __future__ import annotations

import math

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unidiff_core.foundation.argument import check_amounts, check_sizes, check_whole


class Warmup(LambdaLR):
    """The learning rate rises linearly over `steps`, then stays, or falls to zero by a half cosine at `decay_until`.

    Args:
        optimizer: whose rate it scales.
        steps: of linear warm-up from zero.
        decay_until: step at which a half cosine reaches zero; constant after the warm-up if None.
        decay_in_time: whether the cosine reaches zero with the trainer's ``max_time``, if that comes first.
            `DecayInTime` tells it how much of that is gone.
    """

    def __init__(
        self, optimizer: Optimizer, steps: int = 5000, decay_until: int | None = None, decay_in_time: bool = False
    ) -> None:
        check_sizes(decay_until=decay_until)
        check_whole("steps", steps, at_least=0)
        self.steps = steps
        self.decay_until = decay_until
        self.decay_in_time = decay_in_time
        self.reduction = 1.0
        self.time_gone = 0.0
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        rise = self.reduction * min(1.0, (step + 1) / max(1, self.steps))
        way = self.time_gone if self.decay_in_time else 0.0
        if self.decay_until is not None:
            way = max(way, (step - self.steps) / max(1, self.decay_until - self.steps))
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, way)))


class DecayInTime(pl.Callback):
    """Tells a `Warmup` with `decay_in_time` which share of ``max_time`` is gone, earlier sittings of the run included.

    The first process's clock counts, so that all have the same rate. `UniDiffuser` brings it along.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether there is one.

        Raises:
            ValueError: if there is, and no ``max_time``.
        """
        rows = [row.scheduler for row in trainer.lr_scheduler_configs]
        self._schedules = [row for row in rows if isinstance(row, Warmup) and row.decay_in_time]
        if self._schedules and _timer(trainer) is None:
            raise ValueError(
                "Warmup decays in time, but trainer.max_time is not set; set it, or give decay_until alone"
            )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, i: int) -> None:
        """Count the time, for the rate of the next step."""
        timer = _timer(trainer)
        if not self._schedules or timer is None:
            return
        elapsed = timer.time_elapsed()
        left = timer.time_remaining() or 0.0
        gone = trainer.strategy.broadcast(torch.tensor(elapsed / max(1e-9, elapsed + left), dtype=torch.float64))
        for schedule in self._schedules:
            schedule.time_gone = float(gone)


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
        check_amounts(threshold=threshold)
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


def is_time_over(trainer: pl.Trainer) -> bool:
    """Whether a run has used up its ``max_time``."""
    timer = _timer(trainer)
    return timer is not None and (timer.time_remaining() or 0.0) <= 0


def undecayed(trainer: pl.Trainer) -> float:
    """Share of its peak at which the rate of a `Warmup` with `decay_until` stands; 0 where none falls by steps."""
    rows = [row.scheduler for row in trainer.lr_scheduler_configs if isinstance(row.scheduler, Warmup)]
    rows = [row for row in rows if row.decay_until is not None and not row.decay_in_time]
    return max((float(row.get_last_lr()[0] / row.base_lrs[0]) / row.reduction for row in rows), default=0.0)


def _timer(trainer: pl.Trainer) -> Timer | None:
    """What stops a run at ``max_time``."""
    timers = [row for row in trainer.callbacks if isinstance(row, Timer)]  # type: ignore[attr-defined]
    return next((row for row in timers if row.time_remaining() is not None), None)
