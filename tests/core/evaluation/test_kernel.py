from __future__ import annotations

import numpy as np
import pytest

from tests.core.evaluation.points import DIMENSIONS, PointFeatures, measured, points
from unidiff_core.evaluation.kernel import Kernel, kernel_distance


def test_it_is_the_unbiased_estimator_of_bińkowski_et_al():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 3)), rng.normal(0.5, 1, (30, 3))

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    other = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    expected = within + other - 2 * np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b, []).value == pytest.approx(expected)


def test_real_samples_are_at_zero_whatever_their_number_and_others_above():
    metric = Kernel(PointFeatures())
    for num in (100, 900):
        real = measured(metric, points(num, 3))["kernel"]
        assert real.low <= 0.02 and real.high >= -0.02 and abs(real.value) < 0.08
    for wrong in (points(600, 3, mean=0.5), [np.zeros(DIMENSIONS)] * 600):
        assert measured(metric, wrong)["kernel"].low > 0.05
