from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from tests.core.evaluation.points import DIMENSIONS, PointFeatures, measured, points
from unidiff_core.evaluation.frechet import Frechet, frechet_distance


def test_the_distance_is_the_textbook_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)), rng.normal(1, 2, (70, 4))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    cross = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b).real)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    twice = np.repeat(a, 2, axis=0)
    assert frechet_distance(a, b, np.full(50, 2.0)) == pytest.approx(frechet_distance(twice, b))


def test_real_samples_are_at_the_floor_and_others_above_it():
    metric = Frechet(PointFeatures())
    real = measured(metric, points(600, 3))
    assert real["frechet"].value == pytest.approx(real["frechet_floor"].value, abs=0.03)
    for wrong in (points(600, 3, spread=0.5), points(600, 3, mean=0.5), [np.zeros(DIMENSIONS)] * 600):
        found = measured(metric, wrong)
        assert found["frechet"].low > found["frechet_floor"].high


def test_few_samples_and_other_modalities_say_nothing():
    assert measured(Frechet(PointFeatures()), points(5, 3)) == {}
    assert set(measured(Frechet(PointFeatures()), points(50, 3), other=True)) == {"frechet", "frechet_floor"}
