"""Clipping gradients: what Lightning does, with fused optimizers under bf16-mixed too."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch.optim import Optimizer


def clip_gradients(
    module: pl.LightningModule, optimizer: Optimizer, value: float | None, algorithm: str | None
) -> None:
    """Clip the gradients of an optimizer's parameters, as `LightningModule.configure_gradient_clipping` is asked to.

    Lightning refuses fused optimizers under every mixed precision, because those undo the scale of fp16's gradients in
    their step, after clipping. In bfloat16 there is no scale, and nothing to refuse.

    Args:
        module: in a trainer.
        optimizer: whose parameters have gradients.
        value: largest norm or value; None or 0 clips nothing.
        algorithm: ``norm`` or ``value``; the norm if None.

    Raises:
        RuntimeError: if a fused optimizer is clipped under 16-mixed; Lightning's.
    """
    plugin: Any = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
        Precision.clip_gradients(plugin, optimizer, value or 0.0, GradClipAlgorithmType(algorithm or "norm"))
    else:
        module.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
