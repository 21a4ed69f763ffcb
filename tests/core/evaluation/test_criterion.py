from __future__ import annotations

import pytest

from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.estimate import Estimate


def at(value, half=None):
    return Estimate(value, *((None, None) if half is None else (value - half, value + half)), 100)


@pytest.mark.parametrize(
    ("bounds", "estimate", "verdict"),
    [
        ({"at_least": 0.9}, at(0.95, 0.02), "met"),
        ({"at_least": 0.9}, at(0.91, 0.02), "within noise"),
        ({"at_least": 0.9}, at(0.89, 0.02), "within noise"),
        ({"at_least": 0.9}, at(0.85, 0.02), "missed"),
        ({"at_most": 0.1}, at(0.05, 0.02), "met"),
        ({"at_most": 0.1}, at(0.09, 0.02), "within noise"),
        ({"at_most": 0.1}, at(0.15, 0.02), "missed"),
        ({"at_least": 0.1, "at_most": 0.3}, at(0.2, 0.05), "met"),
        ({"at_least": 0.1, "at_most": 0.3}, at(0.2, 0.15), "within noise"),
        ({"at_least": 0.9}, at(0.9), "met"),
        ({"at_least": 0.9}, at(0.89), "missed"),
    ],
)
def test_the_interval_says_whether_it_is_met(bounds, estimate, verdict):
    rule = Criterion("a", "m", **bounds)
    assert rule.verdict({"m": estimate}) == verdict
    assert rule.is_met({"m": estimate}) == (verdict == "met")


def test_what_is_subtracted_brings_its_own_noise():
    rule = Criterion("a", "m", minus="floor", at_most=0.1)
    metrics = {"m": at(0.2, 0.03), "floor": at(0.15, 0.04)}
    found = rule.difference(metrics)
    assert found.value == pytest.approx(0.05)
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(0.1))  # 3, 4, 5
    assert rule.verdict({"m": at(0.2, 0.03)}) == "not measured" and rule.value({}) is None
