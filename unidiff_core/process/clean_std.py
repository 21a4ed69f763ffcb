"""How far clean estimates are from the clean values, by time: what a reverse step with fresh noise has to make up for.

The mean squared error of the clean estimate at time t, over elements, is the variance of x_0 that x_t leaves open,
averaged over elements: σ̄² = E‖x_0 − E[x_0 | x_t]‖² / d, the optimal scalar of Analytic-DPM (Bao et al. 2022,
https://arxiv.org/abs/2201.06503). Estimated so, and not from the size of the noise prediction, it is right for any
network, not the perfect one alone, and never negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unidiff_core.foundation.time import T


@dataclass(frozen=True)
class CleanStd:
    """Root mean squared error of the clean estimates of one stream, linear between the times that it was measured at.

    Attributes:
        points: (time in steps 0..T, error) by time. At 0, where all is known, it is 0.
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        times = [t for t, _ in self.points]
        if not times or times != sorted(set(times)) or times[0] <= 0 or times[-1] > T:
            raise ValueError(f"times of a clean_std rise, above 0 and up to {T}, not {times}")
        if not all(0 <= value < float("inf") for _, value in self.points):
            raise ValueError(f"errors of a clean_std are numbers from 0 up, not {[value for _, value in self.points]}")

    def __call__(self, t: float) -> float:
        """At a time in steps."""
        times, values = zip((0.0, 0.0), *self.points, strict=True)
        return float(np.interp(t, times, values))

    @classmethod
    def of_sums(cls, sums: Float[Tensor, "bins 3"]) -> CleanStd | None:
        """From what `squared_errors` gave, added up over batches; None if nothing was counted."""
        # Near 0 the error grows as the time: its root mean square belongs to that of the times.
        rows = [((time / count) ** 0.5, (error / count) ** 0.5) for error, count, time in sums.tolist() if count]
        return cls(rows) if rows else None


def squared_errors(
    error: Float[Tensor, "b *shape"], t: Float[Tensor, " b"], num_bins: int
) -> Float[Tensor, "num_bins 3"]:
    """For each of `num_bins` equal stretches of (0, T]: summed squares of `error`, elements, squares of their times."""
    squares = error.double().square().flatten(1).sum(1)
    count = torch.full_like(squares, math.prod(error.shape[1:]))
    rows = torch.stack([squares, count, count * t.square()], dim=1)
    where = (t * num_bins / T).ceil().long().clamp(1, num_bins) - 1
    return torch.zeros(num_bins, 3, dtype=rows.dtype, device=rows.device).index_add_(0, where, rows)
