"""Estimates with 95 % intervals: shares, and distances between histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Shaped

Z = 1.959963984540054
"""Standard normal quantile of 0.975."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A point estimate from `n` samples, with the ends of its 95 % interval; None where none is known."""

    value: float
    low: float | None
    high: float | None
    n: int
    null: float | None = None
    """What real data would give on average from as many samples, where that is stated: a distance is never 0."""

    @property
    def interval(self) -> str:
        """Its ends, for a table."""
        return "" if self.low is None or self.high is None else f"{self.low:.3f}–{self.high:.3f}"

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain data, rounded to six digits."""
        numbers = {
            name: None if (x := getattr(self, name)) is None else round(x, 6) for name in ("value", "low", "high")
        }
        return {**numbers, "n": self.n} | ({} if self.null is None else {"null": round(self.null, 6)})


def share(num_hits: int, n: int, *, z: float = Z, effective: float | None = None) -> Estimate:
    """A share of hits with Wilson's score interval (Wilson 1927, without continuity correction).

    Args:
        num_hits: of `n`.
        n: number of samples.
        z: standard normal quantile of the interval.
        effective: how many independent samples tell as much as these `n`; as many if not given.

    Raises:
        ValueError: if `n` is 0 or there are more hits than samples.
    """
    if not 0 <= num_hits <= n or n == 0:
        raise ValueError(f"{num_hits} hits of {n} samples are no share")
    p, z2, size = num_hits / n, z * z, effective or n
    centre = (p + z2 / (2 * size)) / (1 + z2 / size)
    half = z * math.sqrt(p * (1 - p) / size + z2 / (4 * size * size)) / (1 + z2 / size)
    # p itself bounds the interval: at 0 and 1 rounding would leave it out.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def clustered_share(
    is_hit: Shaped[np.ndarray, " n"], clusters: Sequence[Hashable] | None = None, *, z: float = Z
) -> Estimate:
    """A share of samples of which those of one cluster (renderings of one scan) are alike: Wilson's interval at the
    `effective_size`.

    Raises:
        ValueError: if there is no sample.
    """
    return share(int(is_hit.sum()), len(is_hit), z=z, effective=effective_size(is_hit, clusters))


def effective_size(is_hit: Shaped[np.ndarray, " n"], clusters: Sequence[Hashable] | None = None) -> float:
    """How many independent samples tell as much about a share: n divided by the design effect (Kish 1965).

    That is the variance of the share over clusters, which is what a bootstrap of clusters converges to, over that of
    independent samples. The result lies between the numbers of clusters and of samples; where all are hits or none is,
    there is no variance to estimate, and each cluster counts as one.
    """
    n, hits = len(is_hit), int(is_hit.sum())
    if not clusters or n == 0:
        return n
    sizes, sums = _by_cluster(np.asarray(is_hit, float)[:, None], clusters)
    num, p = len(sizes), hits / n
    if hits in (0, n) or num == 1:
        return num
    variance = num / (num - 1) * ((sums[:, 0] - sizes * p) ** 2).sum() / n**2
    return float(np.clip(p * (1 - p) / variance, num, n)) if variance else n


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes ``[g]`` and sums ``[g, k]`` of the rows of each cluster."""
    codes = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    of = np.array([codes[name] for name in clusters])
    sums = np.zeros((len(codes), values.shape[1]))
    np.add.at(sums, of, values)
    return np.bincount(of), sums


def resampled_weights(
    n: int, clusters: Sequence[Hashable] = (), *, count: int, seed: int = 0
) -> Float64[np.ndarray, "r n"]:
    """How often each sample is drawn in each resample: whole clusters, with replacement."""
    names = list(clusters) or list(range(n))
    codes = {name: i for i, name in enumerate(dict.fromkeys(names))}
    drawn = np.random.default_rng(seed).multinomial(len(codes), np.full(len(codes), 1 / len(codes)), size=count)
    return drawn[:, [codes[name] for name in names]].astype(np.float64)


def around(value: float, resampled: Sequence[float] | np.ndarray, n: int, *, least: float = -math.inf) -> Estimate:
    """A value with the normal interval of its resamples' deviation: their mean, which is biased, does not count."""
    half = Z * float(np.std(resampled, ddof=1))
    value = float(value)
    return Estimate(value, max(least, value - half), value + half, n)


def total_variation(
    values: Sequence[Hashable], reference: Sequence[Hashable], clusters: Sequence[Hashable] = (), *, seed: int = 0
) -> Estimate:
    """Total variation distance, ½·Σ|p − q|, of the values' histogram to that of the reference.

    The reference counts as exact. The distance of a finite sample is biased upwards: `null` is its mean for samples of
    the reference itself, as many. The interval covers the true distance, small or large. Its lower end subtracts the
    0.975 quantile of how far a resample's histogram is from the sample's, since by the triangle inequality the true
    distance is at most so much smaller; its upper end adds 1.96 standard deviations of resamples alone, since the true
    distance is no larger than the expected one (Jensen).

    Args:
        values: a category each.
        reference: likewise.
        clusters: of each value, if they are not independent.
        seed: of the resamples.

    Raises:
        ValueError: if either is empty.
    """
    if not values or not reference:
        raise ValueError("a histogram needs at least one value")
    n, counts, expected = len(values), Counter(values), Counter(reference)
    categories = list(counts | expected)
    p = np.array([counts[name] / n for name in categories])
    q = np.array([expected[name] / len(reference) for name in categories])
    rng, value = np.random.default_rng(seed), float(np.abs(p - q).sum() / 2)
    if clusters:
        of = {name: i for i, name in enumerate(categories)}
        rows = np.eye(len(categories))[[of[name] for name in values]]
        sizes, sums = _by_cluster(rows, clusters)
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=RESAMPLES)
        resampled = (drawn @ sums) / (drawn @ sizes)[:, None]
    else:
        resampled = rng.multinomial(n, p, size=RESAMPLES) / n
    moved = np.abs(resampled - p).sum(axis=1) / 2
    deviation = float((np.abs(resampled - q).sum(axis=1) / 2).std(ddof=1))
    null = float((np.abs(rng.multinomial(n, q / q.sum(), size=RESAMPLES) / n - q).sum(axis=1) / 2).mean())
    low = max(0.0, value - float(np.quantile(moved, 0.975)))
    return Estimate(value, low, min(1.0, value + Z * deviation), n, null)


def least_frequency(
    values: Sequence[Hashable], reference: Sequence[Hashable], clusters: Sequence[Hashable] = ()
) -> Estimate:
    """The smallest frequency of a category among the values, as a share of its frequency in the reference.

    1 at most; 0 if a category is missing altogether. Categories rarer than 1 % of the reference do not count. The
    interval is Wilson's at Bonferroni's level for the number of categories, so that the choice of the smallest counts.

    Raises:
        ValueError: if either is empty, or no category has 1 % of the reference.
    """
    expected = {name: count / len(reference) for name, count in Counter(reference).items()}
    common = {name: q for name, q in expected.items() if q >= 0.01}
    if not values or not common:
        raise ValueError("a smallest frequency needs at least one value and one common category")
    z = NormalDist().inv_cdf(1 - 0.025 / len(common))
    names = np.array(values, dtype=object)
    cells = []
    for name, q in common.items():
        wide = clustered_share(names == name, clusters, z=z)
        cells.append(tuple(min(1.0, end / q) for end in (wide.value, wide.low or 0.0, wide.high or 0.0)))
    value, low, high = (min(column) for column in zip(*cells, strict=True))
    return Estimate(value, low, high, len(values))
