"""The progress of a training by Lightning: a bar of optimizer steps on a terminal, elsewhere lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar, RichProgressBar, Timer

from unidiff_core.foundation.progress import Lines, has_terminal


class StepProgressBar(RichProgressBar):
    """Optimizer steps of the whole run, those before a resumption included; epochs do not show."""

    @property
    def total_train_batches(self) -> int | float:
        """Steps of the run, by `max_steps` or `max_epochs`."""
        return self.trainer.estimated_stepping_batches

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One bar for all epochs."""
        if self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step in place of the batch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss, without the number of the log folder."""
        return _without_version(super().get_metrics(trainer, pl_module))

    def _get_train_description(self, current_epoch: int) -> str:
        return "steps"


class StepLines(ProgressBar):
    """Lines for a log: steps done, loss, samples a second, time left by the steps and by `max_time`."""

    def __init__(self) -> None:
        super().__init__()
        self._is_on = True
        self._lines = Lines("train")

    def disable(self) -> None:
        """Say nothing, as on every process but the first."""
        self._is_on = False

    def enable(self) -> None:
        """Say it again."""
        self._is_on = True

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss, without the number of the log folder."""
        return _without_version(super().get_metrics(trainer, pl_module))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here: a resumed run has done steps before."""
        self._lines = Lines("train", trainer.estimated_stepping_batches, "steps", trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A line, if it is due."""
        if self._is_on and self._lines.is_due(trainer.global_step):
            size = getattr(getattr(trainer, "datamodule", None), "batch_size", 0)
            self._lines.write(trainer.global_step, *self._metrics(trainer), scale=size, most=_time_left(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Batches of the validation are counted from 0."""
        self._begin("validate", trainer.num_val_batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Batches of the test are counted from 0."""
        self._begin("test", trainer.num_test_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """A line, if it is due; a training's validation has one only where it is long."""
        self._step(is_part=trainer.state.fn == "fit")

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """A line, if it is due."""
        self._step(is_part=False)

    def _begin(self, title: str, batches: Sequence[int | float]) -> None:
        self._batches, self._held = 0, Lines(title, sum(batches), "batches")

    def _step(self, *, is_part: bool) -> None:
        self._batches += 1
        if self._is_on and not (is_part and self._batches >= self._held.total):
            self._held(self._batches, scale=0)

    def _metrics(self, trainer: pl.Trainer) -> list[str]:
        rows = self.get_metrics(trainer, trainer.lightning_module)
        return [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in rows.items()
        ]


def with_progress(callbacks: Sequence[Callback], is_wanted: bool | None) -> list[Callback]:
    """Callbacks with one that shows the progress: the user's, or by where the output goes; none if none is wanted."""
    if is_wanted is False or any(isinstance(row, ProgressBar) for row in callbacks):
        return [*callbacks]
    return [*callbacks, StepProgressBar() if has_terminal() else StepLines()]


def _without_version(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "v_num"}


def _time_left(trainer: pl.Trainer) -> float:
    """Seconds until `max_time`; infinite if there is none."""
    left = [row.time_remaining() for row in trainer.callbacks if isinstance(row, Timer)]  # type: ignore[attr-defined]
    return min([seconds for seconds in left if seconds is not None], default=math.inf)
