"""What a training leaves behind: the model directory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from unidiff_core.foundation.atomic import sweep
from unidiff_core.foundation.shared import decided
from unidiff_core.serialization.model_directory import FILES, check_target, step_of
from unidiff_core.training.accumulation import Accumulation
from unidiff_core.training.ema import EMA

LAST = "last.ckpt"


class ModelDirectory(pl.Callback):
    """Writes the model directory when training ends, and at every validation on the way.

    It records the step that it is of. A finished run whose directory is behind (it was killed in between) writes it
    again. A `fast_dev_run` writes nothing.

    Args:
        folder: the directory.
    """

    def __init__(self, folder: str) -> None:
        self.folder = str(Path(folder).expanduser())

    def _save(self, trainer: pl.Trainer, module: Any, checkpoint: str | None = None) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        average = next((row.average for row in trainer.callbacks if isinstance(row, EMA)), None)  # type: ignore[attr-defined]
        training = {"step": trainer.global_step, "checkpoint": checkpoint or _saved_now(trainer)}
        module.save_pretrained(self.folder, average=average, training=training, overwrite=True)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a folder that is another program's, before the first step.

        Raises:
            ValueError: if its configuration is no model's.
        """
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_target(self.folder, overwrite=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what there is, once training has begun."""
        if trainer.state.fn == "fit" and trainer.global_step:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the result."""
        self._save(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the result of a run that was finished before, if the directory is not of it."""
        if decided(trainer, partial(step_of, self.folder)) < trainer.global_step:
            self._save(trainer, pl_module, Path(trainer.ckpt_path or "").name)
        for name in FILES:
            sweep(Path(self.folder) / name)


class KeepLast(pl.Callback):
    """Keeps the end of the run as ``last.ckpt``, whatever the interval of checkpoints: what is finished stays finished.

    For each ModelCheckpoint with `save_last`. A run that is finished may not have ended: it was killed after it had
    saved its last step, before the validation that was due then, or under another name. All that is made up for when it
    is called again. `unidiffuser fit` puts this before all other callbacks.
    """

    def __init__(self) -> None:
        self._ended = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It may be fitted again."""
        self._ended = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless it is saved."""
        for callback in _keeping_last(trainer):
            _save_last_of(trainer, callback)
        self._ended = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a run that was finished before, but not ended; leave no half of a file."""
        paths = [Path(row.dirpath or "") / LAST for row in _keeping_last(trainer)]
        steps = [decided(trainer, partial(step_in, path)) for path in paths]
        # Else it goes on from an old checkpoint, or has not begun.
        is_finished = bool(trainer.global_step) and max(steps, default=0) <= trainer.global_step
        if steps and is_finished and not self._ended:
            rows = [row for row in trainer.callbacks if isinstance(row, Accumulation)]  # type: ignore[attr-defined]
            lacks_validation = any(row.lacks_validation(trainer) for row in rows)
            if lacks_validation:
                trainer.validating = True
                trainer.fit_loop.epoch_loop.val_loop.run()
                trainer.training = True
            if lacks_validation or min(steps) < trainer.global_step:
                self.on_train_end(trainer, pl_module)
        for path in paths:
            sweep(path)


def save_last(trainer: pl.Trainer) -> Path | None:
    """Save ``last.ckpt``, unless that is of the present step, where `ckpt_path: last` looks. All processes call it.

    Returns:
        The path; None if the trainer keeps no checkpoints.
    """
    callbacks = [row for row in trainer.checkpoint_callbacks if isinstance(row, ModelCheckpoint) and row.dirpath]
    if not callbacks:
        return None
    callback = next((row for row in callbacks if row.save_last), callbacks[0])
    last = Path(callback.last_model_path)
    is_recorded = bool(callback.save_last and callback._last_global_step_saved == trainer.global_step)
    is_saved = decided(trainer, lambda: is_recorded and last.is_file())
    return last if is_saved else _save_last_of(trainer, callback)


def _save_last_of(trainer: pl.Trainer, callback: ModelCheckpoint) -> Path:
    path = Path(callback.dirpath or "") / LAST
    if callback.save_last:
        callback.last_model_path = str(path)  # the checkpoint says so, or the next one would be last-v1.ckpt
    trainer.save_checkpoint(path)
    callback._last_global_step_saved = trainer.global_step
    return path


def _keeping_last(trainer: pl.Trainer) -> list[ModelCheckpoint]:
    callbacks = [row for row in trainer.checkpoint_callbacks if isinstance(row, ModelCheckpoint)]
    return [row for row in callbacks if row.save_last and row.dirpath]


def step_in(path: str | Path) -> int:
    """The step of a checkpoint; −1 if it cannot be read."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # torch and zipfile name a dozen kinds of damage
        return -1


def _saved_now(trainer: pl.Trainer) -> str | None:
    """The name of the checkpoint that was saved at the present step; None if none was."""
    callbacks = [row for row in trainer.checkpoint_callbacks if isinstance(row, ModelCheckpoint)]
    now = [row for row in callbacks if row._last_global_step_saved == trainer.global_step]
    return next((Path(row.last_model_path or row.best_model_path).name or None for row in now), None)
