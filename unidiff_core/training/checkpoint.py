"""What a training leaves behind: the model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from unidiff_core.serialization.model_directory import step_of
from unidiff_core.training.ema import EMA


class ModelDirectory(pl.Callback):
    """Writes the model directory when training ends, and at every validation on the way.

    It records the step that it is of. A finished run whose directory is behind (it was killed in between) writes it
    again. A `fast_dev_run` writes nothing.

    Args:
        folder: the directory.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def _save(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        average = next((row.average for row in trainer.callbacks if isinstance(row, EMA)), None)  # type: ignore[attr-defined]
        training = {"step": trainer.global_step, "checkpoint": _checkpoint_of(trainer)}
        module.save_pretrained(self.folder, average=average, training=training)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what there is, once training has begun."""
        if trainer.state.fn == "fit" and trainer.global_step:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the result."""
        self._save(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the result of a run that was finished before, if the directory is not of it."""
        if trainer.strategy.broadcast(step_of(self.folder)) < trainer.global_step:
            self._save(trainer, pl_module)


def _checkpoint_of(trainer: pl.Trainer) -> str | None:
    """The name of the checkpoint of the present step: the one that was saved, or else the one gone on from."""
    step = trainer.global_step
    callbacks = [row for row in trainer.checkpoint_callbacks if isinstance(row, ModelCheckpoint)]
    saved = [row.last_model_path or row.best_model_path for row in callbacks if row._last_global_step_saved == step]
    path = next(iter(saved), "") or (trainer.ckpt_path or "")
    return Path(path).name or None
