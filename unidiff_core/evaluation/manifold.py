"""Precision, density and coverage: whether samples lie where data lies, and whether all of the data is covered.

Kynkäänniemi et al. 2019 (precision) and Naeem et al. 2020 (density, coverage). A *ball* is centred at the features of a
real training sample, one of each source, and reaches to its 5th nearest neighbour among them.

* ``precision``: share of samples that lie in a ball at all.
* ``density``: number of balls in which a sample lies, on average, divided by 5; 1 for real data, more where samples
  crowd.
* ``coverage``: share of balls in which any sample lies, of as many samples as there are test sources (the expected
  share, over all choices of so many samples without replacement).
* ``<metric>_floor``: the same of real test samples, one of each source.

Intervals are ± 1.96 standard deviations over resamples, but that of precision, which is a share. Each is prefixed with
the modality where several are solved: ``<modality>.<metric>``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import gammaln

from unidiff_core.evaluation.estimate import Estimate, around, clustered_share, resampled_weights
from unidiff_core.evaluation.features import FeatureMetric
from unidiff_core.evaluation.metric import Drawn, Measured, Reference, prefixed
from unidiff_core.evaluation.nearness import squared_distances

NEIGHBOURS = 5
RESAMPLES = 100


class Manifold(FeatureMetric):
    """``precision``, ``density`` and ``coverage``: whether samples lie where data lies, and cover all of it.

    Each has a ``_floor``, that of real test samples. They are defined at the top of this module.

    Args:
        features: in which they are measured.
    """

    def fit(self, reference: Reference) -> None:
        """Balls around training samples."""
        super().fit(reference)
        self._radii: dict[str, np.ndarray] = {}
        for name in reference.train.raws:
            train = self.of_train(name, reference)
            if train is not None and len(train) > NEIGHBOURS:
                squares = squared_distances(train, train)
                self._radii[name] = np.partition(squares, NEIGHBOURS, axis=1)[:, NEIGHBOURS]

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of each solved modality that has features."""
        rows: dict[str, dict[str, Estimate]] = {}
        for name, train, test, found in self.compared(drawn, reference, 1):
            if name not in self._radii:
                continue
            size = min(len(test), len(found))
            own, real = (squared_distances(x, train) <= self._radii[name] for x in (found, test))
            floor = _estimates(real, size, [])
            rows[name] = _estimates(own, size, drawn.sources) | {f"{key}_floor": cell for key, cell in floor.items()}
        return Measured(prefixed(rows))


def _estimates(is_in: Bool[np.ndarray, "n m"], size: int, sources: list[str]) -> dict[str, Estimate]:
    """Of samples and balls."""
    n = len(is_in)
    balls = is_in.sum(axis=1) / NEIGHBOURS
    weights = resampled_weights(n, sources, count=RESAMPLES)
    hits = is_in.astype(np.float64)
    covered = [covered_share(row @ hits, row.sum(), size) for row in weights]
    return {
        "precision": clustered_share(np.asarray(is_in.any(axis=1)), sources),
        "density": around(float(balls.mean()), weights @ balls / weights.sum(axis=1), n, least=0.0),
        "coverage": around(covered_share(hits.sum(axis=0), n, size), covered, n, least=0.0),
    }


def covered_share(hits: Float64[np.ndarray, " m"], n: float, size: int) -> float:
    """Expected share of balls that `size` of `n` samples hit, `hits` of them in each: 1 − C(n − h, size)/C(n, size)."""

    def log_choices(total: np.ndarray | float) -> np.ndarray:
        return gammaln(np.asarray(total) + 1) - gammaln(np.maximum(np.asarray(total) - size, 0) + 1)

    missed = np.where(n - hits >= size, np.exp(log_choices(n - hits) - log_choices(n)), 0.0)
    return float(1 - missed.mean())
