from __future__ import annotations

import math

import numpy as np
import pytest

from tests.core.evaluation.points import DIMENSIONS, PointFeatures, measured, points
from unidiff_core.evaluation.manifold import Manifold, covered_share


def test_the_covered_share_is_that_of_all_choices():
    # 6 samples, of which 2 lie in the first ball and none in the second; 3 are chosen.
    expected = (1 - math.comb(4, 3) / math.comb(6, 3)) / 2
    assert covered_share(np.array([2.0, 0.0]), 6, 3) == pytest.approx(expected)
    assert covered_share(np.array([4.0]), 6, 3) == 1.0


def test_real_samples_are_as_dense_as_the_data_and_cover_it():
    metric = Manifold(PointFeatures())
    real = measured(metric, points(600, 3))
    for name in ("precision", "density", "coverage"):
        assert real[name].value == pytest.approx(real[f"{name}_floor"].value, abs=0.1)
    assert real["density"].value == pytest.approx(1.0, abs=0.15)


def test_noise_is_not_precise_and_one_answer_covers_nothing():
    metric = Manifold(PointFeatures())
    assert measured(metric, points(600, 3, spread=5.0))["precision"].high < 0.3
    middle = measured(metric, [np.zeros(DIMENSIONS)] * 600)
    assert middle["precision"].value == 1.0 and middle["coverage"].high < 0.2
