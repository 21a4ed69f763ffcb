"""A world of points in the plane: a modality whose raw sample is its own feature, from a mixture of ten classes."""

from __future__ import annotations

import numpy as np

from unidiff_core.evaluation.features import Features
from unidiff_core.evaluation.metric import Drawn, Reference, Samples

DIMENSIONS = 6


class PointFeatures(Features):
    """A point as it is; its variants are also shifted by a unit along the first axis."""

    name = "points"

    def __init__(self):
        self.computed = 0

    def compute(self, modality, raws):
        self.computed += 1
        return np.array(raws) if modality == "point" else None

    def compute_variants(self, modality, raws):
        points = self.compute(modality, raws)
        return None if points is None else points[:, None] + np.array([0.0, 1.0, -1.0])[:, None] * np.eye(DIMENSIONS)[0]


def points(num, seed, *, spread=1.0, mean=0.0):
    return list(np.random.default_rng(seed).normal(mean, spread, (num, DIMENSIONS)))


def reference(train=400, test=150, **more):
    real = [Samples({"point": points(num, seed), "other": [""] * num}, {}) for num, seed in ((train, 1), (test, 2))]
    return Reference(*real, **more)


def measured(metric, raws, ref=None, sources=(), other=False):
    """Estimates of a query that solves points (and another modality, without features)."""
    ref = ref or reference()
    metric.fit(ref)
    solved = {"point": list(raws)} | ({"other": [""] * len(raws)} if other else {})
    return metric.measure(Drawn({}, solved, {}, list(sources)), ref).estimates
