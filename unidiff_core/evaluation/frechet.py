"""Fréchet distance of samples to training data, in features (Heusel et al. 2017, eq. 6).

``frechet``: |μ − μ'|² + tr(Σ + Σ' − 2(ΣΣ')^½) of the features of samples and of one training sample of each source,
divided by the number of features. ``frechet_floor``: the same of real test samples, one of each source: nothing real
is nearer. The distance is biased upwards for few samples, so both are means over disjoint parts of as many samples as
there are test sources; the last, incomplete part is left out. The interval is ± 1.96 standard deviations over
resamples.

Both are prefixed with the modality where several are solved: ``<modality>.<metric>``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from unidiff_core.evaluation.estimate import Estimate, around, resampled_weights
from unidiff_core.evaluation.features import FeatureMetric
from unidiff_core.evaluation.metric import Drawn, Measured, Reference, prefixed

RESAMPLES = 40
LEAST = 8
"""Samples, at least, of which a covariance says anything."""


class Frechet(FeatureMetric):
    """``frechet``: the Fréchet distance of samples to training data, per feature, as FID is; lower is better.

    ``frechet_floor`` is that of real test samples. Both are defined at the top of this module.

    Args:
        features: in which it is measured.
    """

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of each solved modality that has features."""
        rows: dict[str, dict[str, Estimate]] = {}
        for name, train, test, found in self.compared(drawn, reference, LEAST):
            size = min(len(test), len(found))
            rows[name] = {
                "frechet": estimate(found, train, size, drawn.sources),
                "frechet_floor": estimate(test, train, size, []),
            }
        return Measured(prefixed(rows))


def estimate(
    found: Float64[np.ndarray, "n d"], train: Float64[np.ndarray, "m d"], size: int, sources: list[str]
) -> Estimate:
    """The mean distance of disjoint parts of `size` rows, and its interval."""
    parts = [found[start :: len(found) // size][:size] for start in range(len(found) // size)]
    value = float(np.mean([frechet_distance(part, train) for part in parts])) / found.shape[1]
    weights = resampled_weights(len(found), sources, count=RESAMPLES)
    resampled = [frechet_distance(found, train, row) / found.shape[1] for row in weights]
    return around(value, resampled, len(found), least=0.0)


def frechet_distance(
    a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"], weights: Float64[np.ndarray, " n"] | None = None
) -> float:
    """Of the normal distributions with the rows' means and (unbiased) covariances; `a` may be weighted."""
    mean_a, mean_b = np.average(a, axis=0, weights=weights), b.mean(axis=0)
    cov_a = np.atleast_2d(np.cov(a.T, fweights=None if weights is None else weights.astype(int)))
    cov_b = np.atleast_2d(np.cov(b.T))
    values, axes = np.linalg.eigh(cov_a)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    # The trace of (ΣΣ')^½ is that of (Σ^½ Σ' Σ^½)^½, which is symmetric.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
