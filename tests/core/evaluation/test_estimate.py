from __future__ import annotations

import numpy as np
import pytest

from unidiff_core.evaluation.estimate import (
    clustered_share,
    effective_size,
    least_frequency,
    resampled_weights,
    share,
    total_variation,
)


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


@pytest.mark.parametrize("distance", [0.0, 0.01, 0.03, 0.1, 0.3])
def test_the_interval_of_a_distance_covers_however_small_it_is(distance):
    rng, reference = np.random.default_rng(0), list(range(10)) * 10
    truth = np.full(10, 0.1)
    truth[:5] += distance / 5
    truth[5:] -= distance / 5
    intervals = [total_variation(list(rng.choice(10, 500, p=truth)), reference) for _ in range(60)]
    assert sum(cell.low <= distance <= cell.high for cell in intervals) >= 55
    assert all(0.03 < cell.null < 0.08 for cell in intervals)


def test_the_null_of_a_distance_is_what_the_reference_itself_gives():
    rng, reference = np.random.default_rng(0), list("aaabbbbccc")
    own = [total_variation(list(rng.choice(reference, 100)), reference) for _ in range(200)]
    assert np.mean([cell.value for cell in own]) == pytest.approx(own[0].null, abs=0.005)


def clusters(num, size):
    return [i for i in range(num) for _ in range(size)]


def test_a_distance_of_clustered_samples_covers():
    rng, reference = np.random.default_rng(0), list(range(10)) * 10
    truth = np.full(10, 0.1)
    truth[:5] += 0.02
    truth[5:] -= 0.02
    of = clusters(120, 3)
    drawn = [[v for v in rng.choice(10, 120, p=truth) for _ in range(3)] for _ in range(60)]
    assert sum((cell := total_variation(row, reference, of)).low <= 0.1 <= cell.high for row in drawn) >= 55


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97])
def test_a_share_of_clustered_samples_covers_where_a_plain_one_does_not(truth):
    rng, of = np.random.default_rng(0), clusters(360, 3)
    covered = {"clustered": 0, "plain": 0}
    for _ in range(150):
        hits = np.repeat(rng.random(360) < truth, 3)
        for name, cell in (("clustered", clustered_share(hits, of)), ("plain", share(int(hits.sum()), 1080))):
            covered[name] += cell.low <= truth <= cell.high
    assert covered["clustered"] >= 136 > covered["plain"]
    assert effective_size(hits, of) == pytest.approx(360)


def test_independent_samples_keep_their_size_and_certain_ones_count_by_cluster():
    rng, of = np.random.default_rng(0), clusters(360, 3)
    assert effective_size(rng.random(1080) < 0.7, of) > 850
    assert effective_size(np.ones(1080, bool), of) == 360
    assert clustered_share(np.ones(10, bool)) == share(10, 10)


def test_the_least_frequency_is_of_the_rarest_class_and_covers():
    rng, reference = np.random.default_rng(0), list("aabbccdd")
    cell = least_frequency(list("aabbccc") * 40, reference)
    assert cell.value == 0.0 and cell.high < 0.2
    truth = [0.3, 0.3, 0.3, 0.1]  # d comes 0.4 times as often
    intervals = [least_frequency(list(rng.choice(list("abcd"), 300, p=truth)), reference) for _ in range(100)]
    assert sum(cell.low <= 0.4 <= cell.high for cell in intervals) >= 93
    with pytest.raises(ValueError, match="at least one value"):
        least_frequency([], reference)


def test_resamples_draw_whole_clusters():
    weights = resampled_weights(6, [0, 0, 1, 1, 2, 2], count=50)
    assert weights.shape == (50, 6) and (weights.sum(axis=1) == 6).all()
    assert (weights[:, 0] == weights[:, 1]).all() and not (weights == 1).all()
