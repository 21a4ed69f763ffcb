"""Numbers that are none: NaN and infinity in weights and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from unidiff_core.foundation.distributed import local


class NonFiniteError(ValueError):
    """Weights, or the losses of many steps in a row, are not finite."""


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of what lies on this process are; one read of each, one wait for the device."""
    parts = [part for part in map(local, tensors) if part.is_floating_point() and part.numel()]
    if not parts or bool(torch.stack([part.sum(dtype=_sum_dtype(part)).isfinite() for part in parts]).all()):
        return True  # a sum of anything that is not finite is not either
    return all(bool(part.isfinite().all()) for part in parts)  # sums of finite numbers may overflow


def _sum_dtype(part: Tensor) -> torch.dtype:
    return torch.promote_types(part.dtype, torch.float32)


def non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is not finite throughout; None if all are."""
    if are_finite(tensors.values()):
        return None
    return next((name for name, value in tensors.items() if not are_finite([value])), None)
