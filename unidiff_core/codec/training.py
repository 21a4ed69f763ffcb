"""What `unidiffuser fit-codec` trains: a network that a codec loads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from unidiff_core.foundation.argument import check_amounts, check_shares
from unidiff_core.foundation.clipping import clip_gradients


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


class OnePass(CodecTraining):
    """What needs no gradient: `export` reads it off the data, and no trainer runs."""


class NetworkTraining(CodecTraining):
    """AdamW with warm-up and a cosine to zero.

    Args:
        lr: peak learning rate.
        weight_decay: of AdamW.
        warmup: share of the steps.
    """

    def __init__(self, lr: float, weight_decay: float, warmup: float = 0.05) -> None:
        super().__init__()
        check_amounts(lr=lr, weight_decay=weight_decay)
        check_shares(warmup=warmup)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup

    def configure_optimizers(self) -> Any:
        """AdamW on what requires a gradient; fused, but under 16-mixed, where Lightning clips no fused one."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = getattr(self.trainer.precision_plugin, "scaler", None) is None
        optimizer = torch.optim.AdamW(
            trained, lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99), fused=fused
        )
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._factor(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the trainer says."""
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _factor(self, progress: float) -> float:
        return min(progress / self.warmup + 1e-3, 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
