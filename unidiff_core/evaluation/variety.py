"""Variety within a condition, as a share of the data's: what a model lacks that answers a question always alike.

Samples form groups that are alike in what they say: all the judge's labels, as it reads them off the sample.
``variety``: the mean squared distance of two samples of one group, in features, divided by that of real training
samples (one of each source) of the same groups, each group weighing as many pairs as it has samples. Without a judge
all samples are one group. 1 for real data, 0 for one answer to each question, 0.5 for averages of two.
``variety_floor``: the same of real test samples, one of each source. Intervals: ± 1.96 standard deviations over
resamples.

Both are prefixed with the modality where several are solved: ``<modality>.<metric>``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.estimate import Estimate, around, resampled_weights
from unidiff_core.evaluation.features import FeatureMetric, Features
from unidiff_core.evaluation.judge import Judge
from unidiff_core.evaluation.metric import Drawn, Measured, Reference, prefixed

RESAMPLES = 100
LEAST = 8
"""Samples, at least, of which it says anything."""


class Variety(FeatureMetric):
    """``variety``: how different samples of one condition are, as a share of the data's: 0 is always the same.

    ``variety_floor`` is that of real test samples. Both are defined at the top of this module.

    Args:
        features: in which it is measured.
        judge: who says which samples are of one group; none, and all are.
    """

    def __init__(self, features: Features, judge: Judge | None = None) -> None:
        super().__init__(features)
        self.judge = judge

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of each solved modality that has features."""
        rows: dict[str, dict[str, Estimate]] = {}
        for name, raws in drawn.solved.items():
            train, test = (part.distinct(name).raws[name] for part in (reference.train, reference.test))
            if self.features.of(name, raws) is None or min(map(len, (train, test, raws))) < LEAST:
                continue
            cells = {
                "variety": self._estimate(name, raws, train, drawn.sources),
                "variety_floor": self._estimate(name, test, train, []),
            }
            rows[name] = {key: cell for key, cell in cells.items() if cell is not None}
        return Measured(prefixed(rows))

    def _estimate(
        self, name: str, raws: Sequence[Raw], train: Sequence[Raw], sources: Sequence[Hashable]
    ) -> Estimate | None:
        real, own = self._groups(name, train), self._groups(name, raws)
        there, here = self.features.of(name, train), self.features.of(name, raws)
        assert there is not None and here is not None
        of_data = {key: _spread(there[rows], np.ones(len(rows))) for key, rows in real.items() if len(rows) > 1}
        shared = {key: rows for key, rows in own.items() if key in of_data and len(rows) > 1}
        if not shared:
            return None

        def value(weights: np.ndarray) -> float:
            cells = [
                (of_data[key], _spread(here[rows], weights[rows]), weights[rows].sum()) for key, rows in shared.items()
            ]
            return sum(own * n for _, own, n in cells) / max(sum(data * n for data, _, n in cells), 1e-12)

        n = sum(map(len, shared.values()))
        weights = resampled_weights(len(raws), sources, count=RESAMPLES)
        return around(value(np.ones(len(raws))), [value(row) for row in weights], n, least=0.0)

    def _groups(self, name: str, raws: Sequence[Raw]) -> dict[Hashable, np.ndarray]:
        """What a group says → rows; samples of which the judge reads nothing are in none."""
        if self.judge is None or name not in self.judge.modalities:
            return {"all": np.arange(len(raws))}
        readings = self.judge.readings(name, raws)
        said = list(zip(*(readings[label] for label in self.judge.labels), strict=True))
        codes: dict[Hashable, list[int]] = {}
        for i, key in enumerate(said):
            if any(part is not None for part in key):
                codes.setdefault(key, []).append(i)
        return {key: np.array(rows) for key, rows in codes.items()}


def _spread(features: np.ndarray, weights: np.ndarray) -> float:
    """Mean squared distance of two different samples, weighted by how often each is drawn."""
    total, squares = weights.sum(), (weights**2).sum()
    if total**2 <= squares:
        return 0.0
    mean = weights @ features / total
    # Of all pairs twice the variance; those of a sample with itself, which add 0, are not counted.
    return float(2 * total * (weights @ ((features - mean) ** 2).sum(axis=1)) / (total**2 - squares))
