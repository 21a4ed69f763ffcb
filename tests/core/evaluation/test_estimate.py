from __future__ import annotations

import numpy as np
import pytest

from unidiff_core.evaluation.estimate import share, total_variation


def test_wilson_interval_against_a_known_value():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263.
    estimate = share(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    assert estimate.value == 81 / 263


@pytest.mark.parametrize("hits", [0, 10])
def test_an_extreme_share_is_in_its_interval(hits):
    estimate = share(hits, 10)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low == pytest.approx(0.27753, abs=1e-4)


def test_no_samples_are_no_share():
    with pytest.raises(ValueError, match="0 hits of 0"):
        share(0, 0)


def test_total_variation_is_exact():
    values = ["a"] * 3 + ["b"] + [None] * 4
    estimate = total_variation(values, ["a", "b", "b", "c"])
    assert estimate.value == (abs(3 / 8 - 1 / 4) + abs(1 / 8 - 1 / 2) + 1 / 4 + 1 / 2) / 2
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate == total_variation(values, ["a", "b", "b", "c"])
    assert total_variation(["a", "b"], ["b", "a"]).value == 0 == total_variation(["a", "b"], ["b", "a"]).low


def test_the_bootstrap_covers():
    rng = np.random.default_rng(0)
    truth, reference = [0.5, 0.3, 0.2], list("aaabbbbccc")  # (0.3, 0.4, 0.3): distance 0.2
    intervals = [total_variation(list(rng.choice(list("abc"), 500, p=truth)), reference) for _ in range(100)]
    assert sum(cell.low <= 0.2 <= cell.high for cell in intervals) >= 90
