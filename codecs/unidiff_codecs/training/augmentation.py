"""Pixels for a network, lightly augmented."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


def normalised(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes → [-1, 1]."""
    return images.float() / 127.5 - 1


def augmented(pixels: Float[Tensor, "b c h w"], strength: float) -> Float[Tensor, "b c h w"]:
    """Each image shifted, turned, sheared and scaled a little, at random; its border is continued outside.

    Args:
        pixels: in any range.
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
