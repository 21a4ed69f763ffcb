"""Samples that could not be read, counted over all processes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class CountLost(pl.Callback):
    """Adds up, at the end of each step and each validation, what the processes could not read of the data.

    A budget of losses is the run's, not a process's: beyond it all processes stop, after the same step. One number is
    exchanged in a step, and none where the data's policy is to stop at the first sample. `UniDiffuser` brings it along.
    """

    def _count(self, trainer: pl.Trainer) -> None:
        count = getattr(getattr(trainer, "datamodule", None), "count_lost", None)
        if count:
            count()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Count, at the end of a whole step.

        Raises:
            LossError: on all processes, if more is lost than may be.
        """
        if not trainer.fit_loop._should_accumulate():
            self._count(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count."""
        self._count(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count."""
        self._count(trainer)
