"""What `unidiffuser fit-codec` trains: a network that a codec loads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch


class CodecTraining(pl.LightningModule, ABC):
    """Trains one network of a codec, and exports it in the layout that the codec loads."""

    @abstractmethod
    def export(self, folder: Path, data: Any) -> dict[str, float]:
        """Write the trained network into an existing, empty folder: config and safetensors, no pickle.

        Args:
            folder: where to.
            data: the data module that it was trained with; for statistics over the training data.

        Returns:
            What was measured on held-out data, by name; `fit-codec` prints it and keeps it as ``metrics.json``.
        """

    def show(self, folder: Path, data: Any) -> None:
        """Write something for people to look at, made from held-out data."""


class NetworkTraining(CodecTraining):
    """AdamW with warm-up and a cosine to zero.

    Args:
        lr: peak learning rate.
        weight_decay: of AdamW.
        warmup: share of the steps.
    """

    def __init__(self, lr: float, weight_decay: float, warmup: float = 0.05) -> None:
        super().__init__()
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup

    def configure_optimizers(self) -> Any:
        """Fused AdamW on what requires a gradient."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99), fused=True
        )
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._factor(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, progress: float) -> float:
        return min(progress / self.warmup + 1e-3, 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
