"""Kernel distance of samples to training data, in features (Bińkowski et al. 2018): unbiased, whatever the number of
samples.

``kernel``: the unbiased squared maximum mean discrepancy under the kernel (x·y/d + 1)³, of samples to one training
sample of each source; negative at times where the truth is near 0. ``kernel_floor``: the same of real test samples,
one of each source. The interval is ± 1.96 standard deviations over resamples of the samples; the training data counts
as exact.

Both are prefixed with the modality where several are solved: ``<modality>.<metric>``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from unidiff_core.evaluation.estimate import Estimate, around, resampled_weights
from unidiff_core.evaluation.features import FeatureMetric
from unidiff_core.evaluation.metric import Drawn, Measured, Reference, prefixed

RESAMPLES = 200
LEAST = 8
"""Samples, at least, of which it says anything."""


class Kernel(FeatureMetric):
    """``kernel``: the kernel distance of samples to training data, as KID is: no bias for few samples; lower is better.

    ``kernel_floor`` is that of real test samples. Both are defined at the top of this module.

    Args:
        features: in which it is measured.
    """

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of each solved modality that has features."""
        rows: dict[str, dict[str, Estimate]] = {}
        for name, train, test, found in self.compared(drawn, reference, LEAST):
            rows[name] = {
                "kernel": kernel_distance(found, train, drawn.sources),
                "kernel_floor": kernel_distance(test, train, []),
            }
        return Measured(prefixed(rows))


def kernel_distance(a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"], sources: list[str]) -> Estimate:
    """The unbiased squared discrepancy, and its interval."""
    within, other = _kernel(a, a), _kernel(b, b)
    np.fill_diagonal(within, 0.0)
    np.fill_diagonal(other, 0.0)
    between = _kernel(a, b).mean(axis=1)
    constant = other.sum() / (len(b) * (len(b) - 1))

    def value(weights: np.ndarray) -> float:
        total = weights.sum()
        pairs = weights @ within @ weights / max(total**2 - (weights**2).sum(), 1.0)  # not of a sample with itself
        return float(pairs - 2 * weights @ between / total + constant)

    resampled = [value(row) for row in resampled_weights(len(a), sources, count=RESAMPLES)]
    return around(value(np.ones(len(a))), resampled, len(a))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
