"""What the trainings share: the optimizer, its schedule, and light augmentation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unidiff_core.codec_training import CodecTraining


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


def normalised(images: Tensor) -> Tensor:
    """uint8 ``[b, 3, h, w]`` → [-1, 1]."""
    return images.float() / 127.5 - 1


def augmented(pixels: Tensor, strength: float) -> Tensor:
    """Each image shifted, turned, sheared and scaled a little, at random; its border is continued outside.

    Args:
        pixels: ``[b, c, h, w]``.
        strength: 0 leaves the images alone; 1 means up to about 8 % shift, 12° and 12 % scale.
    """
    if strength == 0:
        return pixels
    uniform = (torch.rand(6, len(pixels), device=pixels.device) * 2 - 1) * strength
    theta = torch.stack(
        [
            torch.stack([1 + 0.12 * uniform[0], 0.2 * uniform[1], 0.16 * uniform[2]], dim=-1),
            torch.stack([0.2 * uniform[3], 1 + 0.12 * uniform[4], 0.16 * uniform[5]], dim=-1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
