"""The criterion: what a metric of a query must reach, and what its interval says of that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from unidiff_core.evaluation.estimate import Estimate

Verdict = Literal["met", "within noise", "missed", "not measured"]


@dataclass(frozen=True)
class Criterion:
    """What a metric of a query must reach."""

    query: str
    """The query, as it is written among the queries."""
    metric: str
    minus: str | None = None
    """Another metric of the query, subtracted first: the bounds are then relative to it."""
    at_least: float | None = None
    at_most: float | None = None

    def difference(self, metrics: Mapping[str, Estimate]) -> Estimate | None:
        """What is compared, with its interval; None if it was not measured.

        Half widths of a metric and of what is subtracted add as of independent estimates, which is too wide where both
        are of the same samples, and never too narrow.
        """
        if any(name not in metrics for name in (self.metric, *([self.minus] if self.minus else []))):
            return None
        one = metrics[self.metric]
        if self.minus is None:
            return one
        other = metrics[self.minus]
        value = one.value - other.value
        if one.low is None or one.high is None:
            return Estimate(value, None, None, one.n)
        below = 0.0 if other.low is None else other.value - other.low
        above = 0.0 if other.high is None else other.high - other.value
        low = value - math.hypot(one.value - one.low, above)
        return Estimate(value, low, value + math.hypot(one.high - one.value, below), one.n)

    def value(self, metrics: Mapping[str, Estimate]) -> float | None:
        """The number that is compared, or None if it was not measured."""
        found = self.difference(metrics)
        return None if found is None else found.value

    def verdict(self, metrics: Mapping[str, Estimate]) -> Verdict:
        """Met if the whole interval is within the bounds, missed if none of it is; without one, the value decides."""
        found = self.difference(metrics)
        if found is None:
            return "not measured"
        low = found.value if found.low is None else found.low
        high = found.value if found.high is None else found.high
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        if least <= low and high <= most:
            return "met"
        return "missed" if high < least or low > most else "within noise"

    def is_met(self, metrics: Mapping[str, Estimate]) -> bool:
        """Whether the verdict is that it is met."""
        return self.verdict(metrics) == "met"

    @property
    def bounds(self) -> str:
        """What the metric must be, ``≥ 0.95`` or ``≥ given_digit − 0.03``."""
        pairs = [(sign, bound) for sign, bound in (("≥", self.at_least), ("≤", self.at_most)) if bound is not None]
        if self.minus is None:
            return " and ".join(f"{sign} {bound:g}" for sign, bound in pairs)
        return " and ".join(f"{sign} {self.minus} {'−' if bound < 0 else '+'} {abs(bound):g}" for sign, bound in pairs)
