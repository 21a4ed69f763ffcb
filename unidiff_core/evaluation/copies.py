"""Copies of training samples, also such as are shifted, turned or encoded anew.

A sample's distance to a set is that of its nearest pair, in features: of the sample's variants (`Features.variants`: as
it is, shifted, turned) and of the set's samples, both as they are and as the model's codec gives them back. ``copied``:
share of samples whose distance to the training samples, over that to the real test samples, is below what 95 % of real
test samples have (each measured without its own source, as it is and as the codec gives it back). A model that draws
something new is as far from what it saw as from what it did not, however blurred or average its samples are; real data
has 0.05 by this definition.

The two sets need not be equally large, since real samples are measured against the same two. It is prefixed with the
modality where several are solved: ``<modality>.copied``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.features import FeatureMetric
from unidiff_core.evaluation.metric import Drawn, Hits, Measured, Pair, Reference, estimates_of, prefixed
from unidiff_core.evaluation.nearness import squared_distances

SHARE = 0.05
LEAST = 20
"""Real test sources, at least, off which a threshold can be read."""
NUM_PAIRS = 6
"""Samples of a modality that are shown beside what they are nearest to."""


class Copies(FeatureMetric):
    """``copied``: the share of samples that are nearer to training samples than real ones are, shifted and turned too.

    A model that memorises has a large one; real data has 0.05. It is defined at the top of this module.

    Args:
        features: in which it is measured.
    """

    is_controlled = False  # the test samples are among what it compares with

    def fit(self, reference: Reference) -> None:
        """Features of real samples, as they are and as the codec gives them back, and the threshold."""
        super().fit(reference)
        self._sets: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._threshold: dict[str, float] = {}
        for name in reference.train.raws:
            train = self._both(name, reference.train.distinct(name).raws[name], reference)
            real = reference.test.distinct(name).raws[name] if name in reference.test.raws else []
            if train is None or len(real) < LEAST:
                continue
            tests = self._both_raws(name, real, reference)
            test = np.concatenate([row for raws in tests if (row := self.features.of(name, raws)) is not None])
            self._sets[name] = train, test
            self._threshold[name] = float(np.quantile(self._real_ratios(name, tests), SHARE))

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Whether each sample is suspiciously near to a training sample."""
        rows: dict[str, dict[str, Hits]] = {}
        pairs: dict[str, list[Pair]] = {}
        for name, raws in drawn.solved.items():
            if name in self._sets:
                ratios, index = self.ratios(name, raws)
                is_near = ratios < self._threshold[name]
                rows[name] = {"copied": Hits(np.ones(len(raws), bool), is_near)}
                train = reference.train.distinct(name).raws[name]
                pairs[name] = [
                    Pair(raws[i], train[index[i] % len(train)], float(ratios[i]), bool(is_near[i]))
                    for i in np.argsort(ratios, kind="stable")[:NUM_PAIRS]
                ]
        return Measured(estimates_of(prefixed(rows), drawn.sources), pairs=pairs)

    def ratios(self, name: str, raws: Sequence[Raw]) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Distance of each sample to the training samples, over that to the test samples; which is the nearest.

        The training samples are counted as they are, and then again as the codec gives them back.
        """
        train, test = self._sets[name]
        variants = self.features.variants(name, raws)
        assert variants is not None
        distances, index = _nearest(variants, train)
        return distances / np.maximum(_nearest(variants, test)[0], 1e-9), index

    def _real_ratios(self, name: str, tests: Sequence[Sequence[Raw]]) -> np.ndarray:
        """Of the test samples, each without itself and without what the codec makes of it."""
        train, test = self._sets[name]
        num, own = len(tests[0]), np.tile(np.arange(len(tests[0])), len(tests))
        ratios = []
        for raws in tests:
            variants = self.features.variants(name, raws)
            assert variants is not None
            others, _ = _nearest(variants, test, is_left_out=own == np.arange(num)[:, None])
            ratios.append(_nearest(variants, train)[0] / np.maximum(others, 1e-9))
        return np.concatenate(ratios)

    def _both_raws(self, name: str, raws: Sequence[Raw], reference: Reference) -> list[Sequence[Raw]]:
        return [raws, *([reference.reconstruct(name, raws)] if reference.reconstruct else [])]

    def _both(self, name: str, raws: Sequence[Raw], reference: Reference) -> np.ndarray | None:
        first = self.features.of(name, raws)
        if first is None:
            return None
        rows = [self.features.of(name, part) for part in self._both_raws(name, raws, reference)]
        return np.concatenate([row for row in rows if row is not None])


def _nearest(
    variants: Float64[np.ndarray, "n v d"], references: np.ndarray, *, is_left_out: np.ndarray | None = None
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Distance of the nearest variant of each sample to the nearest reference, and which that is."""
    found, places = [], []
    step = max(1, 4096 // variants.shape[1])
    for start in range(0, len(variants), step):
        part = variants[start : start + step]
        squares = squared_distances(part.reshape(-1, part.shape[-1]), references)
        squares = squares.reshape(*part.shape[:2], -1).min(axis=1)
        if is_left_out is not None:
            squares = np.where(is_left_out[start : start + step], np.inf, squares)
        found.append(squares.min(axis=1))
        places.append(squares.argmin(axis=1))
    return np.sqrt(np.concatenate(found)), np.concatenate(places)
