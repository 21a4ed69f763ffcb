"""Time: one unit for every modality, and the way into it from fractions.

Outside of here a time is a fraction of T in [0, 1]: 0 is clean, 1 is pure noise. Networks, processes and predictors
count in steps 0..T, as the released network does.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float64
from torch import Tensor

T: Final = 1000
"""Pure noise, in steps. Times are real numbers in 0 (clean) .. T: a unit of time, not a setting."""

_DECIMALS = 6


def in_steps(fraction: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Fractions of T → steps, free of the rounding of k/T·T: the fraction k/T is the step k exactly."""
    return (fraction * T).round(decimals=_DECIMALS)


def time_tensor(t: float, num: int, device: torch.device | str = "cpu") -> Float64[Tensor, " num"]:
    """One time for a whole batch, in steps."""
    return torch.full((num,), t, dtype=torch.float64, device=device)
