"""What a training logs besides its loss: by stretch of time, the gradient's norm, the rate, and where the time goes."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from unidiff_core.foundation.time import T


class LogTraining(pl.Callback):
    """Logs, at the steps at which the trainer's loggers are told anything (``trainer.log_every_n_steps``):

    * ``train/<modality>.<stream>/0.00-0.25`` and so on: each stream's mean loss by stretch of its own time, over all
      samples since the last logged step; missing where none fell into the stretch;
    * ``train/gradient_norm``, before it is clipped;
    * ``train/learning_rate``;
    * ``train/samples_per_second``, ``train/seconds_per_step``, and ``train/seconds_for_data``, the part of a step in
      which the data was waited for: means since the last logged step, validations left out.

    Args:
        bands: stretches of time.
    """

    def __init__(self, bands: int = 4) -> None:
        if bands < 1:
            raise ValueError(f"bands is at least 1, not {bands}")
        self.bands = bands
        self._sums: dict[str, Tensor] = {}
        self._norm: Tensor | None = None
        self._began = self._paused = self._waited = 0.0
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin to watch the losses."""
        pl_module.objective.watchers.append(self._add)
        self._begin(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Watch no more."""
        pl_module.objective.watchers.remove(self._add)

    @torch.no_grad()
    def _add(self, key: str, error: Tensor, t: Tensor, there: Tensor) -> None:
        """Take in one stream's errors ``[b, ...]`` at times ``[b]``, of the samples that are `there`."""
        if key not in self._sums:
            self._sums[key] = torch.zeros(self.bands, 2, dtype=torch.float32, device=error.device)
        band = (t / T * self.bands).long().clamp(max=self.bands - 1)
        rows = torch.stack([error.flatten(1).float().mean(1) * there, there.float()], dim=1)
        self._sums[key].index_add_(0, band, rows)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """What comes now is no training."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Go on."""
        self._began += time.monotonic() - self._paused

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Take the gradient's norm, if it is to be logged."""
        if _is_due(trainer):
            parameters = (value for group in optimizer.param_groups for value in group["params"])
            norm = torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])
            self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Log, at the end of a step at which that is due."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.fit_loop._should_accumulate() or not every or trainer.global_step % every:
            return
        rows = self._by_band(trainer) | self._seconds(trainer)
        rows["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self._norm is not None:
            rows["gradient_norm"] = float(self._norm)
        pl_module.log_dict({f"train/{name}": value for name, value in rows.items()})
        self._norm = None

    def _by_band(self, trainer: pl.Trainer) -> dict[str, float]:
        """Mean losses over all processes since the last call."""
        rows: dict[str, float] = {}
        for key, sums in self._sums.items():
            whole = trainer.strategy.reduce(sums, None, "sum")
            for i, (error, count) in enumerate(whole.tolist()):
                if count:
                    rows[f"{key}/{i / self.bands:.2f}-{(i + 1) / self.bands:.2f}"] = error / count
            sums.zero_()
        return rows

    def _begin(self, trainer: pl.Trainer) -> None:
        self._began, self._first, self._waited = time.monotonic(), trainer.global_step, _waited(trainer)

    def _seconds(self, trainer: pl.Trainer) -> dict[str, float]:
        """Means over the steps since the last call."""
        steps = trainer.global_step - self._first
        whole, waited = time.monotonic() - self._began, _waited(trainer) - self._waited
        self._begin(trainer)
        size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        rows = {"seconds_per_step": whole / steps, "seconds_for_data": waited / steps}
        return rows | ({"samples_per_second": size * steps / whole} if size else {})


def _waited(trainer: pl.Trainer) -> float:
    """Seconds that this process waited for batches, if the loader counts them."""
    return float(getattr(trainer.train_dataloader, "waited", 0.0))


def _is_due(trainer: pl.Trainer) -> bool:
    """Whether the step that is being made is one at which loggers are told."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and (trainer.global_step + 1) % every == 0
