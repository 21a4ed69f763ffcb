"""Numbers that are none: NaN and infinity in weights and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from unidiff_core.foundation.distributed import local


class NonFiniteError(ValueError):
    """Weights, or the losses of many steps in a row, are not finite."""


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of what lies on this process are; one read of each, and one wait for the device."""
    parts = [part for part in map(local, tensors) if part.is_floating_point() and part.numel()]
    return bool(nn.utils.get_total_norm(parts, norm_type=torch.inf).isfinite()) if parts else True


def non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is not finite throughout; None if all are."""
    if are_finite(tensors.values()):
        return None
    return next((name for name, value in tensors.items() if not are_finite([value])), None)
