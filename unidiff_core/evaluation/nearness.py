"""Nearness to training samples: what a model that copies gives away.

``nearest``: share of samples nearer to a training sample than the first percentile of the distances of test samples to
their nearest training samples, in the judge's features. A model that copies has a large one; data has 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Shaped

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.judge import Judge
from unidiff_core.evaluation.metric import Drawn, Hits, Measured, Metric, Reference, estimates_of, prefixed

PERCENTILE = 1.0


class Nearness(Metric):
    """``nearest``: the share of samples nearer to a training sample than 99 % of real test samples are.

    It is defined at the top of this module; `Copies` also finds copies that are shifted or turned.

    Args:
        judge: whose features say what is alike; of modalities without features nothing is said.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def fit(self, reference: Reference) -> None:
        """Features of the training samples, and how near to them real test samples are."""
        self.judge.fit_on(reference.train)
        names = [name for name in self.judge.modalities if name in reference.train.raws]
        self._train = {
            name: features
            for name in names
            if (features := self.judge.features(name, reference.train.having(name).raws[name])) is not None
        }
        self._near = {
            name: float(np.percentile(self._distances(name, reference.test.raws[name]), PERCENTILE))
            for name in self._train
        }

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Whether each sample is suspiciously near to a training sample."""
        rows = {
            name: {"nearest": Hits(np.ones(len(raws), bool), self._distances(name, raws) < self._near[name])}
            for name, raws in drawn.solved.items()
            if name in self._train
        }
        return Measured(estimates_of(prefixed(rows)))

    def _distances(self, modality: str, raws: Sequence[Raw]) -> np.ndarray:
        features = self.judge.features(modality, raws)
        assert features is not None
        return nearest_distances(features, self._train[modality])


def nearest_distances(
    features: Shaped[np.ndarray, "n d"], references: Shaped[np.ndarray, "m d"], *, chunk: int = 256
) -> Float64[np.ndarray, " n"]:
    """Euclidean distance of each row of `features` to the nearest row of `references`."""
    parts = [features[i : i + chunk] for i in range(0, len(features), chunk)]
    return np.sqrt(np.concatenate([squared_distances(part, references).min(axis=1) for part in parts]))


def squared_distances(
    features: Shaped[np.ndarray, "n d"], references: Shaped[np.ndarray, "m d"]
) -> Float64[np.ndarray, "n m"]:
    """Squared Euclidean distance of each row of `features` to each of `references`."""
    features, references = features.astype(np.float64), references.astype(np.float64)
    norms = (references**2).sum(axis=1)
    return np.maximum((features**2).sum(axis=1)[:, None] + norms - 2 * features @ references.T, 0.0)
