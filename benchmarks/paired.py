"""Side by side: two ways to do the same, in turn, so that what else the machine does falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

PAIRS = 7
"""At least; with them, the interval from the smallest to the largest ratio holds the median in 98 of 100 cases."""


@dataclass(frozen=True)
class Ratio:
    """How many times longer the other side takes.

    Attributes:
        ours: median seconds.
        theirs: median seconds.
        ratio: median of the pairs' ratios, theirs over ours.
        low: lower end of its interval.
        high: upper end.
    """

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def compare(ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int = PAIRS) -> Ratio:
    """Time both sides, ours first in every second pair, after one call of each that does not count.

    Args:
        ours: one side; a number that it returns is its seconds, in place of those that the call took.
        theirs: the other.
        pairs: of timings.
    """
    ours(), theirs()
    rows = []
    for i in range(pairs):
        if i % 2:
            second, first = _seconds(theirs), _seconds(ours)
        else:
            first, second = _seconds(ours), _seconds(theirs)
        rows.append((first, second))
    ratios = sorted(second / first for first, second in rows)
    low, high = _interval(len(ratios))
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    return Ratio(*middle, statistics.median(ratios), ratios[low], ratios[high])


def _interval(num: int) -> tuple[int, int]:
    """Places in a sorted row between which its median lies with at least 95 %, by the binomial distribution."""
    low = max((k for k in range(num // 2) if sum(comb(num, j) for j in range(k + 1)) / 2**num <= 0.025), default=0)
    return low, num - 1 - low


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    result = call()
    return result if isinstance(result, float) else time.perf_counter() - started
