from __future__ import annotations

import numpy as np

from tests.core.evaluation.letters import LetterJudge
from unidiff_core.evaluation.metric import Drawn, Reference, Samples
from unidiff_core.evaluation.nearness import Nearness, nearest_distances


def test_nearest_distances_are_the_brute_force_ones():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    expected = np.linalg.norm(a[:, None] - b, axis=-1).min(axis=1)
    np.testing.assert_allclose(nearest_distances(a, b, chunk=7), expected, atol=1e-9)
    assert nearest_distances(b, b).max() < 1e-6


def test_a_copy_counts_as_near():
    rng = np.random.default_rng(0)

    class Numbers(LetterJudge):
        labels = ("letter",)

        def features(self, modality, raws):
            return np.array([[float(raw[1:])] for raw in raws])

    def draw(n):
        return [f"a{value:.6f}" for value in rng.uniform(0, 9, n)]

    train, test = ({"upper": draw(50)} for _ in range(2))
    labels = {"letter": ["a"] * 50}
    reference = Reference(Samples(train, labels), Samples(test, labels))
    nearness = Nearness(Numbers())
    nearness.fit(reference)

    def nearest(solved):
        return nearness.measure(Drawn({}, solved, {}), reference).estimates["nearest"].value

    assert nearest(train) == 1.0
    assert nearest(test) <= 0.02


def test_nothing_is_said_without_features_and_no_sample_is_at_fault():
    samples = Samples({"upper": ["A1", "B2"], "lower": ["a1", "b2"]}, {})
    nearness, reference = Nearness(LetterJudge()), Reference(samples, samples)
    nearness.fit(reference)
    assert not nearness.measure(Drawn({}, {"lower": ["a1"]}, {}), reference).estimates
    measured = nearness.measure(Drawn({}, samples.raws, {}), reference)
    assert set(measured.estimates) == {"nearest"} and not measured.faults
