"""Estimates with 95 % intervals: shares, and distances between histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

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

    @property
    def interval(self) -> str:
        """Its ends, for a table."""
        return "" if self.low is None or self.high is None else f"{self.low:.3f}–{self.high:.3f}"

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain data, rounded to six digits."""
        numbers = {
            name: None if (x := getattr(self, name)) is None else round(x, 6) for name in ("value", "low", "high")
        }
        return {**numbers, "n": self.n}


def share(num_hits: int, n: int) -> Estimate:
    """A share of hits with Wilson's score interval (Wilson 1927, without continuity correction).

    Raises:
        ValueError: if `n` is 0 or there are more hits than samples.
    """
    if not 0 <= num_hits <= n or n == 0:
        raise ValueError(f"{num_hits} hits of {n} samples are no share")
    p, z2 = num_hits / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # p itself bounds the interval: at 0 and 1 rounding would leave it out.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def total_variation(values: Sequence[Hashable], reference: Sequence[Hashable], *, seed: int = 0) -> Estimate:
    """Total variation distance, ½·Σ|p − q|, of the values' histogram to that of the reference.

    The reference counts as exact. The interval is the percentile bootstrap over `values` with a fixed seed. As the
    distance of a finite sample is biased upwards, and that of a resample twice, it is widened to hold the estimate.

    Raises:
        ValueError: if either is empty.
    """
    if not values or not reference:
        raise ValueError("a histogram needs at least one value")
    counts, expected = Counter(values), Counter(reference)
    categories = list(counts | expected)
    p = np.array([counts[name] / len(values) for name in categories])
    q = np.array([expected[name] / len(reference) for name in categories])
    value = float(np.abs(p - q).sum() / 2)
    resampled = np.random.default_rng(seed).multinomial(len(values), p, size=RESAMPLES) / len(values)
    low, high = np.percentile(np.abs(resampled - q).sum(axis=1) / 2, [2.5, 97.5])
    return Estimate(value, min(float(low), value), max(float(high), value), len(values))
