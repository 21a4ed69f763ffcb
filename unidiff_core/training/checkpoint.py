"""What a training leaves behind: the model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from unidiff_core.training.ema import EMA


class ModelDirectory(pl.Callback):
    """Writes the model directory when training ends, and at every validation on the way.

    Args:
        folder: the directory.
    """

    def __init__(self, folder: str) -> None:
        self.folder = str(Path(folder).expanduser())

    def _save(self, trainer: pl.Trainer, module: Any) -> None:
        average = next((row.average for row in trainer.callbacks if isinstance(row, EMA)), None)  # type: ignore[attr-defined]
        module.save_pretrained(self.folder, average=average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what there is, once training has begun."""
        if trainer.state.fn == "fit" and trainer.global_step:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the result."""
        self._save(trainer, pl_module)
