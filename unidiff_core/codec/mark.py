"""A mark: what a codec may put, unseen, into what it decodes, and how much of it is found in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """How much of a mark was found.

    Attributes:
        matched: bits that agree with the mark's, at the place where most do.
        bits: of how many.
        needed: how many have to agree for the mark to be there.
        places: at how many it was looked for.
    """

    matched: int
    bits: int
    needed: int
    places: int = 1

    @property
    def is_there(self) -> bool:
        """Whether as many bits agree as have to."""
        return self.matched >= self.needed

    @property
    def false_positive(self) -> float:
        """Bound of the probability that a sample without the mark is said to carry it.

        Against bits drawn evenly, as a mark's are, any fixed bits agree in n of N with the binomial probability; the
        places are added up, however they depend on each other.
        """
        ways = sum(math.comb(self.bits, n) for n in range(self.needed, self.bits + 1))
        return min(1.0, self.places * ways / 2**self.bits)
